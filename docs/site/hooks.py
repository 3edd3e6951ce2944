"""What the documentation's generator does besides rendering pages: formulas without scripts, pages from the top level."""

from __future__ import annotations

import html
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_TOP = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Files beside ``docs/`` that are pages as well, by the names of the pages."""
_ASSETS = ("iframe-worker.js", "site.css")
"""Files beside this one that the pages use; mkdocs.yml names them."""
_MATHML = "http://www.w3.org/1998/Math/MathML"
_NAMED = re.compile(r"[a-zA-Z]{2,}")
_ARGUMENTS = {"mi", "mn", "msub", "msup", "msubsup", "mfrac", "msqrt"}

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">(?:\\\((?P<inline>.*?)\\\)|\\\[(?P<block>.*?)\\\])</(?P=tag)>', re.DOTALL
)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages whose text stands at the top level, and what the pages are dressed with."""
    for name in _ASSETS:
        files.append(File.generated(config, f"assets/{name}", content=Path(__file__).with_name(name).read_text("utf-8")))
    for name, page in _TOP.items():
        files.append(File.generated(config, page, content=Path(config.config_file_path).with_name(name).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links that leave ``docs/``, as they must in the repository, point to those pages."""
    up = "../" * page.file.src_uri.count("/")
    for name, target in _TOP.items():
        markdown = re.sub(rf"\]\((?:\.\./)+{re.escape(name)}", f"]({up}{target}", markdown)
    return markdown


def on_page_content(content: str, **_: Any) -> str:
    """Turn LaTeX into MathML, which browsers draw themselves."""
    return _FORMULA.sub(_drawn, content)


def _drawn(found: re.Match[str]) -> str:
    block = found["block"] is not None
    formula = html.unescape(found["block"] if block else found["inline"]).strip()
    return polished(convert(formula, display="block" if block else "inline"))


def polished(formula: str) -> str:
    """MathML as browsers draw it well.

    A parenthesis of a set size that carries an exponent would sink below the line; an escaped underscore would keep its
    backslash; and nothing would part ``log`` from the letter behind it.

    Args:
        formula: as it was converted from LaTeX.
    """
    ElementTree.register_namespace("", _MATHML)
    tree = ElementTree.fromstring(formula)
    for part in tree.iter():
        kind = _kind(part)
        if kind == "mo" and part.get("maxsize") == "1.2em":
            part.attrib = {"stretchy": "false"}
        if kind in ("mtext", "mi") and part.text:
            part.text = part.text.replace("\\_", "_")
        if kind in ("mrow", "math", "mtd"):
            for one, following in reversed(list(pairwise(part))):
                if any(_named(a) and _kind(b) in _ARGUMENTS for a, b in ((one, following), (following, one))):
                    part.insert(list(part).index(following), ElementTree.Element(f"{{{_MATHML}}}mspace", width="0.167em"))
    return ElementTree.tostring(tree, encoding="unicode", short_empty_elements=False)


def _kind(part: ElementTree.Element) -> str:
    return part.tag.removeprefix(f"{{{_MATHML}}}")


def _named(part: ElementTree.Element) -> bool:
    """Whether it is a function with a name of several letters, perhaps with an index."""
    return _kind(part) != "mtext" and bool(_NAMED.fullmatch((part[0] if len(part) else part).text or ""))
