"""One layer alone: a solve with history at the shapes of large models, and over a long stream.

Legend: N = keys, O = d_out, I = d_in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks import textbook
from benchmarks.settings import Found, Settings, median
from benchmarks.steps import random_moment
from lit_edit.editors import MEMIT, AlphaEdit
from lit_edit.editors.remembering import RememberingEditor
from lit_edit.moments import SecondMoment

SHAPES = {"gpt2-xl": (1600, 6400), "gpt-j": (4096, 16384), "llama-3-8b": (4096, 14336)}
"""``(d_out, d_in)`` of the MLP's down-projection."""
BATCH = 100
EARLIER = 2000
LAM = 15000.0


def layer(settings: Settings, name: str) -> Found:
    """A batch of 100 after 2,000 edits at one shape: factored and prepared once, against a dense system every time.

    The ratio is MEMIT's, whose metric is dense. AlphaEdit's is a multiple of the identity plus the history, so that nothing of
    size ``d_in`` squared is left; its ratio is to the same dense system, without the two products of dense matrices that the
    released code forms it with.
    """
    rows, columns = SHAPES[name]
    if settings.quick:
        rows, columns = rows // 32, columns // 32
    earlier_count = settings.size(EARLIER, 200)
    moment = random_moment(columns, settings.seed, torch.device("cpu"))
    editor = MEMIT(lam=LAM, history=True)
    editor.allocate(0, rows, columns)
    watch = settings.watch()
    weight = torch.empty(rows, columns)
    with watch.part("prepare"):
        editor.prepare(0, weight, SecondMoment(moment, 10 * columns))
    earlier_keys = keys(earlier_count, columns, settings.seed + 1)
    for at in range(0, earlier_count, BATCH):
        editor.remember(0, earlier_keys[at : at + BATCH], weight)
    with watch.part("take up the history"):
        editor.metric(0)
    mine, first = _batches(settings, editor, weight)
    del editor
    projected = _Projected(torch.linalg.qr(_normal(columns, min(40, columns // 4), settings.seed).double()).Q)
    projected.allocate(0, rows, columns)
    for at in range(0, earlier_count, BATCH):
        projected.remember(0, earlier_keys[at : at + BATCH], weight)
    projected.metric(0)
    inside, _ = _batches(settings, projected, weight)
    del projected
    new, residuals, expected = first
    measured, dense, at = _dense(settings, moment, earlier_keys, new, residuals)
    found: Found = {
        "d_out": rows,
        "d_in": columns,
        "earlier_edits": earlier_count,
        "ours_seconds": median(mine),
        "ours_seconds_by_batch": mine,
        "alphaedit_seconds": median(inside),
        "once_per_layer_seconds": dict(watch.seconds),
        "dense_seconds": measured * (columns / at) ** 3,
        "dense_measured_at_d_in": at,
    }
    if dense is not None:
        found["difference"] = float((expected - dense).norm() / dense.norm())
    found["ratio"] = found["dense_seconds"] / found["ours_seconds"]
    found["ratio_of_alphaedit"] = found["dense_seconds"] / found["alphaedit_seconds"]
    found["ratios"] = {"solve_ratio_14336": found["ratio"]} if name == "llama-3-8b" else {}
    return found


class _Projected(AlphaEdit):
    """AlphaEdit with protected directions that are given: finding them takes an eigendecomposition once per model."""

    def __init__(self, closed_IR: Tensor) -> None:
        super().__init__()
        self._given = closed_IR

    def forbidden(self, layer: int) -> Tensor:
        """See :meth:`AlphaEdit.forbidden`."""
        return self._given


def _batches(
    settings: Settings, editor: RememberingEditor, weight: Tensor
) -> tuple[list[float], tuple[Tensor, Tensor, Tensor]]:
    """Seconds of three batches, each solved and remembered; keys, residuals and change of the first."""
    rows, columns = weight.shape
    seconds = []
    for turn in range(3):
        new, residuals = keys(BATCH, columns, settings.seed + 2 + turn), _normal(BATCH, rows, settings.seed + turn)
        watch = settings.watch()
        with watch.part("solve"):
            delta = editor.solve(0, new, residuals, weight)
        if turn == 0:
            first = (new, residuals, delta.dense())
        with watch.part("remember"):
            editor.remember(0, new, weight)
        seconds.append(watch.total())
    return seconds, first


def _dense(
    settings: Settings, moment: Tensor, earlier_keys: Tensor, new: Tensor, residuals: Tensor
) -> tuple[float, Tensor | None, int]:
    """Seconds of the dense solve, its result, and the width it was measured at: a smaller one where memory is short."""
    width = len(moment)
    while 7 * 8 * width**2 > _free_bytes():  # the system, its factors, the history, and copies on the way
        width = width // 2
    columns = earlier_keys[:, :width].double()
    earlier = columns.T @ columns  # kept from batch to batch, so it does not count
    del columns
    watch = settings.watch()
    with watch.part("solve"):
        delta = textbook.solve(moment[:width, :width], LAM, new[:, :width], residuals, earlier)
        earlier += new[:, :width].double().T @ new[:, :width].double()
    return watch.total(), delta if width == len(moment) else None, width


def _free_bytes() -> float:
    """Memory that is free, where the system tells; all that a solve needs elsewhere."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")


def stream(settings: Settings, batch_seconds: dict[str, float]) -> Found:
    """A batch of 100 around edit 100, 10,000 and 20,000 of one stream on GPT-2-small's layers, with history.

    Keys are random; the same editor solves and remembers throughout. Means over as many batches as lie between two folds of
    the history, so that every fold counts. Targets and keys take the same time anywhere in a stream; they are added.

    Args:
        settings: how to measure.
        batch_seconds: ``targets`` and ``keys`` of a batch of 100 over five layers.
    """
    rows, columns = (768, 3072) if not settings.quick else (64, 256)
    last = settings.size(20_000, 1_000)
    editor = MEMIT(lam=LAM, history=True)
    editor.allocate(0, rows, columns)
    weight = torch.empty(rows, columns)
    editor.prepare(0, weight, SecondMoment(random_moment(columns, settings.seed, torch.device("cpu")), 10 * columns))
    cycle = max(editor.remembered(0).limit // BATCH, 1)
    seconds = []
    for index in range(last // BATCH + cycle):
        new, residuals = keys(BATCH, columns, settings.seed + index), _normal(BATCH, rows, index)
        watch = settings.watch()
        with watch.part("solve"):
            editor.solve(0, new, residuals, weight)
            editor.remember(0, new, weight)
        seconds.append(watch.total())
    around: dict[str, Any] = {}
    for edit in (BATCH, last // 2, last):
        start = edit // BATCH - 1
        solve = sum(seconds[start : start + cycle]) / cycle
        around[str(edit)] = {"solve": 5 * solve, "batch": 5 * solve + batch_seconds["targets"] + batch_seconds["keys"]}
    early, late = around[str(BATCH)], around[str(last)]
    return {
        "ratios": {"late_early_batch_ratio": late["batch"] / early["batch"]},
        "solve_only_ratio": late["solve"] / early["solve"],
        "seconds_around_edit": around,
        "batches_averaged": cycle,
    }


def keys(count: int, width: int, seed: int) -> Tensor:
    """Random keys ``[count, width]`` whose coordinates differ in size as those of :func:`random_moment`."""
    return _normal(count, width, seed) * torch.logspace(-3, 0, width)


def _normal(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
