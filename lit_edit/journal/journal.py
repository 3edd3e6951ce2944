"""Writing the journal: one record a batch, on disk before the next batch begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_edit.batch.outcome import BatchOutcome
from lit_edit.delta import Delta
from lit_edit.errors import EditError
from lit_edit.journal import files
from lit_edit.journal.change import encode
from lit_edit.journal.records import START, Applied, check, content, parse, sealed
from lit_edit.store import append_durably, write_atomically


class Journal:
    """Append-only ``journal.jsonl`` of a run, and ``journal/`` beside it with what every batch did to the weights.

    Each record holds its own hash and that of the record before. The file of a batch's factors is on disk before the record
    that names it: a crash in between leaves a file without a record, which the resumed run removes. A run that resumes from a
    checkpoint cuts the journal back to the records that the checkpoint knows, so that no batch stands in it twice.

    Args:
        path: the file; an existing one is continued.
        factors: whether to keep what changes the weights.

    Raises:
        EditError: if the file cannot be read, is damaged, or is of another version.
    """

    def __init__(self, path: str | Path, factors: bool = True) -> None:
        self.path, self.factors = Path(path), factors
        text = self._text()
        records, lines = parse(text, str(self.path))
        self._head = check(records, lines, str(self.path))
        self.count = len(records)
        if text and not text.endswith("\n"):
            self._cut(self.count)  # or the next record would stand on a line with the unfinished one

    def _text(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise EditError(f"the journal {self.path} cannot be read: {getattr(error, 'strerror', error)}") from error

    def records(self) -> list[dict[str, Any]]:
        """All records so far; an unfinished last line (a crash while writing) is left out."""
        return parse(self._text(), str(self.path))[0]

    def truncate(self, count: int, weights: Callable[[], Mapping[int, Tensor]] | None = None) -> None:
        """Keep the first ``count`` records, and the files that belong to them.

        Args:
            count: records to keep.
            weights: the masters behind the last of them. If a compaction has folded more batches than are kept, what it
                folded is written anew from them; without them, the journal can be replayed no more.

        Raises:
            EditError: if the journal is shorter, so that it cannot belong to the checkpoint.
        """
        if self.count < count:
            raise EditError(
                f"the journal {self.path} holds {self.count} batches, but the checkpoint was written after {count}; "
                "resume in the run folder that the checkpoint belongs to"
            )
        folded = files.base(self.path.parent)
        if folded is not None and folded[0] > count and weights is not None and count:
            files.write_base(self.path.parent, count, weights())
        if count < self.count:
            self._cut(count)
        bases = [path for path in (self.path.parent / "journal").glob(f"base-{count:06d}-*.safetensors")]
        if folded is not None and folded[0] <= count:
            bases.append(folded[1])
        files.clean(self.path.parent, [*map(files.batch_name, range(count)), *(f"journal/{path.name}" for path in bases)])

    def _cut(self, count: int) -> None:
        records, lines = parse(self._text(), str(self.path))
        write_atomically(self.path, "".join(f"{line}\n" for line in lines[:count]).encode())
        self.count, self._head = count, records[count - 1]["sha256"] if count else START

    def append(self, outcome: BatchOutcome, position: int, edits: int, applied: Applied | None = None) -> None:
        """Write what the batch did to the weights, then its record, each flushed to disk.

        Args:
            outcome: what became of the batch.
            position: requests behind it.
            edits: requests written behind it.
            applied: what the step did; without it the record says nothing of weights.

        Raises:
            EditError: if a file cannot be written.
        """
        record = content(outcome, self.count, position, edits, applied)
        record["factors"] = None
        if applied is not None:
            record |= {"original": applied.original, "weights": files.hashes(applied.after)}
            if self.factors:
                record["factors"] = self._keep(applied, outcome.deltas)
        line, head = sealed(record, self._head)
        append_durably(self.path, line.encode())
        self.count, self._head = self.count + 1, head

    def _keep(self, applied: Applied, thin: Mapping[int, Delta]) -> dict[str, Any] | None:
        layers = {layer: encode(applied.before[layer], after, thin.get(layer)) for layer, after in applied.after.items()}
        changed = {layer: tensors for layer, tensors in layers.items() if tensors}
        return files.write(self.path.parent, files.batch_name(self.count), changed) if changed else None
