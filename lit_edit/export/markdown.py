"""Markdown whose texts may hold anything: escaped, so that a text stays a text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lit_edit.report.markup import clean

_SPECIAL = re.compile(
    r"[\\`*\[\]#|~$]"  # anywhere
    r"|_(?![A-Za-z0-9])|(?<![A-Za-z0-9])_"  # between letters it is none
    r"|:(?=//)|(?<=www)\."  # texts that readers make links of
    r"|^[+-](?=\s|$)|^=|^-(?=-)"  # lists, rules and underlines of headings
)


def escape(text: str) -> str:
    r"""A text on one line in which nothing is markup, neither Markdown's nor HTML's, also inside of a table.

    Example:
        >>> print(escape("a|b <i> [x](http://y)\n# no & so_far"))
        a\|b &lt;i&gt; \[x\](http\://y) \# no &amp; so_far
    """
    line = " ".join(clean(text).split())
    escaped = _SPECIAL.sub(r"\\\g<0>", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    return re.sub(r"^(\d{1,9})([.)])(?=\s|$)", r"\1\\\2", escaped)


def fenced(text: str, language: str = "") -> str:
    r"""A block of code, fenced by more backticks than the text has in a row.

    Example:
        >>> print(fenced("a ``` b", "text"))
        ````text
        a ``` b
        ````
    """
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{clean(text).strip()}\n{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""A table; every cell is escaped.

    Example:
        >>> print(table(["measure", "after"], [["a|b", "1.000"]]))
        | measure | after |
        | --- | --- |
        | a\|b | 1.000 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell if at == 1 else escape(cell) for cell in line)} |" for at, line in enumerate(lines))
