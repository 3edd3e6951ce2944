"""A text with what training needs to know about it, and a writer that keeps the offsets."""

from __future__ import annotations

from dataclasses import dataclass

CONTEXT_WEIGHT = 0.1
"""Loss weight of tokens that are neither a value nor an answer: they teach fluency, but are mostly unpredictable."""


@dataclass(frozen=True)
class Document:
    """One text with what training needs to know about it; all spans are ``(start, end)`` in characters."""

    text: str
    names: tuple[tuple[int, int, int], ...] = ()
    """Mentions of subjects: start, end, index of the subject."""
    answers: tuple[tuple[int, int], ...] = ()
    """Words that are worth learning: values of facts, answers of skills."""
    weight: float = 1.0
    """Weight of the answers in the loss."""
    context: float = CONTEXT_WEIGHT
    """Weight of the other tokens."""


class Writer:
    """Collects text and spans; keeps the bookkeeping of offsets in one place."""

    def __init__(self) -> None:
        self.text = ""
        self.names: list[tuple[int, int, int]] = []
        self.answers: list[tuple[int, int]] = []

    def plain(self, text: str) -> None:
        """Text that is nothing in particular."""
        self.text += text

    def name(self, text: str, index: int) -> None:
        """A mention of subject ``index``."""
        self.names.append((len(self.text), len(self.text) + len(text), index))
        self.text += text

    def answer(self, text: str) -> None:
        """What is to be learned."""
        self.answers.append((len(self.text), len(self.text) + len(text)))
        self.text += text

    def done(self, weight: float = 1.0, context: float = CONTEXT_WEIGHT) -> Document:
        """The finished document."""
        return Document(self.text, tuple(self.names), tuple(self.answers), weight, context)
