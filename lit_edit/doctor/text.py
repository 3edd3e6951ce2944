"""An examination as text for a terminal: no colours, nothing wider than it is told."""

from __future__ import annotations

import unicodedata

from lit_edit.doctor.finding import Examination, Finding, Verdict

WIDTH = 100
"""Columns of the table."""

_TITLES = {"subject": "subject (its last token in brackets)", "edit and undo": "one edit, and its undo"}

_NAME = 18  # columns of the names of checks


def table(examination: Examination, width: int = WIDTH) -> str:
    """One line per check under the name of its group, longer ones wrapped; what to do about it behind an arrow.

    Args:
        examination: what was found.
        width: most columns of a line (a word that is longer is not cut).
    """
    setting = ", ".join(examination.setting[key] for key in ("dtype", "device") if key in examination.setting)
    lines = [f"{examination.model}{f' ({setting})' if setting else ''}"]
    for group, findings in examination.groups():
        lines += ["", _TITLES.get(group, group)]
        for finding in findings:
            lines += _lines(finding, width)
    lines += ["", *wrapped(examination.summary(), width)]
    todo = examination.of(Verdict.CANNOT, Verdict.OFF)
    if todo:
        lines += [""]
    for finding in todo:
        # Named once more, for whoever sees the end of a long table only.
        lines += wrapped(f"{finding.verdict}: {finding.group}/{finding.name} -> {finding.advice}", width, "     ")
    return "\n".join(line.rstrip() for line in lines)


def _lines(finding: Finding, width: int) -> list[str]:
    indent = " " * (2 + 7 + _NAME + 2)
    first, *rest = wrapped(finding.found, width - len(indent)) or [""]
    lines = [f"  {finding.verdict:<6} {padded(finding.name, _NAME)}  {first}", *(indent + line for line in rest)]
    if finding.advice:
        first, *rest = wrapped(finding.advice, width - len(indent) - 3)
        lines += [f"{indent}-> {first}", *(f"{indent}   {line}" for line in rest)]
    return lines


def columns(text: str) -> int:
    """Columns that a terminal gives a text: two to a CJK character, none to a combining mark.

    >>> columns("Kyōto"), columns("東京")
    (5, 4)
    """
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)


def padded(text: str, width: int) -> str:
    """A text with blanks behind it up to some columns."""
    return text + " " * (width - columns(text))


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """A text in lines of at most ``width`` columns, broken at blanks.

    Args:
        text: the text; several blanks in a row count as one.
        width: columns.
        indent: in front of every line but the first.

    >>> wrapped("the tokenizer of 東京", 12)
    ['the', 'tokenizer of', '東京']
    """
    lines: list[str] = []
    line = ""
    for word in text.split():
        longer = f"{line} {word}" if line.strip() else line + word
        if line.strip() and columns(longer) > width:
            lines.append(line)
            longer = indent + word
        line = longer
    return [*lines, line] if line.strip() else lines
