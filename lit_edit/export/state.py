"""Which weights of a run are exported, and proof that they are those that the run had."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_edit.errors import EditError
from lit_edit.journal import files
from lit_edit.journal.book import Book, open_book
from lit_edit.journal.model import Unedited
from lit_edit.report.run import Run
from lit_edit.runs.checkpoint_folder import newest
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO, header, prove

_MASTER = re.compile(r"masters\.layer_(\d{1,6})")


@dataclass(frozen=True)
class State:
    """A run behind one of its batches.

    Args:
        run: the run folder, read and checked.
        book: its journal, chained and in form.
        model: its unedited model; the hash of the edited layers is the one that the run started from.
        batches: batches that the weights stand behind.
        written: float32 masters by layer, ``[d_out, d_in]``; their hashes are those in the record of the last of these batches.
        guards: tensors of the guards' state by name, as the checkpoint has them; ``None`` where the journal was replayed.
        source: where the masters come from, in words.
        passed_over: one sentence about every newer checkpoint that cannot be used.
    """

    run: Run
    book: Book
    model: Unedited
    batches: int
    written: Mapping[int, Tensor]
    guards: Mapping[str, Tensor] | None
    source: str
    passed_over: tuple[str, ...] = ()

    @property
    def record(self) -> dict[str, Any]:
        """The record of the last batch."""
        return self.book.records[self.batches - 1]

    @property
    def head(self) -> str:
        """Head of the journal's chain: SHA-256 of that record, which stands for all records up to it."""
        return str(self.record["sha256"])

    @property
    def finished(self) -> bool:
        """Whether the stream of the run ended here."""
        return _finished(self.run, self.record["position"], self.batches, self.book)

    def counts(self) -> dict[str, int]:
        """Requests up to here by what became of them."""
        fates = [request["fate"] for record in self.book.records[: self.batches] for request in record["requests"]]
        return {fate: fates.count(fate) for fate in ("written", "rejected", "set aside")}


def open_state(run: str | Path, checkpoint: str | Path | None = None, batches: int | None = None) -> State:
    """The weights of a run that are to be exported.

    Args:
        run: the run folder.
        checkpoint: of this run; default: the newest one of which every byte is as it was written.
        batches: export the weights behind so many batches, from a checkpoint if one was written there and else by replaying the
            journal.

    Raises:
        EditError: if the run has not finished and neither option says what is wanted, if it or what was asked for is damaged or
            belongs to another run, or the model is not the one that it started from.
    """
    found, book = Run.open_all([run])[0], open_book(run)
    book.upto(batches or 0)
    if checkpoint is not None and batches is not None:
        raise EditError("--checkpoint and --batches both say which weights to export; give one of them")
    if not book.records or batches == 0:
        raise EditError(f"behind 0 batches of {found.path} stands the unedited model, of which there is nothing to export")
    passed_over: tuple[str, ...] = ()
    if checkpoint is not None:
        path: Path | None = Path(checkpoint)
    elif batches is not None:
        path = _behind(_checkpoints(found), batches)
    else:
        path, passed_over = _latest(found, book)
    model = Unedited.of(found.path, book.layers)
    book.check_original(model.original)
    if path is None:
        assert batches is not None
        return State(found, book, model, batches, book.weights(model.original, batches), None, "a replay of the journal")
    count, written, guards = _load(path, book)
    return State(found, book, model, count, written, guards, f"the checkpoint {path.name}", passed_over)


def _latest(run: Run, book: Book) -> tuple[Path, tuple[str, ...]]:
    """The checkpoint at the end of a finished run."""
    ask = "name the weights that are wanted with --batches N"
    found = newest(_checkpoints(run))
    if book.unfinished:
        raise EditError(f"{book.path} ends in the middle of record {len(book.records)}; {_resume(run)}, or {ask}")
    if found is None:
        raise EditError(f"the run {run.path} holds no checkpoint; {_resume(run)}, or {ask} to have the journal replayed")
    if found.batches < len(book.records) and found.passed_over:
        raise EditError(
            f"the run {run.path} is damaged: its newest checkpoint that is whole stands behind {found.batches} of "
            f"{len(book.records)} batches ({'; '.join(found.passed_over)}); {ask}"
        )
    if found.batches > len(book.records):
        raise EditError(
            f"the run {run.path} is damaged: {found.path.name} stands behind {found.batches} batches, and its journal holds "
            f"{len(book.records)}; {ask}"
        )
    if not _finished(run, header(found.path).get("position"), found.batches, book):
        raise EditError(
            f"the run {run.path} has not finished: its newest checkpoint stands behind {found.batches} batches; "
            f"{_resume(run)}, or {ask}"
        )
    return found.path, found.passed_over


def _finished(run: Run, position: Any, batches: int, book: Book) -> bool:
    """Whether nothing of the stream lies behind a position; a summary may be older than a run that was taken back."""
    return bool(run.summary["finished"] and position == run.summary["requests"] and batches == len(book.records))


def _resume(run: Run) -> str:
    return f"go on with it (--run_dir {run.path} --ckpt_path last)"


def _checkpoints(run: Run) -> Path:
    given = run.config.get("checkpoint")
    named = given.get("dirpath") if isinstance(given, dict) else None
    return run.path / "checkpoints" if named is None else Path(str(named))


def _behind(folder: Path, batches: int) -> Path | None:
    """A whole checkpoint behind exactly so many batches."""
    for path in sorted(folder.glob("[!.]*.ckpt")):
        try:
            if header(path).get("batches") == batches and prove(path):
                return path
        except EditError:
            continue
    return None


def _load(path: Path, book: Book) -> tuple[int, dict[int, Tensor], dict[str, Tensor]]:
    """Batches, masters and the guards' state of a checkpoint that belongs to the run."""
    state = SafetensorsCheckpointIO().load_checkpoint(path)
    said, tensors = state.get("lit_edit"), state.get("state_dict")
    if not isinstance(said, dict) or not isinstance(tensors, dict) or not isinstance(said.get("batches"), int):
        raise EditError(f"{path} is a checkpoint of something else than an editing run")
    masters = {int(found[1]): value for name, value in tensors.items() if (found := _MASTER.fullmatch(name))}
    count = said["batches"]
    if not 1 <= count <= len(book.records) or files.hashes(masters) != book.records[count - 1].get("weights"):
        raise EditError(
            f"{path} does not hold the weights that {book.path} names behind {count} batches; it is no checkpoint of that run"
        )
    return count, masters, {name.removeprefix("guards."): v for name, v in tensors.items() if name.startswith("guards.")}
