"""A run as the page sees it: everything its folder holds, checked before any of it is used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from lit_edit.errors import EditError
from lit_edit.options.documents import load_json
from lit_edit.report.shapes import Each, Maybe, Nullable, Number, check
from lit_edit.runs.run_folder import Curve, RunFolder

_BOUNDS = Each(Maybe((Number, Number)))
_SUMMARY = {
    "version": str,
    "finished": bool,
    "model": str,
    "weights": Nullable(str),
    "method": Maybe(str),
    "editor": str,
    "guards": [str],
    "layers": [int],
    "batch_size": int,
    "edits": int,
    "requests": int,
    "rows_set_aside": int,
    "review": Nullable(int),
    **dict.fromkeys(("before", "after", "immediate", "drift", "sampled"), Each(Number)),
    "intervals": _BOUNDS,
    "changes": _BOUNDS,
    "validations": [{"edits": int, "scores": Each(Number), "intervals": _BOUNDS}],
    "probes": Maybe(Each({"shown": str, "higher_is_better": bool})),
    "environment": Maybe(Each(object)),
}
_BATCH = {
    "batch": int,
    "start": int,
    "position": int,
    "edits": int,
    "cases": [object],
    "set_aside": [{"source": str, "field": str, "reason": str}],
    "rejected": Nullable(str),
    "target_loss": Number,
    "target_probability": Number,
    "scalars": Each(Number),
}
_RETENTION = {
    "metric": str,
    "scoring": str,
    "cohorts": [{"first_batch": int, "last_batch": int}],
    "checkpoints": [{"batches": int, "edits": int}],
    "matrix": [[Number]],
    "curve": [(Number, Number)],
    **dict.fromkeys(("first", "latest", "mean", "auc"), Maybe(Number)),
}
_SAID = {"edits": int, "case_id": object, "kind": str, "prompt": str, "said": str, "wanted": Nullable(str)}
_ROW = {"file": Nullable(str), "row": object, "field": str, "reason": str}
_DEEP = 20


class Run:
    """One run folder, read and checked.

    Args:
        folder: the run.
        label: its name on the page.

    Raises:
        EditError: if a file is missing, damaged or of another shape than this version writes.
    """

    def __init__(self, folder: RunFolder, label: str) -> None:
        self.folder, self.label, self.path = folder, label, folder.path
        self.config = folder.config
        self.summary = folder.summary
        check(self.summary, _SUMMARY, str(self.path / "summary.json"))
        self.journal = folder.journal
        check(self.journal, [_BATCH], str(self.path / "journal.jsonl"))
        self.retention = self._optional("retention.json", _RETENTION)
        if self.retention and any(len(row) != len(self.retention["cohorts"]) for row in self.retention["matrix"]):
            raise EditError(
                f"{self.path / 'retention.json'} is damaged: its matrix has rows of another length than its cohorts"
            )
        self.said = list(self._lines("generations.jsonl", _SAID))
        self.set_aside = list(self._lines("set_aside.jsonl", _ROW))

    @classmethod
    def open_all(cls, paths: Sequence[str | Path]) -> list[Run]:
        """Several runs, under names that tell them apart.

        Raises:
            EditError: if one of them cannot be used, or is given twice.
        """
        folders = [RunFolder.open(path) for path in paths]
        for one, other in pairwise(sorted(folder.path.resolve() for folder in folders)):
            if one == other:
                raise EditError(f"the run {one} is given twice; give every run once")
        return [cls(folder, label) for folder, label in zip(folders, labels([f.path for f in folders]), strict=True)]

    @property
    def batches(self) -> dict[str, Curve]:
        """See :attr:`lit_edit.runs.run_folder.RunFolder.batches`."""
        return self.folder.batches

    @property
    def validations(self) -> dict[str, Curve]:
        """See :attr:`lit_edit.runs.run_folder.RunFolder.validations`."""
        return self.folder.validations

    @cached_property
    def bounds(self) -> dict[str, list[tuple[int, float, float]]]:
        """``(edits, low, high)`` of the 95 % intervals of the validations, by the names of :attr:`validations`."""
        found: dict[str, list[tuple[int, float, float]]] = {}
        for row in self.summary["validations"]:
            for name, bounds in row["intervals"].items():
                if bounds is not None and None not in bounds:
                    found.setdefault("/".join(name.split("/")[2:]), []).append((row["edits"], bounds[0], bounds[1]))
        return found

    @cached_property
    def options(self) -> dict[str, str]:
        """The configuration as ``a.b.c: value``, without the ``init_args`` between a class and its options."""
        return dict(_flat(self.config, ""))

    @property
    def method(self) -> str:
        """Editor and guards, with the options that are not their defaults (runs of earlier versions: without)."""
        names = [self.summary["editor"], *(self.summary["guards"] or ["no guard"])]
        return str(self.summary.get("method") or " + ".join(names))

    def _optional(self, name: str, shape: Mapping[str, Any]) -> dict[str, Any] | None:
        text = self._text(name)
        if text is None:
            return None
        found = self._parsed(text, name)
        check(found, shape, str(self.path / name))
        return dict(found)

    def _lines(self, name: str, shape: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for number, line in enumerate((self._text(name) or "").split("\n")[:-1], start=1):  # without an unfinished last line
            where = f"{name} (line {number})"
            found = self._parsed(line, where)
            check(found, shape, str(self.path / where))
            yield found

    def _parsed(self, text: str, where: str) -> Any:
        try:
            return load_json(text)
        except ValueError as error:
            raise EditError(f"{self.path / where} is damaged ({error}); remove the file or repeat the run") from error

    def _text(self, name: str) -> str | None:
        path = self.path / name
        try:
            return path.read_text(encoding="utf-8") if path.exists() else None
        except (OSError, UnicodeDecodeError) as error:
            raise EditError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def labels(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart.

    Example:
        >>> labels([Path("/runs/a/quickstart"), Path("/runs/b/quickstart"), Path("/runs/b/slow")])
        ['a/quickstart', 'b/quickstart', 'slow']
    """
    parts = [path.resolve().parts for path in paths]
    lengths = [1] * len(parts)
    while True:
        names = ["/".join(part[-length:]) for part, length in zip(parts, lengths, strict=True)]
        grown = [
            length + 1 if names.count(name) > 1 and length < len(part) else length
            for name, part, length in zip(names, parts, lengths, strict=True)
        ]
        if grown == lengths:
            return names
        lengths = grown


def _flat(value: Any, place: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    if depth < _DEEP and isinstance(value, dict) and value:
        for key, part in value.items():
            inside = place if key == "init_args" else f"{place}.{key}" if place else str(key)
            yield from _flat(part, inside, depth + 1)
    elif depth < _DEEP and isinstance(value, list) and any(isinstance(part, (dict, list)) for part in value):
        for at, part in enumerate(value):
            yield from _flat(part, f"{place}[{at}]", depth + 1)
    else:
        yield place, json.dumps(value, default=str, ensure_ascii=False) if not isinstance(value, str) else value
