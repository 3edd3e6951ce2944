"""Looking at the edited model every few batches, with a memory that an interruption leaves whole."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback

from lit_edit.batch.outcome import BatchOutcome
from lit_edit.errors import EditError
from lit_edit.request import EditRequest


def written(outcome: BatchOutcome) -> list[int]:
    """Stream positions of the requests that a batch wrote; none of a batch that was rejected.

    Example:
        >>> from lit_edit.request import EditBatch
        >>> one, two = EditRequest("{} is in", "Rome", "Italy"), EditRequest("{} is in", "Paris", "France")
        >>> written(BatchOutcome(EditBatch((one, two), start=6), edited=(two,)))
        [7]
    """
    edited = {id(request) for request in outcome.edited}
    start = outcome.batch.start
    return [start + index for index, request in enumerate(outcome.batch.requests) if id(request) in edited]


class StreamWatcher(Callback):
    """What retention scores and generations share: told what every batch wrote, it looks at the model now and then.

    It looks after every ``every_n_batches`` batches of the stream and at the stream's end, on the weights right after that
    batch. An error or Ctrl-C between a batch and the look that was due leaves the look owed: a resumed run makes up for it
    before the next batch, on the same weights.

    Args:
        every_n_batches: batches between two looks; 0 turns it off.

    Raises:
        EditError: if it is negative; before the first batch, if the trainer has no stream of edits.
    """

    def __init__(self, every_n_batches: int) -> None:
        if every_n_batches < 0:
            raise EditError(f"{type(self).__name__}'s every_n_batches is {every_n_batches}; it must be 0 (off) or more")
        self.every_n_batches = every_n_batches
        self.last: dict[str, float] = {}
        """The latest numbers by full name."""
        self._module: Any = None
        self._seen = 0
        self._looked = 0
        self._begun = False

    # ------------------------------------------------------------------------------------------------ for subclasses

    def forget(self) -> None:
        """Begin a stream of one's own."""

    def begin(self, trainer: L.Trainer) -> None:
        """Nothing can refuse the run any more: put files in order, say."""

    def record(self, batch: int, positions: Sequence[int]) -> None:
        """A batch (its number, from 1) wrote the requests at these positions of the stream."""
        raise NotImplementedError

    def look(self, trainer: L.Trainer, pl_module: Any, requests: Sequence[EditRequest]) -> dict[str, float]:
        """Look at the model as :meth:`shown`; return what is to be logged."""
        raise NotImplementedError

    def shown(self, pl_module: Any) -> AbstractContextManager[Any]:
        """What the model shows while :meth:`look` is at work: by default what is evaluated."""
        return cast("AbstractContextManager[Any]", pl_module.evaluated_model())

    def memory(self) -> dict[str, Any]:
        """Everything that :meth:`remember` needs, as plain data."""
        raise NotImplementedError

    def remember(self, memory: dict[str, Any]) -> None:
        """Take up :meth:`memory`."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------ hooks

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Every fit is a stream of its own; a resumed one takes up its memory right after this."""
        if stage != "fit":
            return
        run: Any = trainer  # Lightning sets the data module where no type checker looks
        if self.every_n_batches and not hasattr(run.datamodule, "requests"):
            raise EditError(
                f"{type(self).__name__} needs the stream of edits; give the trainer an EditStream as its datamodule"
            )
        self._module, self._begun, self.last = pl_module, False, {}
        self._seen = self._looked = pl_module.batches
        self.forget()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin, and make up for a look that an interruption left owed."""
        self._begin(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record what the batch wrote, and look if it is time."""
        self._catch_up()
        pl_module.batch_was_counted()  # a waiting Ctrl-C need not wait for the look, which is owed then
        if self._due(trainer, pl_module, trainer.is_last_batch):
            self._look(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """A resumed run that has no batch left may still owe a look."""
        self._begin(trainer, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Let go of the module."""
        self._module = None

    def _begin(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self._begun or not self.every_n_batches:
            return
        self._begun = True
        self.begin(trainer)
        if self._seen == pl_module.batches and self._due(trainer, pl_module):
            self._look(trainer, pl_module)
        self._seen = pl_module.batches  # batches before this callback was added to the run are not known

    def _catch_up(self) -> None:
        """Record the batch that the module has committed last, once."""
        module = self._module
        if module is not None and module.outcome is not None and module.batches == self._seen + 1:
            self._seen = module.batches
            self.record(module.batches, written(module.outcome))

    def _due(self, trainer: L.Trainer, pl_module: Any, over: bool = False) -> bool:
        if not self.every_n_batches or not pl_module.batches or self._looked == pl_module.batches:
            return False
        run: Any = trainer
        over = over or pl_module.position >= len(run.datamodule.requests)
        return bool(over or pl_module.batches % self.every_n_batches == 0)

    def _look(self, trainer: L.Trainer, pl_module: Any) -> None:
        run: Any = trainer
        with self.shown(pl_module):
            found = self.look(trainer, pl_module, run.datamodule.requests)
        self.last, self._looked = found, pl_module.batches
        for logger in trainer.loggers if found else ():
            # Not the module's log(): a value of this step must not be repeated on later ones.
            logger.log_metrics(found, step=trainer.global_step - 1)

    def state_dict(self) -> dict[str, Any]:
        """The memory; it knows the batch just made even if something failed before this callback was told of it."""
        self._catch_up()
        return {"seen": self._seen, "looked": self._looked, "last": dict(self.last), "memory": self.memory()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the memory."""
        self._seen, self._looked = int(state_dict["seen"]), int(state_dict["looked"])
        self.last = dict(state_dict["last"])
        self.remember(state_dict["memory"])
