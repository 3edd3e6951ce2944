"""The table at the end of a run, with the protocol of every number."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_edit import __version__
from lit_edit.board import place, write_text
from lit_edit.callbacks.board import BoardKeeper
from lit_edit.callbacks.drift import SpectralDrift
from lit_edit.callbacks.generations import Generations
from lit_edit.callbacks.immediate import ImmediateScores
from lit_edit.callbacks.retention import RetentionScores
from lit_edit.errors import EditError
from lit_edit.journal import finite
from lit_edit.options.documents import load_json
from lit_edit.report.environment import environment
from lit_edit.runs.run_folder import FORMAT
from lit_edit.runs.run_settings import method_of
from lit_edit.store import write_atomically


class Report(Callback):
    """Collects what the validations measured; :meth:`table` and ``summary.json`` compare the start with the end.

    What ``validate`` and ``test`` of a trainer find is printed as the same table, once; Lightning's own has all numbers again
    for every loader, and the edits and each probe have one. ``verbose=False`` leaves both out.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.rows: list[dict[str, Any]] = []
        self._tells = False

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Take the place of Lightning's tables."""
        self._tells = False
        loop = {"validate": trainer.validate_loop, "test": trainer.test_loop}.get(stage)
        if loop is not None:
            self._tells, loop.verbose = loop.verbose, False

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Keep the numbers of this validation."""
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        starts = ("edit/before/", "edit/so_far/", "edit/final/", "probe/")
        kept = {name: value for name, value in found.items() if name.startswith(starts)}
        protocol = f"edit/{pl_module.scores.protocol}/"
        kept = {name: value for name, value in kept.items() if name.startswith((protocol, "probe/"))}
        intervals = {name: [i.low, i.high] for name, i in pl_module.scores.intervals().items()}
        batches = max(trainer.global_step, pl_module.batches)  # a trainer that only scores a run has made no step
        row = {"edits": pl_module.edits, "batches": batches, "scores": kept, "intervals": intervals}
        if self.rows and self.rows[-1]["batches"] == row["batches"]:
            self.rows.pop()
        self.rows.append(row)
        if trainer.state.fn == "fit":  # what an unfinished run has measured can be looked at, too
            summary = self.summary(trainer, pl_module)
            pl_module.ranks.first_does(lambda: self._save(summary))
        elif self._tells:
            summary = self.summary(trainer, pl_module)
            if trainer.is_global_zero:
                print(f"\n{self.table(summary)}")

    on_test_end = on_validation_end

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Take up the validation that followed the checkpoint at once: a run that resumes from it does not repeat it."""
        with pl_module.ranks.together():
            if trainer.is_global_zero:
                self._take_up(trainer)
        self.rows = pl_module.ranks.of_first(self.rows)

    def _take_up(self, trainer: L.Trainer) -> None:
        path = self.folder / "summary.json"
        if not trainer.global_step or not path.exists():
            return
        known = {row["batches"] for row in self.rows}
        try:
            said = load_json(path.read_text(encoding="utf-8"))["validations"]
            missed = [row for row in said if row["batches"] <= trainer.global_step and row["batches"] not in known]
        except (ValueError, LookupError, TypeError) as error:
            raise EditError(f"{path} is damaged ({error}); without the file, the run goes on from its checkpoint") from error
        self.rows = sorted([*self.rows, *missed], key=lambda row: row["batches"])

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """After Ctrl-C, say how to go on."""
        if isinstance(exception, KeyboardInterrupt) and trainer.state.fn == "fit":
            rank_zero_info(f"Stopped after {pl_module.edits} edits; go on with: --run_dir {self.folder} --ckpt_path last")

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, so that a resumed run still knows where it began."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the rows."""
        self.rows = list(state_dict["rows"])

    def summary(self, trainer: L.Trainer, pl_module: Any) -> dict[str, Any]:
        """Everything the table shows, as plain JSON."""
        run: Any = trainer  # Lightning sets callbacks and data module where no type checker looks
        immediate = next((c for c in run.callbacks if isinstance(c, ImmediateScores)), None)
        drifting = next((c for c in run.callbacks if isinstance(c, SpectralDrift)), None)
        stream = run.datamodule
        nothing: dict[str, Any] = {"scores": {}, "intervals": {}}
        first, last = (self.rows[0], self.rows[-1]) if self.rows else (nothing, nothing)
        early = {} if immediate is None else immediate.stream.intervals()
        intervals = {**last["intervals"], **{name: [i.low, i.high] for name, i in early.items()}}
        return {
            "format": FORMAT,
            "version": __version__,
            "finished": pl_module.position >= len(stream.requests),
            "model": pl_module.pretrained,
            "weights": pl_module.weights_hash,
            "method": method_of(pl_module.editor, pl_module.guards, pl_module.settings),
            "editor": type(pl_module.editor).__name__,
            "guards": [type(guard).__name__ for guard in pl_module.guards],
            "layers": list(pl_module.layers),
            "batch_size": stream.batch_size,
            "edits": pl_module.edits,
            "requests": pl_module.position,
            "rows_read": stream.rows_read,
            "rows_set_aside": len(stream.set_aside),
            "review": stream.review,
            "probes": {
                probe.name: {"shown": f"probe/{probe.name}/{probe.shown}", "higher_is_better": probe.higher_is_better}
                for probe in stream.probes
            },
            "before": first["scores"],
            "after": last["scores"],
            "immediate": {} if immediate is None else {n: float(v) for n, v in immediate.stream.compute().items()},
            "drift": {} if drifting is None else drifting.last,
            "sampled": self._sampled(run),
            "intervals": intervals,
            "changes": {name: [i.low, i.high] for name, i in pl_module.probe_changes().items()},
            "validations": self.rows,
            "environment": environment(trainer.strategy.root_device),
        }

    @staticmethod
    def _sampled(trainer: Any) -> dict[str, float]:
        """Latest numbers of the callbacks that follow a sample: retention, and what the model says freely."""
        watchers = [callback for callback in trainer.callbacks if isinstance(callback, (RetentionScores, Generations))]
        return {name: float(value) for watcher in watchers for name, value in watcher.last.items()}

    def write(self, trainer: L.Trainer, pl_module: Any) -> str:
        """Write ``summary.json`` and return the table."""
        summary = self.summary(trainer, pl_module)
        pl_module.ranks.first_does(lambda: self._save(summary))
        table = self.table(summary)
        run: Any = trainer
        for keeper in run.callbacks:
            if isinstance(keeper, BoardKeeper):
                keeper.end(trainer, summary["drift"])
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                tag, step = place(logger, "summary", trainer.global_step)
                write_text(logger, tag, f"```\n{table}\n```", step)
                logger.experiment.flush()
        return table

    def _save(self, summary: dict[str, Any]) -> None:
        write_atomically(self.folder / "summary.json", json.dumps(finite(summary), indent=1).encode())

    @staticmethod
    def table(summary: dict[str, Any]) -> str:
        """A plain-text table of a summary."""
        head = (
            f"{summary['edits']} edits in batches of {summary['batch_size']}, {summary['method']}, "
            f"layers {', '.join(map(str, summary['layers']))}, {summary['model']}"
        )
        lines = []
        for name, value in summary["immediate"].items():
            _, protocol, metric, scoring, decoding = name.split("/")
            if _shown(metric, scoring):
                sure = _range(summary["intervals"].get(name))
                lines.append((_plain(metric), protocol, f"{scoring}, {_plain(decoding)}", "", _number(value), sure))
        for name, after in sorted(summary["after"].items(), key=lambda item: not item[0].startswith("edit/")):
            kind, *parts = name.split("/")
            if kind == "edit":
                before = summary["before"].get("/".join(("edit", "before", *parts[1:])))
                metric, protocol, scoring = parts[1], _plain(parts[0]), parts[2:]
                sure = _range(summary["intervals"].get(name))
                if not _shown(metric, scoring[0]):
                    continue
            else:
                before = summary["before"].get(name)
                metric, protocol, scoring = f"probe {parts[0]}", "at the end", parts[1:]
                sure = _range(summary["changes"].get(name), "change ", signed=True)
            told = ", ".join(_plain(part) for part in scoring)
            lines.append((_plain(metric), protocol, told, _number(before), _number(after), sure))
        for name, value in summary["sampled"].items():
            _, protocol, metric, scoring, decoding, *which = name.split("/")
            told = ", ".join([scoring, _plain(decoding), *which])
            lines.append((_plain(metric), _plain(protocol), told, "", _number(value), ""))
        for measure in ("relative_norm", "ls", "ss", "triple_drift", "protected_share"):
            values = [v for name, v in summary["drift"].items() if name.startswith(f"drift/{measure}/")]
            if values:
                start = {"relative_norm": "1", "ls": "1", "ss": "1"}.get(measure, "0")
                worst = min(values) if measure in ("ls", "ss") else max(values)
                lines.append((_plain(measure), "at the end", "weights, worst layer", start, _number(worst), ""))
        titles = ("measure", "protocol", "scoring", "before", "after", "95 %")
        widths = [max(len(line[i]) for line in (titles, *lines)) for i in range(len(titles))]
        rule = "-" * (sum(widths) + 2 * (len(titles) - 1))

        def show(line: tuple[str, ...]) -> str:
            cells = [
                cell.rjust(w) if i in (3, 4) else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            ]
            return "  ".join(cells).rstrip()

        top, rows = show(titles), [show(line) for line in lines]
        notes = [
            "immediate: each batch right after it was written, mean over the stream",
            f"so far: edits made up to then (at most {summary['review']}, evenly spread) on the weights of then; "
            "final: all edits on the final weights; before: the same edits, unedited model",
            "success: the wanted answer is likelier than the other one (mean token NLL); "
            "accuracy: every token of the answer is the argmax; score: harmonic mean of the three",
            "95 %: interval of the number over records; for probes, of its change since the unedited model, paired over items",
            "ls, ss: dominant singular subspace and vectors in order of size, 1 = unturned; new directions that outgrow "
            "the old ones lower them even while triple drift (the old ones themselves) stays 0",
        ]
        foot = "\n".join(textwrap.fill(note, max(len(rule), 80), subsequent_indent="  ") for note in notes)
        return "\n".join((head, rule, top, rule, *rows, rule, foot))


def _plain(name: str) -> str:
    return name.replace("_", " ").replace("teacher forced", "teacher-forced")


def _shown(metric: str, scoring: str) -> bool:
    """Whether a number goes into the table; ``summary.json`` has all of them."""
    whole = ("efficacy", "paraphrase", "neighbourhood", "portability", "locality", "score")
    return metric in whole and scoring in ("success", "accuracy", "probability", "agreement", "exact", "contains")


def _range(bounds: list[float] | None, before: str = "", signed: bool = False) -> str:
    if bounds is None or bounds[0] != bounds[0]:
        return ""
    sign = "+" if signed else ""
    return f"{before}{bounds[0]:{sign}.3f} to {bounds[1]:{sign}.3f}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if 0 < abs(value) < 1e-6:
        return "<1e-6"
    return f"{value:.3f}" if abs(value) < 1000 and (abs(value) >= 0.0005 or value == 0) else f"{value:.3g}"
