"""What a run was: at a glance, its protocol, configuration and environment, and how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from xml.etree.ElementTree import Element

import yaml

from lit_edit.report.account import short
from lit_edit.report.markup import Child, details, node, note, section, table
from lit_edit.report.numbers import NOTHING, plain
from lit_edit.report.run import Run

_PLACES = ("run_dir", "trainer.default_root_dir", "checkpoint.dirpath", "ckpt_path")
TERMS = {
    "before": "a sample of the stream's edits on the unedited model",
    "immediate": "each batch right after it was written; numbers are means over the stream",
    "so far": "a sample of the edits made up to then, evenly spread, on the weights of then",
    "final": "all requests of the stream, also those that were rejected, on the final weights",
    "retention": "cohorts of earlier edits, scored again along the stream",
    "success": "the wanted answer is likelier than the one it competes with, by mean log-likelihood of its tokens; a tie fails",
    "accuracy": "every token of the answer is the likeliest one",
    "agreement": "share of the tokens that are what the unedited model would say",
    "teacher-forced": "the model is shown the answer up to each token that it is asked for",
    "generated": "the model speaks for itself, greedily",
    "efficacy, paraphrase": "the edit prompt, and the same in other words; the new answer is wanted",
    "neighbourhood": "other subjects, whose answers should survive; the new answer is unwanted",
    "score": "harmonic mean of efficacy, paraphrase and neighbourhood",
    "95 %": "interval of a number over records; for probes, of the change since the unedited model, paired item by item",
}
_ASKED: dict[str, Callable[[Run], object]] = {
    "seed of everything": lambda run: run.config.get("seed_everything"),
    "seed of the stream": lambda run: run.options.get("data.seed"),
    "seed of the editor": lambda run: run.options.get("model.seed"),
    "order of the edits": lambda run: run.options.get("data.order"),
    "edits to a batch": lambda run: run.summary["batch_size"],
    "requests gone through": lambda run: f"{run.summary['requests']:,}",
    "batches between validations": lambda run: run.options.get("trainer.val_check_interval"),
    "most edits in a sample": lambda run: run.summary["review"],
    "scored at the end": lambda run: _end(run),
    "decoding": lambda run: ", ".join(sorted({plain(name.split("/")[4]) for name in _names(run)})),
    "edit set": lambda run: run.options.get("data.path" if _has_path(run) else "data.source.class_path"),
}


def glance(runs: Sequence[Run]) -> Element:
    """One row for each thing that tells runs apart."""
    asked: dict[str, Callable[[Run], object]] = {
        "state": lambda run: "finished" if run.summary["finished"] else "unfinished",
        "edits written": lambda run: f"{sum(len(record['cases']) for record in run.journal):,}",
        "method": lambda run: run.method,
        "model": lambda run: node("code", run.summary["model"]),
        "layers": lambda run: ", ".join(map(str, run.summary["layers"])),
        "weights of the model (SHA-256)": lambda run: node("code", (run.summary["weights"] or NOTHING)[:12]),
    }
    return section("At a glance", "glance", _facts("What was run", runs, asked))


def protocol(runs: Sequence[Run]) -> Element:
    """What the numbers are numbers of."""
    terms = [part for term, meaning in TERMS.items() for part in (node("dt", term), node("dd", meaning))]
    box = details("What the words mean", node("dl", *terms), opened=True)
    return section("Protocol", "protocol", _facts("How it was measured", runs, _ASKED), box)


def configuration(runs: Sequence[Run]) -> Element:
    """Options that differ, and all of them."""
    made: list[Child] = []
    if len(runs) > 1:
        names = list(dict.fromkeys(name for run in runs for name in run.options if name not in _PLACES))
        names = [name for name in names if len({run.options.get(name) for run in runs}) > 1]
        differing: list[list[Child]] = [
            [node("code", name), *(short(run.options.get(name, NOTHING), 160) for run in runs)] for name in names
        ]
        head = ["option", *(run.label for run in runs)]
        made.append(table("Where they differ", head, differing) if differing else note("All runs have the same options."))
    for run in runs:
        text = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True, width=100)
        made.append(details(f"config.yaml of {run.label}", node("pre", node("code", text))))
    return section("Configuration", "configuration", *made)


def environment(runs: Sequence[Run]) -> Element:
    """Versions and devices."""
    names = list(dict.fromkeys(name for run in runs for name in run.summary.get("environment") or {}))
    asked: dict[str, Callable[[Run], object]] = {"lit_edit": lambda run: run.summary["version"]}
    for name in names:
        asked[name] = lambda run, name=name: (run.summary.get("environment") or {}).get(name)  # type: ignore[misc]
    absent = None if names else note("These runs did not record what they ran on.")
    return section("Environment", "environment", _facts("What it ran on", runs, asked), absent)


def commands(runs: Sequence[Run]) -> Element:
    """How to do it again, and where to look further."""
    made: list[Child] = []
    for run in runs:
        path, config = shlex.quote(str(run.path)), shlex.quote(str(run.path / "config.yaml"))
        lines = [
            f"lit-edit fit --config {config} --run_dir NEW{_unpinned(run)}",
            f"tensorboard --logdir {path}",
        ]
        if not run.summary["finished"]:
            lines.insert(0, f"lit-edit fit --config {config} --run_dir {path} --ckpt_path last")
        made += [node("h3", run.label) if len(runs) > 1 else None, node("pre", node("code", "\n".join(lines)))]
    return section(
        "Repeat",
        "repeat",
        node("p", "Go on with an unfinished run; repeat a run in a new folder NEW; look at its live curves:"),
        *made,
    )


def _unpinned(run: Run) -> str:
    """What takes places of the old run out of its configuration, so that a repetition does not write there."""
    pinned = [name for name in ("checkpoint.dirpath", "ckpt_path") if run.options.get(name, "null") != "null"]
    return "".join(f" --{name} null" for name in pinned)


def _facts(caption: str, runs: Sequence[Run], asked: dict[str, Callable[[Run], object]]) -> Element:
    rows: list[list[Child]] = []
    for name, ask in asked.items():
        cells = [ask(run) for run in runs]
        if any(cell not in (None, "") for cell in cells):
            rows.append([name, *(cell if isinstance(cell, Element) else _text(cell) for cell in cells)])
    return table(caption, ["", *(run.label for run in runs)], rows)


def _text(value: object) -> str:
    return NOTHING if value is None or value == "" else short(str(value))


def _names(run: Run) -> list[str]:
    """Full names of the editing scores."""
    found = [*run.summary["after"], *run.summary["immediate"], *run.summary["sampled"]]
    return [name for name in found if name.startswith("edit/") and name.count("/") >= 4]


def _end(run: Run) -> str | None:
    protocols = {name.split("/")[1] for name in run.summary["after"] if name.startswith("edit/")}
    if "final" in protocols:
        return "all edits (final)"
    return "a sample (so far)" if "so_far" in protocols else None


def _has_path(run: Run) -> bool:
    return run.options.get("data.path", "null") != "null"
