"""The one exception a user is meant to read."""

from __future__ import annotations


class EditError(Exception):
    """A mistake the user can repair, told in one sentence: what was found, where, and what would be right.

    The command line prints the sentence and leaves with exit code 2. Not a ``ValueError``: argument parsers swallow those
    while they try one type after another, and the sentence with them.
    """


class OutOfMemory(EditError):
    """Memory does not suffice even for the smallest part of the work, so that the run cannot go on with these settings."""


class MalformedRecord(EditError):
    """One row of an edit set that cannot be used; the stream sets it aside and goes on.

    Args:
        field: name of the field that is wrong, as the user's file spells it.
        reason: what was found and what would be right.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"field {field!r}: {reason}")
        self.field = field
        self.reason = reason


class Rejected(Exception):
    """A batch that must not be written; the message is the reason for the journal."""
