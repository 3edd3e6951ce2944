"""ZsRE's numbers as published tables have them, beside this project's own."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from lit_edit.metrics import RecordRate
from lit_edit.metrics.zsre import token_scores

_KINDS = {"efficacy": "rewrite", "paraphrase": "paraphrase", "neighbourhood": "neighbourhood"}


class PublishedZsRE(Callback):
    """Token accuracy as the released MEMIT and AlphaEdit code measures it, quirks included: before and after a run, in test.

    Logged as ``edit/<protocol>/<metric>/token_accuracy_published/teacher_forced``, where ``token_accuracy`` without the suffix
    is this project's own: one teacher-forced row per prompt and answer. The published way feeds one row per answer token; with
    Llama tokenizers it puts a second blank before later tokens and asks for a BOS in the neighbourhood's answer, which lowers
    that number (:func:`lit_edit.metrics.zsre.legacy_rows`). Use it to compare with published tables, and for nothing else.
    """

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Where all edits of a stream lie behind; before the first edit, on the same requests."""
        if pl_module.scores.protocol in ("before", "final"):
            self._measure(trainer, pl_module)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """All edits."""
        self._measure(trainer, pl_module)

    def _measure(self, trainer: L.Trainer, pl_module: Any) -> None:
        run: Any = trainer  # Lightning sets the data module where no type checker looks
        requests = run.datamodule.requests
        scores = pl_module.ranks.share(requests, lambda mine: token_scores(pl_module.scorer, mine, legacy=True))
        self.last = {}
        for metric, field in _KINDS.items():
            rate = RecordRate(sync_on_compute=False)
            rate.update([[float(right) for right in getattr(score, field)] for score in scores])
            if float(rate.records) > 0:
                name = f"edit/{pl_module.scores.protocol}/{metric}/token_accuracy_published/teacher_forced"
                self.last[name] = float(rate.compute())
        pl_module.log_dict(self.last)
