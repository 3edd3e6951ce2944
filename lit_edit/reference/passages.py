"""General text in short pieces."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from random import Random

from lit_edit.errors import EditError


class Passages:
    """Pieces of text files, drawn at random; every paragraph is as likely as it is long.

    Args:
        files: UTF-8 text.
        separator: what stands between two documents of a file.
        least: paragraphs of fewer characters (headings, lists) are left out.

    Raises:
        EditError: if a file cannot be read, or they hold no paragraph.
    """

    def __init__(self, files: Sequence[Path], separator: str = "<|doc|>", least: int = 60) -> None:
        self.paragraphs: list[str] = []
        for path in files:
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise EditError(f"{path} is not UTF-8 text (byte {error.start}); convert it or name other text") from None
            except OSError as error:
                raise EditError(f"the text {path} cannot be read: {error.strerror}") from None
            lines = text.replace(separator, "\n").split("\n")
            self.paragraphs += [line for part in lines if len(line := " ".join(part.split())) >= least]
        if not self.paragraphs:
            raise EditError(f"the text in {', '.join(map(str, files)) or 'no file'} holds no paragraph of {least} characters")
        self._ends = list(accumulate(len(paragraph) for paragraph in self.paragraphs))

    def passage(self, rng: Random, characters: int) -> str:
        """About ``characters`` of running text, from the beginning of a sentence where there is one nearby."""
        place = rng.randrange(self._ends[-1])
        number = bisect_right(self._ends, place)
        paragraph = self.paragraphs[number]
        start = place - (self._ends[number] - len(paragraph))
        stop = paragraph.find(". ", start)
        start = stop + 2 if 0 <= stop < len(paragraph) - characters // 2 else 0
        found = paragraph[start:]
        while len(found) < characters and number + 1 < len(self.paragraphs):
            number += 1
            found = f"{found} {self.paragraphs[number]}"
        return _whole_words(found, characters)

    def sentence(self, rng: Random, characters: int) -> str:
        """The beginning of a sentence, at most ``characters`` long, with a full stop behind it."""
        text = self.passage(rng, 4 * characters)
        stop = text.find(". ")
        return _whole_words(text if stop < 0 else text[:stop], characters).rstrip(" .,;:-") + "."

    def sample(self, seed: int, characters: int) -> Iterator[str]:
        """Paragraphs of ``characters`` altogether, drawn without replacement."""
        order = list(range(len(self.paragraphs)))
        Random(f"sample-{seed}").shuffle(order)
        left = characters
        for number in order:
            if left <= 0:
                return
            left -= len(self.paragraphs[number])
            yield self.paragraphs[number]


def _whole_words(text: str, characters: int) -> str:
    """At most ``characters`` of a text, no word cut."""
    return text if len(text) <= characters else (text[: characters + 1].rpartition(" ")[0] or text[:characters])
