"""The stream of edits as a ``LightningDataModule``."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from lit_edit.data.ingest import Ingested, ingest, sentence
from lit_edit.data.loader import ItemLoader, ReviewLoader, StreamLoader
from lit_edit.data.reader import Reader
from lit_edit.data.source import FactSource, rows, split_where
from lit_edit.errors import EditError, one_line
from lit_edit.request import EditRequest, SetAside
from lit_edit.strategies import ranks_of

if TYPE_CHECKING:
    import torch

    from lit_edit.probes.base import Probe


class EditStream(LightningDataModule):
    """Facts to edit, in stream order, one batch to an optimiser step.

    Training yields :class:`~lit_edit.request.EditBatch` and is resumable by position. Validation yields, first, the
    edits made so far, to be scored again, and then one loader for each probe; testing does the same over the whole
    stream; prediction yields all requests. Every rank sees every batch: a rank takes its share within the batch.

    All loaders are plain iterables without workers. The first validation loader has no length, since the number of
    edits grows; a fractional ``limit_val_batches`` is therefore refused by Lightning, a whole number works.
    """

    requests: tuple[EditRequest, ...]
    """The stream, after :meth:`setup`."""
    set_aside: tuple[SetAside, ...]
    """Rows that cannot be edited, after :meth:`setup`."""
    rows_read: int
    """Rows looked at, after :meth:`setup`: the usable ones and those set aside."""
    edited: Callable[[], int]
    """Tells how many edits of the stream have been made; the module that makes them sets it."""

    def __init__(
        self,
        path: str | None = None,
        source: FactSource | None = None,
        reader: Reader | None = None,
        limit: int | None = None,
        batch_size: int = 100,
        order: Literal["file", "shuffled"] = "file",
        seed: int = 0,
        strict: bool = False,
        probes: list[Probe] | None = None,
        review: int | None = 500,
        probe_batch_size: int = 64,
        scored_at_once: int = 512,
        neighbours: int | None = None,
    ) -> None:
        """Nothing is read before :meth:`setup`.

        Args:
            path: an edit set: file, folder or hub id; see :func:`lit_edit.data.source.rows`.
            source: facts that are made rather than read; give either this or ``path``.
            reader: the schema of the edit set; by default it is recognised by its fields.
            limit: at most this many edits. Rows that are set aside do not count; a row with several edits may be cut.
            batch_size: edits to a batch.
            order: ``file`` keeps the order of the edit set; ``shuffled`` draws one from ``seed``, and cuts at ``limit``
                afterwards, so that a smaller limit is the beginning of a larger one. The edits of one row stay together.
            seed: seed of the shuffled order.
            strict: stop at the first bad row instead of setting it aside.
            probes: general abilities to watch during validation.
            review: at most this many past edits are scored in a validation, evenly spread; ``None`` scores all of them.
            probe_batch_size: items of a probe to a batch in evaluation, on each rank.
            scored_at_once: edits to a batch in evaluation, on each rank; what their prompts share at the beginning is computed
                once.
            neighbours: at most this many of a record's neighbourhood prompts are asked, the first ones; ``None`` asks all. Of
                CounterFact's prompts they are ten of thirteen, and most of the time that scoring takes.

        Raises:
            EditError: if an argument is out of range, ``path`` and ``source`` are both given or both missing, or two probes
                have the same name.
        """
        super().__init__()
        if path is None and source is None:
            raise EditError("The stream was given neither path nor source; name an edit set, as in path=facts.jsonl.")
        if path is not None and source is not None:
            raise EditError(f"The stream was given the path {path} and the source {source!r}; set one of them to null.")
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("limit", limit, 1),
            ("review", review, 0),
            ("probe_batch_size", probe_batch_size, 1),
            ("scored_at_once", scored_at_once, 1),
            ("neighbours", neighbours, 0),
        ):
            if value is not None and value < least:
                raise EditError(f"{name} is {value}; it is a number of items, at least {least}.")
        if order not in ("file", "shuffled"):
            raise EditError(f"order is {order!r}; it is 'file' or 'shuffled'.")
        names = [probe.name for probe in probes or ()]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise EditError(f"probes has two named {twice[0]!r}; their numbers could not be told apart, so name one otherwise.")
        self.path = path
        self.source = source
        self.reader = reader
        self.limit = limit
        self.batch_size = batch_size
        self.order = order
        self.seed = seed
        self.strict = strict
        self.probes = list(probes or [])
        self.review = review
        self.probe_batch_size, self.scored_at_once = probe_batch_size, scored_at_once
        self.neighbours = neighbours
        self.edited = self._everything
        self._read = False

    def setup(self, stage: str | None = None) -> None:
        """Read the edit set, once.

        Raises:
            EditError: if it cannot be read or holds nothing usable; when ``strict``, if any row is bad.
        """
        if self._read:
            return
        # A random sample needs the whole set before it can be cut; the first rows of a file do not.
        ingested = self._ingest(self.limit if self.order == "file" else None)
        records = list(ingested.records)
        if self.order == "shuffled":
            random.Random(self.seed).shuffle(records)
        self.requests = tuple(chain.from_iterable(records))[: self.limit]
        if (most := self.neighbours) is not None:
            self.requests = tuple(replace(one, neighbourhood=one.neighbourhood[:most]) for one in self.requests)
        self.set_aside = ingested.set_aside
        self.rows_read = ingested.rows_read
        for probe in self.probes:
            probe.items()  # a file that cannot be read is better found now than after the unedited model was prepared
        self._read = True
        rank_zero_info(self.summary())

    def summary(self) -> str:
        """One sentence with the counts, after :meth:`setup`."""
        usable = self.rows_read - len(self.set_aside)
        name, bad = self.path or self.source, len(self.set_aside)
        counts = f"{self.rows_read} rows read, {usable} usable, {bad} set aside; {len(self.requests)} edits in the stream."
        first = f" The first row set aside: {sentence(self.set_aside[0])}" if self.set_aside else ""
        return one_line(f"{name}: {counts}{first}")

    @rank_zero_only
    def write_set_aside(self, folder: str | Path) -> Path | None:
        """Write ``set_aside.jsonl``: file, row, field, reason and the record as it was read.

        Args:
            folder: where to write; it is created if need be.

        Returns:
            The file, or ``None`` if no row was set aside.
        """
        if not self.set_aside:
            return None
        target = Path(folder) / "set_aside.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        half_written = target.with_name(f".{target.name}.{os.getpid()}")
        half_written.write_text("".join(_line(row) for row in self.set_aside), encoding="utf-8")
        half_written.replace(target)
        return target

    def train_dataloader(self) -> StreamLoader:
        """The edits, resumable by position."""
        return StreamLoader(self.requests, self.batch_size, self._processed)

    def val_dataloader(self) -> list[ReviewLoader | ItemLoader]:
        """A sample of the edits made so far, then each probe."""
        return [self._review(lambda: self.edited(), self.review), *self._probe_loaders()]

    def test_dataloader(self) -> list[ReviewLoader | ItemLoader]:
        """All edits of the stream, then each probe."""
        return [
            ReviewLoader(self.requests, self._workers() * self.scored_at_once, self._everything, None),
            *self._probe_loaders(),
        ]

    def predict_dataloader(self) -> ReviewLoader:
        """All edits of the stream."""
        return self._review(self._everything, None)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave the batch alone: requests and probe items are text, and the module tokenises them where it needs them.

        Without this, Lightning looks for tensors inside and refuses frozen dataclasses.
        """
        return batch

    def _ingest(self, limit: int | None) -> Ingested:
        if self.source is None:
            assert self.path is not None
            return ingest(rows(self.path), self.path, self.reader, limit, self.strict)
        requests = tuple(self.source.requests())[:limit]
        if not requests:
            raise EditError(f"{self.source!r} gave no facts; a stream needs at least one.")
        return Ingested(tuple((request,) for request in requests), ())

    def _review(self, edited: Callable[[], int], most: int | None) -> ReviewLoader:
        return ReviewLoader(self.requests, self._workers() * self.scored_at_once, edited, most)

    def _probe_loaders(self) -> list[ItemLoader]:
        return [ItemLoader(_items(probe), self._workers() * self.probe_batch_size) for probe in self.probes]

    def _workers(self) -> int:
        """Ranks among which a batch is dealt that is only looked at: each gets as much as one would alone."""
        return 1 if self.trainer is None else ranks_of(self.trainer).workers

    def _everything(self) -> int:
        return len(self.requests)

    def _processed(self) -> int:
        """Batches of the current epoch that Lightning has applied.

        The only counter that is right after an exception in a step, a signal and a checkpoint inside an epoch alike.
        """
        if self.trainer is None:
            return 0
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current  # annotated as the base class of what it is
        processed: int = progress.processed
        return processed


def _items(probe: Probe) -> list[Any]:
    items = list(probe.items())
    if not items:
        raise EditError(f"Probe {probe.name!r} has no items; remove it or check where it reads them.")
    return items


def _line(row: SetAside) -> str:
    """One line of ``set_aside.jsonl``."""
    file, number = split_where(row.source)
    # ASCII: a row may have been set aside just because its text cannot be written as UTF-8.
    record = {"file": file, "row": number, "field": row.field, "reason": row.reason, "record": row.row}
    return json.dumps(record, default=str) + "\n"
