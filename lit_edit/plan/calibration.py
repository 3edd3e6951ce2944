"""How many operations a second this device does, by an MLP and a few products at the sizes that a run has.

Legend: I = d_in, D = hidden size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.nn import functional

from lit_edit.plan.result import Rates, Work

_LARGEST = 4096
"""Side from which a product is no faster for being larger, and a calibration would take long."""


def calibrate(device: torch.device, dtype: torch.dtype, tokens: int, d_model: int, d_inner: int, budget: float = 8.0) -> Rates:
    """Time an MLP, matrix products and a factorisation.

    The MLP has its activation and the norm before it, which take memory's time and hardly an operation.

    Args:
        device: where the run is.
        dtype: of the model.
        tokens: of a typical forward pass.
        d_model: D.
        d_inner: I.
        budget: seconds, all together.
    """
    rows = max(1, min(tokens, _LARGEST))
    wide, inner = min(d_model, _LARGEST), min(d_inner, _LARGEST)
    part = budget / 5

    def product(left: int, shared: int, right: int, of: torch.dtype) -> float:
        one, two = torch.ones(left, shared, dtype=of, device=device), torch.ones(shared, right, dtype=of, device=device)
        return 2.0 * left * shared * right / _seconds(lambda: one @ two, device, part)

    hidden = torch.ones(rows, wide, dtype=dtype, device=device)
    up, down = (torch.full(size, 1e-3, dtype=dtype, device=device) for size in ((wide, inner), (inner, wide)))

    def mlp() -> torch.Tensor:
        return hidden + functional.gelu(functional.layer_norm(hidden, (wide,)) @ up) @ down

    model = 4.0 * rows * wide * inner / _seconds(mlp, device, part)
    single = product(inner, rows, inner, torch.float32)
    double = product(min(rows, 128), inner, inner, torch.float64)
    side = min(inner, 1024)
    matrix = torch.eye(side, dtype=torch.float64, device=device) + 1.0 / side

    def factor() -> torch.Tensor:
        vectors: torch.Tensor = torch.linalg.eigh(matrix)[1]
        return vectors

    return Rates(model, single, double, 9.0 * side**3 / _seconds(factor, device, part))


def _seconds(run: Callable[[], torch.Tensor], device: torch.device, budget: float) -> float:
    """The median time of a few runs, the first one left out."""
    _timed(run, device)
    began = time.perf_counter()
    found: list[float] = []
    while len(found) < 3 or (len(found) < 9 and time.perf_counter() - began < budget / 4):
        found.append(_timed(run, device))
        if time.perf_counter() - began > budget:
            break
    return max(sorted(found)[len(found) // 2], 1e-9)


def _timed(run: Callable[[], torch.Tensor], device: torch.device) -> float:
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def timed(work: Work, rates: Rates) -> Work:
    """The same with seconds."""
    parts = ((work.model, rates.model), (work.single, rates.single), (work.double, rates.double), (work.factors, rates.factors))
    return replace(work, seconds=sum(operations / rate for operations, rate in parts))
