"""What the documentation's generator does besides rendering pages: formulas without scripts, pages from the top level."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_TOP = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Files beside ``docs/`` that are pages as well, by the names of the pages."""

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">(?:\\\((?P<inline>.*?)\\\)|\\\[(?P<block>.*?)\\\])</(?P=tag)>', re.DOTALL
)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages whose text stands at the top level."""
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
    return convert(formula, display="block" if block else "inline")
