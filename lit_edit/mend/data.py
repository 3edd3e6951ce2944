"""What a hyper-network is trained on: edits, each with the prompts that its answer must reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from lit_edit.data.loader import ItemLoader
from lit_edit.data.reader import Reader
from lit_edit.data.source import FactSource
from lit_edit.data.stream import EditStream
from lit_edit.errors import EditError, MalformedRecord
from lit_edit.prompts import Encoder, Row
from lit_edit.request import EditRequest


@dataclass(frozen=True)
class EditPair:
    """One edit as token rows."""

    inner: Row
    """The edit prompt with its answer: what the model is edited with."""
    paraphrases: tuple[Row, ...]
    """Other prompts with the same answer."""


@dataclass(frozen=True)
class PairBatch:
    """Edits that are applied together, and what is asked afterwards."""

    index: int
    """Which batch of the training this is; what else is drawn for it follows from here."""
    pairs: tuple[EditPair, ...]
    outer: tuple[Row, ...]
    """One prompt with its answer for each edit."""


@dataclass(eq=False)
class PairLoader:
    """Training batches, resumable by position: batch ``i`` follows from the seed and ``i`` alone.

    Args:
        pairs: edits to draw from; every pass over them has an order of its own.
        batches: how many batches.
        size: edits to a batch.
        paraphrased: share of the edits that are asked for at a paraphrase instead of the edit prompt.
        seed: of order and prompts.
        processed: tells how many batches have been applied.
    """

    pairs: Sequence[EditPair] = field(repr=False)
    batches: int
    size: int
    paraphrased: float
    seed: int
    processed: Callable[[], int] = field(repr=False, default=lambda: 0)
    _start: int = field(default=0, init=False)

    def __len__(self) -> int:
        """Batches of the whole training."""
        return self.batches

    def __iter__(self) -> Iterator[PairBatch]:
        """The batches that are left."""
        start, self._start = self._start, 0
        for index in range(start, self.batches):
            yield self.batch(index)

    def batch(self, index: int) -> PairBatch:
        """Batch ``index``."""
        rng = Random(f"mend-{self.seed}-{index}")
        chosen = tuple(self.pairs[self._place(index * self.size + i)] for i in range(self.size))
        outer = tuple(
            rng.choice(pair.paraphrases) if pair.paraphrases and rng.random() < self.paraphrased else pair.inner
            for pair in chosen
        )
        return PairBatch(index, chosen, outer)

    def _place(self, draw: int) -> int:
        """Which edit is the ``draw``-th: pass after pass, each shuffled."""
        passes, at = divmod(draw, len(self.pairs))
        order = list(range(len(self.pairs)))
        Random(f"mend-{self.seed}-pass-{passes}").shuffle(order)
        return order[at]

    def state_dict(self) -> dict[str, Any]:
        """Position."""
        return {"position": self.processed()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self._start = int(state["position"])


class PairData(LightningDataModule):
    """Edits for training a hyper-network, apart from those that are to be edited later.

    Edits come from a file or a source as in :class:`lit_edit.data.EditStream`. They are drawn in an order of their own; some
    subjects are kept for validation.

    Args:
        path: an edit set: file, folder or hub id.
        source: facts that are made rather than read; give either this or ``path``.
        reader: the schema of the edit set; by default it is recognised by its fields.
        limit: at most this many edits.
        strict: stop at the first bad row instead of setting it aside.
        apart_from: facts that the network will be used on: edits that share a subject with them are left out.
        apart_from_path: the same as an edit set.
        validation: edits for validation.
        batches: length of the only epoch, in batches.
        edits: edits applied together in one update (published: 1).
        paraphrased: share of the edits whose loss is asked for at a paraphrase (published for zsRE: 1); the others, and
            those without paraphrases, at the edit prompt.
        seed: of the order, the validation edits and the paraphrases.

    Raises:
        EditError: if an argument is out of range, or ``path`` and ``source`` are both given or both missing.
    """

    def __init__(
        self,
        path: str | None = None,
        source: FactSource | None = None,
        reader: Reader | None = None,
        limit: int | None = None,
        strict: bool = False,
        apart_from: FactSource | None = None,
        apart_from_path: str | None = None,
        validation: int = 100,
        batches: int = 2000,
        edits: int = 1,
        paraphrased: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("validation", validation), ("batches", batches), ("edits", edits)):
            if value < 1:
                raise EditError(f"--data.{name} is {value}; it is a number of items, at least 1")
        if not 0 <= paraphrased <= 1:
            raise EditError(f"--data.paraphrased is {paraphrased:g}; it is a share, from 0 to 1")
        self.stream = EditStream(path, source, reader, limit, strict=strict)
        self.apart = [EditStream(where, what) for where, what in ((apart_from_path, None), (None, apart_from)) if where or what]
        self.validation, self.batches, self.edits, self.paraphrased = validation, batches, edits, paraphrased
        self.seed = seed
        self.training_pairs: tuple[EditPair, ...] = ()
        self.validation_pairs: tuple[EditPair, ...] = ()

    def setup(self, stage: str | None = None) -> None:
        """Read the edits, once.

        Raises:
            EditError: if they cannot be read.
        """
        for stream in (self.stream, *self.apart):
            stream.setup()

    def encode(self, encoder: Encoder) -> None:
        """Turn the edits into token rows and split them.

        Raises:
            EditError: if no edit is left for training.
        """
        taken = {_topic(request) for stream in self.apart for request in stream.requests}
        requests = [request for request in self.stream.requests if _topic(request) not in taken]
        Random(self.seed).shuffle(requests)
        pairs = [(request, pair) for request in requests if (pair := _pair(encoder, request)) is not None]
        kept = pairs[: self.validation]
        topics = {_topic(request) for request, _ in kept}
        self.validation_pairs = tuple(pair for _, pair in kept)
        self.training_pairs = tuple(pair for request, pair in pairs[self.validation :] if _topic(request) not in topics)
        if not self.training_pairs:
            raise EditError(
                f"no edit is left for training: of {len(self.stream.requests)} edits {len(pairs)} can be used, and "
                f"--data.validation keeps {self.validation}; give more edits or keep fewer"
            )

    def train_dataloader(self) -> PairLoader:
        """The training batches."""
        return PairLoader(self.training_pairs, self.batches, self.edits, self.paraphrased, self.seed, self._processed)

    def val_dataloader(self) -> ItemLoader:
        """The validation edits, each in a batch of its own."""
        return ItemLoader(self.validation_pairs, 1)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave the batch alone: rows of token ids go to the device where they are padded."""
        return batch

    def _processed(self) -> int:
        """Batches that Lightning has applied."""
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current  # annotated as the base class of what it is
        processed: int = progress.processed
        return processed


def _topic(request: EditRequest) -> str:
    """What two edits share that must not be told apart: the subject, or the prompt where there is none."""
    return request.subject or request.text


def _pair(encoder: Encoder, request: EditRequest) -> EditPair | None:
    """An edit as rows, ``None`` if it cannot be tokenised; paraphrases that cannot are left out."""
    try:
        inner = answer_row(encoder, request.text, request.target_new)
    except MalformedRecord:
        return None
    paraphrases = []
    for prompt in request.paraphrases:
        try:
            paraphrases.append(answer_row(encoder, prompt, request.target_new))
        except MalformedRecord:
            continue
    return EditPair(inner, tuple(paraphrases))


def answer_row(encoder: Encoder, prompt: str, answer: str) -> Row:
    """A prompt with its answer as one row."""
    return encoder.answer_rows(EditRequest(prompt=prompt, subject="", target_new=answer)).rewriting[0]
