"""Furnishes TensorBoard: where the stream stands, charts, hyper-parameters with final scores, and what the run is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from lit_edit.board import hparams
from lit_edit.board.layout import layout
from lit_edit.board.logger import EditBoard
from lit_edit.board.tags import glossary, shown
from lit_edit.runs.run_settings import short

_METRICS = ("efficacy", "paraphrase", "neighbourhood")


class BoardKeeper(Callback):
    """Tells every :class:`~lit_edit.board.EditBoard` of a trainer what it cannot know, and changes nothing else.

    Args:
        final: whether all edits are scored at the end; else the HParams tab shows the latest sample of them.
    """

    def __init__(self, final: bool = True) -> None:
        self.final = final

    @staticmethod
    def boards(trainer: L.Trainer) -> list[EditBoard]:
        """The loggers that are looked after."""
        return [logger for logger in trainer.loggers if isinstance(logger, EditBoard)]

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Steps are requests from here on."""
        for board in self.boards(trainer):
            board.position = lambda: int(pl_module.position)

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Charts, the columns of the HParams tab and a few words about the run."""
        run: Any = trainer  # Lightning sets the data module where no type checker looks
        stream = getattr(run, "datamodule", None)
        if stream is None:
            return
        probes = {probe.name: shown(f"probe/{probe.name}/{probe.shown}") for probe in stream.probes}
        values = hparams.settings(pl_module, stream)
        rows = "\n".join(f"| {name.replace('_', ' ')} | {short(value)} |" for name, value in values.items())
        for board in self.boards(trainer):
            board.arrange(layout(probes))
            board.log_session(*hparams.experiment(self._metrics(probes)))
            board.log_session(*hparams.start(values))
            board.tell("about", f"| setting | value |\n|---|---|\n{rows}", 0)
            board.tell("names", glossary(), 0)

    def _metrics(self, probes: Mapping[str, str]) -> list[tuple[str, str]]:
        """Tags of the scores in the HParams tab, and their titles."""
        protocol, told = ("final", "final") if self.final else ("so_far", "so far")

        def edits(scoring: str) -> list[tuple[str, str]]:
            names = [(metric, f"edit/{protocol}/{metric}/{scoring}/teacher_forced") for metric in _METRICS]
            return [(shown(name), f"{metric}, {scoring} ({told})") for metric, name in names]

        worst = [("final/relative_norm", "relative norm"), ("final/triple_drift", "triple drift")]
        abilities = [(tag, name.replace("_", " ")) for name, tag in probes.items()]
        return [*edits("accuracy"), *worst, *abilities, *edits("success")]  # without being asked, TensorBoard shows five

    def end(self, trainer: L.Trainer, drift: Mapping[str, float]) -> None:
        """The run has come to its end.

        Args:
            trainer: of the run.
            drift: latest spectral numbers by full name; of the layers, the worst is shown.
        """
        worst: dict[str, float] = {}
        for measure in ("relative_norm", "triple_drift"):
            values = [value for name, value in drift.items() if name.startswith(f"drift/{measure}/")]
            if values:
                worst[f"final/{measure}"] = max(values)
        for board in self.boards(trainer):
            board.log_metrics(worst)
            board.log_session(*hparams.end())
            board.save()
