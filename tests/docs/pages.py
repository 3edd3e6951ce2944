"""What stands in the documentation: blocks, commands, links and options, each with the place where it stands."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^(?P<fence>```+)(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=fence)[ ]*$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r'title="([^"]+)"')
PROGRAMS = (
    "lit-edit",
    "pip",
    "pytest",
    "python",
    "tensorboard",
    "torchrun",
    "srun",
    "ruff",
    "mypy",
    "mkdocs",
    ".ci/lower",
    "ls",
    "cat",
    "export",
)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    line: int
    language: str
    title: str
    body: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        title = _TITLE.search(match["info"])
        language = (match["info"].split() or [""])[0]
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(named(path), line, language, title[1] if title else "", match["body"]))
    return found


def prose(path: Path) -> str:
    """A page without its fenced blocks; lines keep their numbers."""
    return _FENCE.sub(lambda match: "\n" * match[0].count("\n"), path.read_text(encoding="utf-8"))


def commands(block: Block) -> list[list[str]]:
    """The commands of a shell block as words: continued lines joined, comments dropped, ``&&`` taken apart."""
    found = []
    for line in block.body.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                found.append(words)
                words = []
    return found


def links(path: Path) -> list[tuple[str, str]]:
    """Targets of the links and images of a page that lead to files, with their anchors."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(path))
    return [tuple(target.partition("#")[::2]) for target in found if "://" not in target]


def inline(path: Path) -> list[str]:
    """What stands in code style in the text of a page."""
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(path))]


def anchors(path: Path) -> set[str]:
    """The anchors that headings of a page have."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}
