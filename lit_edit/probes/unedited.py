"""Facts of an edit set that the stream leaves alone."""

from __future__ import annotations

from collections.abc import Sequence

from lit_edit.data.ingest import ingest
from lit_edit.data.source import rows
from lit_edit.errors import EditError
from lit_edit.probes.base import AnswerProbe


class UneditedFacts(AnswerProbe):
    """True facts that nobody edits: is the old answer (``target_true``) of other records still what the model says?

    The records have to be others than those of the stream, in a file of their own;
    :mod:`lit_edit.reference.stream` makes the two files of one edit set.

    Args:
        path: an edit set, see :func:`lit_edit.data.source.rows`; records without ``target_true`` are left out.
        items: at most this many, from the beginning; ``None`` asks all.
        name: name of the probe.
    """

    def __init__(self, path: str, items: int | None = 200, name: str = "unrelated_facts") -> None:
        if items is not None and items < 1:
            raise EditError(f"UneditedFacts was given items={items}; at least one fact has to be asked")
        super().__init__(name, ())
        self.path, self.limit = path, items

    def items(self) -> Sequence[tuple[str, str]]:
        """See :meth:`lit_edit.probes.base.Probe.items`.

        Raises:
            EditError: if the file cannot be read or no record of it has ``target_true``.
        """
        if not self._pairs:
            found = ingest(rows(self.path), self.path).requests
            asked = [(request.text, request.target_true) for request in found if request.target_true]
            if not asked:
                raise EditError(f"{self.path} has no record with target_true, so there is no fact to ask")
            self._pairs = tuple((prompt, str(answer)) for prompt, answer in asked[: self.limit])
        return self._pairs
