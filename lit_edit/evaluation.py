"""Lightning's validation, test and prediction loops over an edited model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning as L
from torch import nn
from torchmetrics import MeanMetric

from lit_edit.anatomy import Anatomy
from lit_edit.errors import MalformedRecord
from lit_edit.forward import greedy
from lit_edit.metrics import EditScores
from lit_edit.probes.base import Probe
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
        self.position = 0
        """Requests of the stream that lie behind: written, rejected or set aside."""
        self.scores = EditScores("before")
        self.probe_means: dict[str, MeanMetric] = {}
        self._view = ExitStack()

    @property
    def scorer(self) -> Scorer:
        """Scores text with the model as it is."""
        return Scorer(self.anatomy, self.encoder)

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

    def on_validation_epoch_start(self) -> None:
        """Forget earlier scores; before the first edit the protocol is ``before``, later ``so_far``."""
        self.scores = EditScores("so_far" if self.position else "before")
        self.probe_means = {probe.name: MeanMetric().to(self.device) for probe in self._probes()}

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loader 0 re-scores edits made so far; each further loader is one probe."""
        if dataloader_idx == 0:
            self.scores.update(self.scorer.requests(batch.requests))
            return
        probe = self._probes()[dataloader_idx - 1]
        values, weights = probe.measure(self.scorer, batch)
        self.probe_means[probe.name].update(values.to(self.device), weights.to(self.device))

    def on_validation_epoch_end(self) -> None:
        """Log rates of the edits so far and the probes."""
        found = {name: float(value) for name, value in self.scores.compute().items()}
        for probe in self._probes():
            mean = float(self.probe_means[probe.name].compute())
            found[f"probe/{probe.name}/{probe.scoring}"] = probe.summarise(mean)
        self.log_dict(found)

    def on_test_epoch_start(self) -> None:
        """As for validation."""
        self.on_validation_epoch_start()

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As for validation, over all edits of the stream."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """As for validation."""
        self.on_validation_epoch_end()

    def predict_step(self, batch: EditBatch, batch_idx: int) -> list[dict[str, Any]]:
        """What the model says now: greedy continuation of every edit prompt, as long as the longer of its two answers."""
        return [
            {
                "case_id": request.case_id,
                "prompt": request.text,
                "target_new": request.target_new,
                "said": self._answer(request),
            }
            for request in batch.requests
        ]

    def _answer(self, request: EditRequest) -> str | None:
        """The model's own words after the edit prompt, ``None`` where an answer of the request cannot be tokenised."""
        answers = [answer for answer in (request.target_new, request.target_true) if answer]
        try:
            ids, _ = self.encoder.encode(request.text)
            length = max(len(self.encoder.with_target(request.text, answer)[0]) - len(ids) for answer in answers)
        except MalformedRecord:
            return None
        new = greedy(self.anatomy, ids, max(length, 1), self._ends())
        return self.encoder.tokenizer.decode(new, skip_special_tokens=True).strip()

    def _ends(self) -> set[int]:
        """Tokens that end an answer: the tokenizer's own, and those of the generation settings (Llama-3 has several)."""
        said = getattr(getattr(self.net, "generation_config", None), "eos_token_id", None)
        ends = [*(said if isinstance(said, list) else [said]), self.encoder.tokenizer.eos_token_id]
        return {int(token) for token in ends if token is not None}
