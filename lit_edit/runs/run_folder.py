"""Reading what a run left behind: configuration, summary, curves and journal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from lit_edit.errors import EditError
from lit_edit.journal.records import parse
from lit_edit.options.documents import load_json, load_yaml
from lit_edit.runs.paths import named

FORMAT = 1
"""Number of the layout of ``summary.json``; a reader refuses another one."""

Curve = list[tuple[int, float]]
"""``(edits written by then, value)``, in the order of the stream."""


@dataclass(frozen=True)
class RunFolder:
    """One run on disk; nothing is read before it is asked for.

    Args:
        path: the folder that ``--run_dir`` named.
    """

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The run in a folder.

        Raises:
            EditError: if nothing there is a run that came as far as its first scores, or one of another version.
        """
        found = cls(named(path, "a run"))
        if not found.path.is_dir():
            raise EditError(f"there is no folder {found.path}; give the folder that --run_dir of 'lit-edit fit' named")
        if not (found.path / "config.yaml").exists():
            raise EditError(f"{found.path} holds no config.yaml, so it is no run; give a folder that 'lit-edit fit' wrote")
        if not (found.path / "summary.json").exists():
            raise EditError(
                f"{found.path} holds no summary.json, so the run has not come as far as its first scores; "
                f"go on with it: --run_dir {found.path} --ckpt_path last"
            )
        number = found.summary.get("format")
        if number != FORMAT:
            raise EditError(f"{found.path / 'summary.json'} has format {number}, this version reads {FORMAT}; run it anew")
        return found

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        text = self._text("config.yaml")
        try:
            found = load_yaml(text)
        except yaml.YAMLError as error:
            raise EditError(f"{self.path / 'config.yaml'} is no YAML ({error}); the run has to be repeated") from error
        if not isinstance(found, dict):
            raise EditError(f"{self.path / 'config.yaml'} holds no configuration; the run has to be repeated")
        return found

    @cached_property
    def summary(self) -> dict[str, Any]:
        """``summary.json``; see :meth:`lit_edit.callbacks.Report.summary`."""
        try:
            found = load_json(self._text("summary.json"))
        except ValueError as error:
            raise EditError(f"{self.path / 'summary.json'} is damaged ({error}); the run has to be repeated") from error
        if not isinstance(found, dict):
            raise EditError(f"{self.path / 'summary.json'} holds no summary; the run has to be repeated")
        return found

    @cached_property
    def journal(self) -> list[dict[str, Any]]:
        """One record a batch; see :meth:`lit_edit.journal.Journal.append`."""
        return parse(self._text("journal.jsonl"), str(self.path / "journal.jsonl"))[0]

    @cached_property
    def batches(self) -> dict[str, Curve]:
        """What was logged with every batch (immediate scores, drift, norms, times), by logged name.

        A resumed run does the batches behind its checkpoint again: of those, only what was logged last counts.
        """
        edits = [int(record["edits"]) for record in self.journal]
        found: dict[str, dict[int, float]] = {}
        for step, name, value in self._logged():
            if step < len(edits) and not name.startswith(("probe/", "edit/before", "edit/so_far", "edit/final", "epoch", "lr")):
                found.setdefault(name, {})[step] = value
        return {name: [(edits[step], values[step]) for step in sorted(values)] for name, values in sorted(found.items())}

    @cached_property
    def validations(self) -> dict[str, Curve]:
        """What the validations measured (probes, scores of the edits so far), by logged name without its protocol.

        The names of editing scores are ``<metric>/<scoring>/<decoding>`` here: the unedited model (0 edits), the edits so far
        and all of them at the end make one curve. Probes keep their names.
        """
        found: dict[str, Curve] = {}
        for edits, name, value in self._scores():
            if value is not None:
                found.setdefault(name, []).append((edits, value))
        return found

    @cached_property
    def undefined(self) -> dict[str, list[int]]:
        """Edits written by then, of the validations in which a score came out as no number (NaN or infinite), by name."""
        found: dict[str, list[int]] = {}
        for edits, name, value in self._scores():
            if value is None:
                found.setdefault(name, []).append(edits)
        return found

    @property
    def probes(self) -> dict[str, dict[str, Any]]:
        """``shown`` (logged name of the number that stands for it) and ``higher_is_better`` of every probe, by its name."""
        return dict(self.summary.get("probes", {}))

    def _scores(self) -> Iterator[tuple[int, str, float | None]]:
        for row in self.summary["validations"]:
            for name, value in row["scores"].items():
                kind, *rest = name.split("/")
                key = name if kind == "probe" else "/".join(rest[1:])
                yield int(row["edits"]), key, None if value is None else float(value)

    def _logged(self) -> Iterable[tuple[int, str, float]]:
        """``(step, name, value)`` in the order they were written; each resumption of a run has a folder of its own."""
        folders = [self.path / "csv", *sorted(self.path.glob("csv-*"), key=lambda folder: int(folder.name.split("-")[1]))]
        for folder in folders:
            file = folder / "metrics.csv"
            if not file.exists():
                continue
            text = self._text(str(file.relative_to(self.path)))
            # A last line without its end was being written when the run was killed; the run that goes on writes it again.
            with io.StringIO(text[: text.rfind("\n") + 1], newline="") as lines:
                reader = csv.DictReader(lines)
                try:
                    for row in reader:
                        step = int(row["step"])
                        yield from ((step, name, float(value)) for name, value in row.items() if name != "step" and value)
                except (ValueError, KeyError, TypeError, csv.Error) as error:
                    raise EditError(f"{file} is damaged in line {reader.line_num} ({error}); remove that line") from error

    def _text(self, name: str) -> str:
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise EditError(f"{self.path} holds no {name}, so the run in it is incomplete") from None
        except (OSError, UnicodeDecodeError) as error:
            raise EditError(f"{self.path / name} cannot be read: {getattr(error, 'strerror', error)}") from error
