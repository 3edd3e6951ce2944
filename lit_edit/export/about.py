"""Everything that an export says of itself: what was edited, how, and what was measured."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from torch import Tensor

from lit_edit import __version__
from lit_edit.export.state import State
from lit_edit.journal.records import finite
from lit_edit.report.results import EARLY, PROBES, SAMPLES, Key, Measured, measured
from lit_edit.report.run import Run

_PLACES = ("run_dir", "ckpt_path", "default_root_dir", "dirpath", "cache_dir")


@dataclass(frozen=True)
class Content:
    """What is exported.

    Args:
        state: the run, behind one of its batches.
        weights: of the edited layers, ``[d_out, d_in]`` float32.
        which: a sentence that says which weights those are, where there is a choice.
        base: the base model, as whoever loads the export has to name it.
        label: its name in texts: an id of the hub, or the last part of a folder.
    """

    state: State
    weights: Mapping[int, Tensor]
    which: str
    base: str
    label: str

    @property
    def dtype(self) -> str:
        """Dtype of the run's model."""
        return str(self.state.model.anatomy.dtype).removeprefix("torch.")

    @property
    def revision(self) -> str | None:
        """Revision of the base model that the run asked for."""
        revision: str | None = self.state.run.config["model"].get("revision")
        return revision

    @property
    def base_in_code(self) -> str:
        """How Python loads the base model."""
        revision = f", revision={self.revision!r}" if self.revision is not None else ""
        return f'AutoModelForCausalLM.from_pretrained({self.label!r}{revision}, dtype="{self.dtype}")'

    @property
    def edit_set(self) -> str:
        """Name of the file, data set or class that the edits come from."""
        data = self.state.run.config.get("data")
        given: dict[str, Any] = data if isinstance(data, dict) else {}
        source = given.get("source")
        named = given.get("path") or (source.get("class_path") if isinstance(source, dict) else source)
        return PurePath(str(named)).name if is_place(str(named)) else str(named)


def about(content: Content) -> dict[str, Any]:
    """Facts of an export as plain JSON; ``docs/export.md`` has the list of keys."""
    state = content.state
    run, summary = state.run, state.run.summary
    model = run.config["model"]
    return {
        "lit_edit": __version__,
        "base_model_name_or_path": content.base,
        "revision": content.revision,
        "base_sha256": state.book.records[0]["original"],
        "dtype": content.dtype,
        "weights": content.which or "as the run wrote and evaluated them",
        "editor": _told({"name": summary["editor"], **_options(model.get("editor"))}),
        "guards": [
            _told({"name": name, **_options(options)})
            for name, options in zip(summary["guards"], model.get("guards") or [], strict=False)
        ],
        "edits": state.record["edits"],
        "requests": state.counts(),
        "batches": state.batches,
        "batches_of_the_run": len(state.book.records),
        "finished": state.finished,
        "journal": state.head,
        "source": state.source,
        "scores": [
            {
                "measure": key.measure,
                "protocol": key.protocol,
                "scoring": key.scoring,
                "before": finite(one.before),
                "after": finite(one.after),
                "interval": one.sure_after,
                "interval_of_change": one.sure_change,
            }
            for key, one in scores(state).items()
        ],
        "environment": summary.get("environment"),
    }


def scores(state: State) -> dict[Key, Measured]:
    """What the run measured on the weights behind these batches; empty where it measured nothing there.

    Means over the stream (``immediate``) and samples that callbacks follow belong to the run as a whole: they are told of its
    last weights only.
    """
    rows = [row for row in state.run.summary["validations"] if row.get("batches") == state.batches]
    if not rows:
        return {}
    if state.batches == len(state.book.records) and rows[-1] is state.run.summary["validations"][-1]:
        return measured(state.run)
    then = copy.copy(state.run)
    then.summary = {**state.run.summary, "after": rows[-1]["scores"], "intervals": rows[-1]["intervals"], "changes": {}}
    return {key: one for key, one in measured(then).items() if key.group not in (EARLY, SAMPLES)}


def options(run: Run) -> Iterator[tuple[str, str]]:
    """Hyper-parameters of a run by the names they are typed with, without what says where things lie."""
    shown = ("model.", "data.", "seed_everything", "journal.without", "trainer.gradient_clip")
    for name, value in run.options.items():
        if name.startswith(shown) and name.rpartition(".")[2] not in _PLACES and not name.startswith("model.pretrained"):
            yield name, PurePath(value).name if is_place(value) else value


def configuration(run: Run) -> dict[str, Any]:
    """``config.yaml`` without what says where things lie on the machine of the run."""
    found = _told(run.config)
    assert isinstance(found, dict)
    return found


def is_place(value: str) -> bool:
    """Whether a text is a path that holds on one machine, or from one folder, only.

    >>> is_place("/home/ada/model"), is_place("openai-community/gpt2"), is_place("~/model"), is_place("../model")
    (True, False, True, True)
    """
    return value.startswith(("/", "~", "./", "../"))


def group(key: Key) -> str:
    """What a score is of: edits, or general abilities."""
    return "general ability" if key.group == PROBES else "edits"


def _told(value: Any) -> Any:
    """A part of a configuration, its folders left out."""
    if isinstance(value, dict):
        return {str(key): _told(part) for key, part in value.items() if key not in _PLACES}
    if isinstance(value, list):
        return [_told(part) for part in value]
    if isinstance(value, str):
        return PurePath(value).name if is_place(value) else value
    return finite(value) if value is None or isinstance(value, bool | int | float) else str(value)


def _options(given: Any) -> dict[str, Any]:
    return given if isinstance(given, dict) else {}
