"""Lightning's validation, test and prediction loops over an edited model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lit_edit.anatomy import Anatomy
from lit_edit.batch.records import RecordScores
from lit_edit.errors import MalformedRecord
from lit_edit.metrics import EditScores, Interval, paired_change
from lit_edit.micro_batches import enough_memory
from lit_edit.parallel.ranks import Ranks
from lit_edit.passes.forward import greedy
from lit_edit.passes.generation import end_tokens
from lit_edit.probes.base import Probe, no_outcomes
from lit_edit.prompts import Encoder
from lit_edit.request import EditBatch, EditRequest
from lit_edit.scoring import Scorer


class Evaluated(L.LightningModule):
    """The half of the continual editor that looks and never changes anything.

    Validation loader 0 holds edits, each further loader one probe of the data module. Everything that is logged says protocol,
    metric, scoring and decoding in its name.
    """

    net: nn.Module | None
    anatomy: Anatomy
    encoder: Encoder

    def __init__(self) -> None:
        super().__init__()
        self.ranks = Ranks()
        """Who shares the work of the run."""
        self.position = 0
        """Requests of the stream that lie behind: written, rejected or set aside."""
        self.scores = EditScores("before")
        self.probe_rows: dict[str, list[Tensor]] = {}
        self.probe_start: dict[str, Tensor] = {}
        """Rows of every probe's items on the unedited model, where it was scored."""
        self._view = ExitStack()
        self._scorer: Scorer | None = None

    @property
    def scorer(self) -> Scorer:
        """Scores text with the model as it is; kept, for what it remembers of the model."""
        kept = self._scorer
        if kept is None or kept.anatomy is not self.anatomy or kept.encoder is not self.encoder:
            kept = self._scorer = Scorer(self.anatomy, self.encoder)
        return kept

    def _probes(self) -> list[Probe]:
        return list(getattr(getattr(self.trainer, "datamodule", None), "probes", None) or [])

    @contextmanager
    def evaluated_model(self) -> Iterator[None]:
        """The model as it is to be evaluated, inside the block."""
        yield

    def on_validation_start(self) -> None:
        """Show the model as it is to be evaluated."""
        self._view = ExitStack()
        self._view.enter_context(self.evaluated_model())

    def on_validation_end(self) -> None:
        """Show the model as it was."""
        self._view.close()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """The unedited model inside the block, and what was shown before after it."""
        yield

    def on_validation_epoch_start(self) -> None:
        """Forget earlier scores."""
        self._begin(self._protocol())

    def _protocol(self) -> str:
        """``before`` the first edit, ``final`` where all edits of a finished stream are scored, ``so_far`` in between."""
        if not self.position:
            return "before"
        stream = getattr(self.trainer, "datamodule", None)
        requests, review = len(getattr(stream, "requests", ())), getattr(stream, "review", 0)
        scored_all = review is None or review >= requests
        return "final" if requests and self.position >= requests and scored_all else "so_far"

    def _begin(self, protocol: str) -> None:
        self.scores = EditScores(protocol)
        self.probe_rows = {probe.name: [] for probe in self._probes()}

    @enough_memory("the evaluation", "smaller --data.scored_at_once and --data.probe_batch_size help")
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loader 0 re-scores edits; each further loader is one probe."""
        if dataloader_idx == 0:
            self.scores.update(self.score(batch.requests))
            return
        probe = self._probes()[dataloader_idx - 1]
        self.probe_rows[probe.name].append(self._measure(probe, batch))

    def score(self, requests: Sequence[EditRequest]) -> list[RecordScores]:
        """Score edits on the model as it is, see :meth:`lit_edit.scoring.Scorer.requests`; ranks score a share each."""
        return self.ranks.share(requests, lambda mine: self.scorer.requests(mine, self.unedited))

    def generate(self, prompts: Sequence[str], tokens: int, until: Sequence[str] = ()) -> list[str]:
        """Greedy continuations, see :func:`lit_edit.passes.generation.generate`; ranks continue a share of the prompts each."""
        return self.ranks.share(prompts, lambda mine: self.scorer.generate(mine, tokens, until))

    def _measure(self, probe: Probe, items: Sequence[Any]) -> Tensor:
        """Rows of some items, ``[n, columns]``; ranks measure a share of the items each."""
        if self.ranks.workers == 1:
            return probe.measure(self.scorer, items)
        if probe.one_row_per_item:
            return torch.stack(self.ranks.share(items, lambda mine: list(probe.measure(self.scorer, mine))))
        return torch.cat(self.ranks.share(items, lambda mine: [probe.measure(self.scorer, [item]) for item in mine]))

    def on_validation_epoch_end(self) -> None:
        """Log rates of the edits and the probes; remember the rows of the unedited model."""
        found = {name: float(value) for name, value in self.scores.compute().items()}
        for probe in self._probes():
            rows = self.rows_of(probe)
            if self.scores.protocol == "before":
                self.probe_start[probe.name] = rows
            for scoring, value in probe.summarise(rows).items():
                found[f"probe/{probe.name}/{scoring}"] = value
        self.log_dict(found)

    def rows_of(self, probe: Probe) -> Tensor:
        """What the latest validation kept of a probe's items, ``[n, columns]``."""
        rows = self.probe_rows.get(probe.name)
        return torch.cat(rows) if rows else no_outcomes(probe)

    def probe_changes(self) -> dict[str, Interval]:
        """95 % intervals of the change of every probe number since the unedited model, paired over items."""
        found = {}
        for probe in self._probes():
            before, after = self.probe_start.get(probe.name), self.rows_of(probe)
            if before is None or before.shape != after.shape:
                continue  # a run that never saw the unedited model, or probes that were exchanged on a resume
            for scoring, interval in paired_change(before, after, probe.summarise).items():
                found[f"probe/{probe.name}/{scoring}"] = interval
        return found

    def on_test_epoch_start(self) -> None:
        """All edits of the stream, on the weights as they are."""
        self._begin("final" if self.position else "before")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As for validation, over all edits of the stream."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """As for validation."""
        self.on_validation_epoch_end()

    def predict_step(self, batch: EditBatch, batch_idx: int) -> list[dict[str, Any]]:
        """What the model says now: greedy continuation of every edit prompt, as long as the longer of its two answers."""
        said = self.ranks.share(batch.requests, lambda mine: [self._answer(request) for request in mine])
        return [
            {"case_id": request.case_id, "prompt": request.text, "target_new": request.target_new, "said": answer}
            for request, answer in zip(batch.requests, said, strict=True)
        ]

    def _answer(self, request: EditRequest) -> str | None:
        """The model's own words after the edit prompt, ``None`` where an answer of the request cannot be tokenised."""
        answers = [answer for answer in (request.target_new, request.target_true) if answer]
        try:
            ids, _ = self.encoder.encode(request.text)
            length = max(len(self.encoder.with_target(request.text, answer)[0]) - len(ids) for answer in answers)
        except MalformedRecord:
            return None
        new = greedy(self.anatomy, ids, max(length, 1), end_tokens(self.anatomy, self.encoder))
        text: str = self.encoder.tokenizer.decode(new, skip_special_tokens=True)
        return text.strip()
