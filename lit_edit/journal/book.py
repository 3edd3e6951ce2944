"""Reading a journal that may come from elsewhere: checked before anything of it is used.

A journal is data. Nothing in it is run or unpickled, no path in it is followed (files have names of their own), sizes are
capped, and every record and file is compared with its hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_edit.errors import EditError, brief
from lit_edit.journal import files
from lit_edit.journal.change import apply
from lit_edit.journal.records import check, parse
from lit_edit.runs.paths import named

_SHAPE = {"start": int, "position": int, "edits": int, "cases": list, "requests": list, "set_aside": list, "scalars": dict}
_REQUEST = {"id": str, "source": str, "prompt": str, "subject": str, "target": str, "fate": str}
_FATES = ("written", "rejected", "set aside")


@dataclass(frozen=True)
class Book:
    """The records of a run, chained and in form.

    Args:
        run: the run folder.
        records: as :func:`open_book` found them.
        unfinished: whether half a record follows.
    """

    run: Path
    records: tuple[dict[str, Any], ...]
    unfinished: bool = False

    @property
    def path(self) -> Path:
        """The file of the records."""
        return self.run / "journal.jsonl"

    @property
    def layers(self) -> list[int]:
        """The edited blocks, as the first record names them.

        Raises:
            EditError: if there is no record, or it names none.
        """
        said = self.records[0].get("weights") if self.records else None
        if not isinstance(said, dict) or not said or not all(str(key).isdecimal() and len(key) < 7 for key in said):
            raise EditError(f"{self.path} holds no record that names edited layers, so there is nothing to replay")
        return sorted(int(key) for key in said)

    @cached_property
    def base(self) -> tuple[int, Path] | None:
        """What earlier batches were folded into; see :func:`lit_edit.journal.files.base`."""
        return files.base(self.run)

    def upto(self, count: int) -> None:
        """Refuse a number of batches that the journal does not hold.

        Raises:
            EditError: with the numbers there are.
        """
        if not 0 <= count <= len(self.records):
            raise EditError(f"{self.path} holds {len(self.records)} batches, so {count} is not between 0 and that")

    def weights(self, original: dict[int, Tensor], count: int) -> dict[int, Tensor]:
        """The masters behind the first ``count`` batches, float32 ``[d_out, d_in]`` by layer, bit for bit.

        Every batch's result is compared with the hash in its record.

        Args:
            original: the unedited weights of the edited layers.
            count: batches.

        Raises:
            EditError: if the originals are others, factors were not kept, or a file or result is not what was recorded.
        """
        self.upto(count)
        for number, found in self.along(original):
            if number == count:
                return found
        raise EditError(f"{self._folded()}, so the weights behind {count} of them cannot be had; the first are {self._first()}")

    def along(self, original: dict[int, Tensor]) -> Iterator[tuple[int, dict[int, Tensor]]]:
        """``(batches, weights behind them)`` from the start or from what was folded; see :meth:`weights`."""
        now, start = dict(original), 0
        if self.records:
            self.check_original(original)
        if self.base is not None:
            start = self._first()
            now = {layer: value.to(now[layer].device) for layer, value in self.folded().items() if layer in now}
            if set(now) != set(original):
                raise EditError(f"{self.base[1]} does not hold the layers {', '.join(map(str, original))}")
        known = files.hashes(now)
        yield start, now
        for number in range(start, len(self.records)):
            record = self.records[number]
            said = record.get("weights")
            if record["factors"] is not None:
                changes = files.read(self.run, number, record["factors"])
                if set(changes) - set(now):
                    raise EditError(f"{self.run / files.batch_name(number)} changes a layer that the run does not edit")
                try:
                    now = {layer: apply(value, changes.get(layer, {})) for layer, value in now.items()}
                except EditError as error:
                    raise EditError(f"{self.run / files.batch_name(number)} {error}") from None
                known = files.hashes(now)
            elif said != known:
                raise EditError(f"{self.path} holds no factors of batch {number} (--journal.factors false), so it ends there")
            if said != known:
                raise EditError(
                    f"the weights behind batch {number} are not those of the run: the replay does not give the hash in record "
                    f"{number}"
                )
            yield number + 1, now

    def folded(self) -> dict[int, Tensor]:
        """The weights that earlier batches were folded into, compared with the record of the last of them.

        Raises:
            EditError: if they are not those.
        """
        assert self.base is not None
        number, path = self.base
        weights = files.read_base(self.run, path)
        if any(value.dtype != torch.float32 or value.dim() != 2 for value in weights.values()):
            raise EditError(f"{path} holds something else than float32 matrices")
        if not 0 < number <= len(self.records) or files.hashes(weights) != self.records[number - 1].get("weights"):
            raise EditError(f"{path} does not hold the weights that record {number - 1} of {self.path} names")
        return weights

    def problems(self) -> list[str]:
        """What is wrong with the counts, the factor files and what was folded; records were checked when they were read."""
        found = list(self._counts())
        if self.unfinished:
            number = len(self.records)
            found.append(
                f"{self.path} ends in the middle of record {number}: a crash while it was written, or damage; --ckpt_path last "
                "goes on without it"
            )
        first = 0
        if self.base is not None:
            first = self._first()
            try:
                self.folded()
            except EditError as error:
                found.append(str(error))
        for number, record in enumerate(self.records):
            if record["factors"] is None or (number < first and not (self.run / files.batch_name(number)).exists()):
                continue
            try:
                files.read(self.run, number, record["factors"])
            except EditError as error:
                found.append(str(error))
        return found

    def _counts(self) -> Iterator[str]:
        position = edits = 0
        for number, record in enumerate(self.records):
            who = f"record {number} of {self.path}"
            fates = [request["fate"] for request in record["requests"]]
            written, aside = fates.count("written"), fates.count("set aside")
            position, edits = position + len(fates), edits + written
            if (record["start"] + len(fates), record["position"]) != (position, position):
                yield f"{who} ends at request {record['position']}, but {position} requests have been read by then"
            if record["edits"] != edits or len(record["cases"]) != written or aside != len(record["set_aside"]):
                yield f"{who} does not add up: {written} written and {aside} set aside are not what it counts"
            if (fates.count("rejected") > 0) and record["rejected"] is None:
                yield f"{who} holds rejected requests, but says that its batch was written"

    def check_original(self, original: dict[int, Tensor]) -> None:
        """Refuse unedited weights that the run did not start from.

        Raises:
            EditError: if they are others.
        """
        from lit_edit.store import fingerprint

        said = self.records[0].get("original")
        if said != fingerprint({str(layer): value for layer, value in original.items()}):
            raise EditError(f"{self.path} belongs to other original weights than those of the model in config.yaml")

    def _first(self) -> int:
        return self.base[0] if self.base else 0

    def _folded(self) -> str:
        return f"the first {self._first()} batches of {self.path} were folded by 'lit-edit journal compact'"


def open_book(run: str | Path) -> Book:
    """The journal of a run.

    Raises:
        EditError: if there is none, or a record is damaged, altered, out of order or of another version.
    """
    folder = named(run, "a run")
    if not (folder / "journal.jsonl").is_file():
        raise EditError(f"{folder} holds no journal.jsonl; give the folder that --run_dir of 'lit-edit fit' named")
    path = folder / "journal.jsonl"
    data = files.contained(folder, "journal.jsonl", "a run", None)
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start)
        raise EditError(f"the journal {path} is damaged in record {number}: it is not plain ASCII") from None
    records, lines = parse(text, str(path))
    check(records, lines, str(path))
    for number, record in enumerate(records):
        _check_form(record, f"record {number} of {path}")
    return Book(folder, tuple(records), bool(text) and not text.endswith("\n"))


def _check_form(record: dict[str, Any], who: str) -> None:
    """A chain says that nothing was altered, not that whoever wrote it wrote a record."""
    for key, kind in _SHAPE.items():
        if not isinstance(record.get(key), kind):
            raise EditError(f"{who} holds no {key} that is a {kind.__name__}")
    numbers = {**record["scalars"], **{key: record.get(key) for key in ("target_loss", "target_probability")}}
    if wrong := next((key for key, value in numbers.items() if not _is_number(value)), None):
        raise EditError(f"{who} holds no number for {brief(wrong)}")
    if not {"factors", "rejected"} <= record.keys() or not isinstance(record.get("rejected"), (str, type(None))):
        raise EditError(f"{who} does not say what became of its batch")
    for request in record["requests"]:
        if not isinstance(request, dict) or any(not isinstance(request.get(key), kind) for key, kind in _REQUEST.items()):
            raise EditError(f"{who} holds a request without id, prompt, subject, target or fate")
        if not all(_is_number(request.get(key)) for key in ("loss", "probability")):
            raise EditError(f"{who} holds a request whose loss or probability is no number")
        if request["fate"] not in _FATES:
            raise EditError(f"{who} holds a request that was {request['fate'][:20]!r}; it was one of {', '.join(_FATES)}")


def _is_number(value: Any) -> bool:
    """Whether it is a number, or null for one that was not finite."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
