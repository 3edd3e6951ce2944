"""Comparing with recorded numbers, and the table that tells the outcome."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_edit.verify.recording import Recording, TensorFile

THROUGH_MODEL = 1e-4
"""Relative Frobenius difference allowed to what passes through a model in float32, where nothing better is known."""
CLOSED_FORM = 1e-6
"""The same for a closed form recomputed from recorded inputs."""


@dataclass(frozen=True)
class Tolerance:
    """How far apart is still equal, and who says so."""

    value: float
    origin: str


@dataclass(frozen=True)
class Row:
    """One line of the table: one quantity of one method over all its recorded instances."""

    model: str
    method: str
    quantity: str
    error: float | None = None
    tolerance: Tolerance | None = None
    count: int = 0
    note: str = ""
    """Why nothing was compared, where that is so."""
    worst: str = ""
    """Name of the instance with the largest error."""

    @property
    def missed(self) -> bool:
        """Whether the largest error is over the tolerance (NaN is)."""
        return self.tolerance is not None and not (self.error is not None and self.error <= self.tolerance.value)

    @property
    def status(self) -> str:
        """``ok``, ``MISS`` or ``-`` where nothing was compared."""
        return "-" if self.tolerance is None else "MISS" if self.missed else "ok"


def tolerance(recording: Recording, method: str, quantity: str, default: float) -> Tolerance:
    """Five times the difference that ``meta.json`` gives for a quantity, else a default.

    Args:
        recording: the folder.
        method: key of ``tolerances`` in ``meta.json``.
        quantity: key within the method.
        default: :data:`THROUGH_MODEL` or :data:`CLOSED_FORM`.
    """
    difference = recording.difference(method, quantity)
    if difference is not None:
        return Tolerance(5 * difference, f"5 x meta {method}.{quantity}")
    return Tolerance(default, "float32 model" if default == THROUGH_MODEL else "closed form")


def relative(ours: Tensor, recorded: Tensor) -> float:
    r"""Relative Frobenius difference :math:`\|a - b\| / \|b\|`; ``inf`` where shapes differ, plain where ``b`` is zero."""
    if ours.shape != recorded.shape:
        return math.inf
    a, b = ours.detach().double(), recorded.detach().double()
    norm = float(b.norm())
    return float((a - b).norm()) / (norm if norm > 0 else 1.0)


class Tally:
    """Collects the largest error of every quantity of one method.

    Args:
        recording: the folder.
        method: name in the table.
    """

    def __init__(self, recording: Recording, method: str) -> None:
        self.recording, self.method = recording, method
        self.found: dict[str, Row] = {}
        self.notes: list[Row] = []

    def add(self, quantity: str, error: float, allowed: Tolerance, where: str = "") -> None:
        """Note one comparison."""
        before = self.found.get(quantity)
        # Written so that a NaN counts as larger than anything.
        worse = before is None or before.error is None or not error <= before.error
        self.found[quantity] = Row(
            self.recording.name,
            self.method,
            quantity,
            error if worse or before is None else before.error,
            allowed,
            1 if before is None else before.count + 1,
            worst=where if worse or before is None else before.worst,
        )

    def tensor(self, file: TensorFile, name: str, quantity: str, ours: Tensor, allowed: Tolerance) -> None:
        """Compare with a recorded tensor, if it was recorded. A scalar may be recorded with one element."""
        recorded = file.get(name)
        if recorded is None:
            return
        file.compared.add(name)
        if ours.dim() == 0 and recorded.numel() == 1:
            recorded = recorded.reshape(())
        self.add(quantity, relative(ours, recorded), allowed, name)

    def scalar(self, quantity: str, ours: float, recorded: float, allowed: Tolerance, where: str = "") -> None:
        """Compare with a recorded number."""
        scalar = torch.tensor(ours, dtype=torch.float64), torch.tensor(recorded, dtype=torch.float64)
        self.add(quantity, relative(*scalar), allowed, where)

    def note(self, quantity: str, why: str) -> None:
        """Note that something was not compared, and why."""
        self.notes.append(Row(self.recording.name, self.method, quantity, note=why))

    def rows(self) -> list[Row]:
        """Everything collected."""
        return [*self.found.values(), *self.notes]


def render(rows: Sequence[Row]) -> str:
    """The table as text."""
    head = ("model", "method", "quantity", "largest error", "compared", "tolerance", "origin", "")
    lines = [_cells(row) for row in rows]
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    right = {3, 4, 5}

    def show(line: Iterable[str]) -> str:
        cells = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        return "  ".join(cells).rstrip()

    text = [show(head), "  ".join("-" * width for width in widths).rstrip(), *(show(line) for line in lines)]
    text += [f"MISS: {r.model} {r.method}, {r.quantity}: worst at {r.worst}" for r in rows if r.missed and r.worst]
    return "\n".join(text)


def _cells(row: Row) -> tuple[str, ...]:
    if row.tolerance is None:
        return (row.model, row.method, row.quantity, "", "", "", row.note, "-")
    error = "" if row.error is None else f"{row.error:.1e}"
    return (
        *(row.model, row.method, row.quantity, error, str(row.count)),
        *(f"{row.tolerance.value:.1e}", row.tolerance.origin, row.status),
    )
