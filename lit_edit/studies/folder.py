"""The folder of a study: finished points are on disk before the next one begins."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_edit.errors import EditError
from lit_edit.figures import save
from lit_edit.journal import finite
from lit_edit.options.documents import load_json
from lit_edit.runs.paths import named
from lit_edit.store import append_durably, write_atomically
from lit_edit.studies.base import Point, Result, Study

FORMAT = 1
"""Number of the layout of a study's folder."""


class StudyFolder:
    """``study.json`` (what all points share), ``points.jsonl`` (one finished point a line), then tables and figures.

    Args:
        path: the folder; one that holds points of the same study is gone on with.
        study: the study.
        name: its name on the command line.

    Raises:
        EditError: if the folder cannot be used, or holds points of another study or of other settings.
    """

    def __init__(self, path: str | Path, study: Study, name: str) -> None:
        self.path, self.study, self.name = named(path, "--run_dir"), study, name
        self._file = self.path / "points.jsonl"
        self.done: dict[str, Result] = {}
        self._seconds: dict[str, float] = {}
        common = json.loads(json.dumps(finite({"study": name, "format": FORMAT, **study.common()})))
        head = self.path / "study.json"
        if head.exists():
            self._check(_read_json(head), common)
        else:
            write_atomically(head, json.dumps(common, indent=1, sort_keys=True).encode())
        self._read()

    def _check(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                raise EditError(
                    f"{self.path} holds a study whose {key} is {_short(old.get(key))} instead of {_short(new.get(key))}; "
                    "its points cannot be mixed with these, so choose another --run_dir"
                )

    def _read(self) -> None:
        """Take up finished points; an unfinished last line (a crash while writing) is left out."""
        wanted = {point.key: finite(dict(point.settings)) for point in self.study.points()}
        places: dict[Path, str] = {}
        for point in self.study.points():
            place = self.place(point)
            if place in places:
                both = f"{places[place]!r} and {point.key!r}, both in {place.name}"
                raise EditError(
                    f"two points of the study {self.name} have one name; every value may be given only once: {both}"
                )
            places[place] = point.key
        content = self._file.read_bytes() if self._file.exists() else b""
        lines = content.split(b"\n")[:-1]
        for number, line in enumerate(lines, start=1):
            try:
                key, settings, result, seconds = _unsealed(line.decode("ascii"))
            except (ValueError, KeyError, TypeError) as error:
                raise EditError(f"{self._file} is damaged in line {number} ({error}); remove that line") from error
            if key in wanted and settings == json.loads(json.dumps(wanted[key])):
                self.done[key], self._seconds[key] = result, seconds
        if content and not content.endswith(b"\n"):
            write_atomically(self._file, b"".join(line + b"\n" for line in lines))

    def missing(self) -> list[Point]:
        """Points that are still to be measured, in order."""
        return [point for point in self.study.points() if point.key not in self.done]

    def place(self, point: Point) -> Path:
        """The point's own folder."""
        return self.path / "points" / re.sub(r"[^\w.+=-]+", "_", point.key)

    def add(self, point: Point, result: Result, seconds: float) -> None:
        """Write a finished point down and flush it to disk.

        Raises:
            EditError: if the file cannot be written.
        """
        record = {"key": point.key, "settings": point.settings, "result": result, "seconds": round(seconds, 3)}
        append_durably(self._file, _sealed(finite(record)).encode())
        self.done[point.key], self._seconds[point.key] = result, seconds

    def results(self) -> dict[str, Result]:
        """Finished points in the order of the study."""
        return {point.key: self.done[point.key] for point in self.study.points() if point.key in self.done}

    def write(self) -> list[Path]:
        """Write ``results.json``, ``results.csv`` and the figures from what is finished; returns the files."""
        results = self.results()
        rows = self.study.table(results)
        head = _read_json(self.path / "study.json")
        seconds = {key: self._seconds[key] for key in results}
        content = {**head, "question": self.study.question, "results": results, "table": rows, "seconds": seconds}
        write_atomically(self.path / "results.json", json.dumps(finite(content), indent=1).encode())
        write_atomically(self.path / "results.csv", as_csv(rows).encode())
        files = [self.path / "results.json", self.path / "results.csv"]
        for name, drawn in self.study.figures(results).items():
            files += save(drawn, self.path / name)
        return files


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV under the names of all their columns, in the order in which they first appear."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    content = io.StringIO()
    writer = csv.DictWriter(content, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return content.getvalue()


def _sealed(record: dict[str, Any]) -> str:
    """The line of a record, with a checksum of the rest."""
    return json.dumps({**record, "sha256": _checksum(record)}, sort_keys=True) + "\n"


def _unsealed(line: str) -> tuple[str, Any, Result, float]:
    """Key, settings, result and seconds of a line; one that an earlier version wrote has no checksum.

    Raises:
        ValueError: if it is no record, or not the one that was written; ``KeyError`` and ``TypeError``, too.
    """
    record = load_json(line)
    if not isinstance(record, dict):
        raise ValueError("it is no record of a point")
    if "sha256" in record and record.pop("sha256") != _checksum(record):
        raise ValueError("its checksum does not fit")
    if not isinstance(record["key"], str) or not isinstance(record["seconds"], int | float):
        raise ValueError("it is no record of a point")
    return record["key"], record["settings"], record["result"], record["seconds"]


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = load_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EditError(f"{path} cannot be read ({error}); remove the folder, or choose another --run_dir") from error
    if not isinstance(found, dict):
        raise EditError(f"{path} does not describe a study; remove the folder, or choose another --run_dir")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 60 else f"{text[:57]}..."
