"""How long edits last: cohorts of earlier edits, scored again along the stream."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_edit.board import place
from lit_edit.callbacks.cohorts import Check, Cohorts, mean
from lit_edit.callbacks.retention_figure import retention_figure
from lit_edit.callbacks.watcher import StreamWatcher
from lit_edit.errors import EditError
from lit_edit.figures import to_image
from lit_edit.journal import finite
from lit_edit.request import EditRequest
from lit_edit.store import write_atomically
from lit_edit.strategies import ranks_of

_ANSWER = ("accuracy", "token_accuracy")
_COMPARED = ("success", "difference")
SCORINGS = {
    "efficacy": (*_ANSWER, "probability", *_COMPARED),
    "paraphrase": (*_ANSWER, "probability", *_COMPARED),
    "neighbourhood": (*_ANSWER, *_COMPARED),
    "portability": _ANSWER,
    "locality": ("agreement",),
}
"""What can be followed; portability and locality also by kind (``portability_reasoning``)."""

_FIELDS = {
    "paraphrase": "paraphrases",
    "neighbourhood": "neighbourhood",
    "portability": "portability",
    "locality": "locality",
}


class RetentionScores(StreamWatcher):
    r"""Protocol ``retention``: edits of every age on the weights of now, so that forgetting shows while the stream runs.

    A cohort is what one batch wrote, or a group of 2, 4, 8, ... consecutive batches once there would be more than ``cohorts``
    of them; of each, at most ``per_cohort`` edits are followed, evenly spread and always the same ones. Requests that were set
    aside, refused or rejected with their batch belong to none. Every ``every_n_batches`` batches and at the end of the stream
    all cohorts so far are scored.

    With :math:`M_{tc}` the mean score of cohort c at checkpoint t and :math:`a_{tc}` its age then (batches since its last one),
    logged are, as ``edit/retention/<metric>/<scoring>/teacher_forced/...``:

    - ``first`` and ``latest``: the oldest and the newest cohort now; ``mean``: over all cohorts now,
    - ``auc``: area under the retention curve :math:`R(a) = \mathrm{mean}\{M_{tc} : a_{tc} = a\}` over all checkpoints so far,
      divided by its length, :math:`\frac{1}{|A|} \sum_{a \in A} R(a)` over the ages A that occurred. All ages weigh the same;
      in ``mean`` young cohorts and old ones do.

    The heat map of M (rows: checkpoints, columns: cohorts) goes to TensorBoard as ``retention/matrix``; M with everything else
    is kept in ``retention.json`` in the run folder. Source: following cohorts of edits comes from the literature on long
    streams (forgetting curves of "Model Editing at Scale leads to Gradual and Catastrophic Forgetting", arXiv 2401.07453); the
    definition of the area is ours, since none has been published.

    Args:
        every_n_batches: batches between two looks; 0 turns it off. Each costs about one forward pass over the edits followed.
        per_cohort: most edits of a cohort that are followed.
        cohorts: most cohorts.
        metric: which prompts: ``efficacy``, ``paraphrase``, ``neighbourhood``, ``portability`` or ``locality``, the last two
            also by kind, e.g. ``portability_reasoning``.
        scoring: see :meth:`lit_edit.batch.records.Tally.judge`.

    Raises:
        EditError: for a number out of range, or a metric or scoring that there is not.
    """

    def __init__(
        self,
        every_n_batches: int = 10,
        per_cohort: int = 20,
        cohorts: int = 50,
        metric: str = "efficacy",
        scoring: str = "accuracy",
    ) -> None:
        super().__init__(every_n_batches)
        for name, value in (("per_cohort", per_cohort), ("cohorts", cohorts)):
            if value < 1:
                raise EditError(f"RetentionScores's {name} is {value}; it must be at least 1")
        family = metric.split("_")[0]
        if family not in SCORINGS or (metric != family and family not in ("portability", "locality")):
            raise EditError(f"RetentionScores's metric is {metric!r}; there is {', '.join(SCORINGS)}")
        if scoring not in SCORINGS[family]:
            raise EditError(f"RetentionScores's scoring is {scoring!r}; {family} has {', '.join(SCORINGS[family])}")
        self.metric, self.scoring = metric, scoring
        self._limits = (cohorts, per_cohort)
        self.cohorts = Cohorts(*self._limits)

    @property
    def name(self) -> str:
        """Name of the followed number, ``<metric>/<scoring>/teacher_forced``."""
        return f"{self.metric}/{self.scoring}/teacher_forced"

    def forget(self) -> None:
        """No cohorts yet."""
        self.cohorts = Cohorts(*self._limits)

    def record(self, batch: int, positions: Sequence[int]) -> None:
        """One cohort more."""
        self.cohorts.add(batch, positions)

    def look(self, trainer: L.Trainer, pl_module: Any, requests: Sequence[EditRequest]) -> dict[str, float]:
        """Score every cohort."""
        positions = self.cohorts.positions()
        asked = [self._bare(requests[at]) for at in positions]
        records = pl_module.score(asked) if asked else []
        values = {at: mean(r.values[self.name]) for at, r in zip(positions, records, strict=True) if r.values.get(self.name)}
        if positions and not values and not self.cohorts.checks:
            rank_zero_info(
                f"RetentionScores: none of the edits so far has a prompt for {self.name}, so there is nothing to follow"
            )
        self.cohorts.checks = [check for check in self.cohorts.checks if check.batch != pl_module.batches]
        self.cohorts.checks.append(Check(pl_module.batches, pl_module.edits, values))
        self._write(trainer)
        return {f"edit/retention/{self.name}/{what}": value for what, value in self.cohorts.numbers().items()}

    def _bare(self, request: EditRequest) -> EditRequest:
        """The request without the prompts that are not looked at."""
        family = self.metric.split("_")[0]
        dropped: dict[str, Any] = {name: () for what, name in _FIELDS.items() if what != family}
        return dataclasses.replace(request, **dropped)

    def _write(self, trainer: L.Trainer) -> None:
        head = {"protocol": "retention", "metric": self.metric, "scoring": self.scoring, "decoding": "teacher_forced"}
        content = json.dumps(finite({**head, **self.cohorts.table()}), indent=1)
        path = Path(trainer.default_root_dir, "retention.json")
        ranks_of(trainer).first_does(lambda: write_atomically(path, content.encode()))
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not boards or not self.cohorts.groups():
            return  # nobody to draw for, or nothing was written yet
        what = f"{self.metric}, {self.scoring}".replace("_", " ")
        low = -1.0 if self.scoring == "difference" else 0.0
        picture = to_image(retention_figure(self.cohorts, f"Retention of cohorts: {what}", low))
        for logger in boards:
            tag, step = place(logger, "retention/matrix", trainer.global_step - 1)
            logger.experiment.add_image(tag, picture, step)

    def memory(self) -> dict[str, Any]:
        """Positions and scores; the requests themselves stay in the stream."""
        return self.cohorts.memory()

    def remember(self, memory: dict[str, Any]) -> None:
        """Take them up."""
        self.cohorts.remember(memory)
