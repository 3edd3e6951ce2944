"""The one exception a user is meant to read."""

from __future__ import annotations

import re
import reprlib
import sys
from collections.abc import Callable
from typing import Any

_BREAK = re.compile(r"\s*[\r\n]\s*")
_LONGEST = 1200
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class EditError(Exception):
    """A mistake the user can repair, told in one sentence: what was found, where, and what would be right.

    The command line prints the sentence and leaves with exit code 2. Not a ``ValueError``: argument parsers swallow those
    while they try one type after another, and the sentence with them. It may quote what stands in a file, so it is made
    printable here, whatever that is, see :func:`one_line`, and loses its middle where it would fill the terminal.
    """

    def __init__(self, sentence: object = "") -> None:
        text = one_line(str(sentence))
        super().__init__(text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 3 :]}")


def exit_code(program: str, work: Callable[[], int | None]) -> int:
    """Do the work of a command; a mistake that the user can repair ends in its sentence and exit code 2, Ctrl-C in 130.

    Args:
        program: what the user typed, for the sentence.
        work: returns an exit code, ``None`` for 0.
    """
    try:
        return work() or 0
    except EditError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{program}: ended by Ctrl-C", file=sys.stderr)  # behind the bar or the ^C that stands in the line
        return 130


class OutOfMemory(EditError):
    """Memory does not suffice even for the smallest part of the work, so that the run cannot go on with these settings."""


class MalformedRecord(EditError):
    """One row of an edit set that cannot be used; the stream sets it aside and goes on.

    Args:
        field: name of the field that is wrong, as the user's file spells it.
        reason: what was found and what would be right.
    """

    def __init__(self, field: str, reason: str) -> None:
        self.field, self.reason = one_line(cut(field, 200)), one_line(reason)
        super().__init__(f"field '{self.field}': {self.reason}")


class Rejected(Exception):
    """A batch that must not be written; the message is the reason for the journal."""


def one_line(text: str) -> str:
    r"""The text on one line, with escapes for what a terminal would obey and what no UTF-8 file can hold.

    >>> one_line("in line 3,\n    column 1"), one_line("\x1b[31m, \ud800")
    ('in line 3, column 1', '\\x1b[31m, \\ud800')
    """
    return _UNSEEN.sub(lambda found: repr(found[0])[1:-1], _BREAK.sub(" ", text))


def cut(text: str, most: int) -> str:
    """The text, or its beginning where it is longer than ``most`` characters.

    >>> cut("abc", 3), cut("abcdefgh", 6)
    ('abc', 'abc...')
    """
    return text if len(text) <= most else text[: most - 3] + "..."


def first_line(error: BaseException) -> str:
    r"""The first line of what an error of a library says, its type's name where it says nothing.

    >>> first_line(ValueError("no room\nat all")), first_line(KeyError())
    ('no room', 'KeyError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def brief(value: Any, most: int = 60) -> str:
    """A value as messages quote it; of what is long or nested deep only the beginning is looked at.

    >>> brief("Ann"), brief([[[[[[["x"]]]]]]]), brief("a" * 99, 12)
    ("'Ann'", '[[[[...]]]]', "'aaaaaaaa...")
    """
    return cut(repr(value[: most + 1]) if isinstance(value, str) else _BRIEF.repr(value), most)


_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother = 4, 60, 60
