"""What a replay of DeltaEdit meets on its way through the model, compared with what was recorded of it.

Legend: O = d_out, B = written directions, Q = directions that are closed.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from lit_edit.delta import remove_columns
from lit_edit.editors.deltaedit import DeltaEdit
from lit_edit.targets import Targets
from lit_edit.verify.sequence import Method
from lit_edit.verify.table import THROUGH_MODEL, Tally, Tolerance, relative
from lit_edit.verify.trajectory import trajectory
from lit_edit.verify.watched import Watched

_MODEL = Tolerance(THROUGH_MODEL, "float32 model")
_EXACT = Tolerance(0.0, "exact")


class Sight:
    """Compares one course with what was recorded.

    Args:
        method: the recorded sequence.
        tally: where comparisons go.
        label: for the table.
    """

    def __init__(self, method: Method, tally: Tally, label: str) -> None:
        self.method, self.tally, self.label = method, tally, label
        self.told: list[dict[str, Any]] = method.recording.meta.get("info", {}).get(method.name, [])
        self.orthogonal = False
        """Whether the current request is optimised in orthogonal mode."""
        self.blurred = False
        """Whether what follows hangs on directions that the reference drew at random, and nobody knows how."""
        self.draws = draws(method)

    def next(self, own: bool) -> None:
        """Another request; a course of its own carries on what is blurred."""
        self.orthogonal, self.blurred = False, self.blurred and own

    def tensor(self, name: str, quantity: str, ours: Tensor) -> None:
        """Compare with a recorded tensor."""
        if not self.blurred:
            self.tally.tensor(self.method.file, name, f"{quantity} {self.label}", ours, _MODEL)

    def targets(self, edit: int, found: Targets, bench: Watched, mean: float, variance: float) -> None:
        """Compare what one optimisation has come to, and the running statistics after it."""
        deltas, losses = bench.trajectory(0)
        at, tally, label = f"edit{edit}", self.tally, self.label
        said = self.told[edit] if edit < len(self.told) else None
        if said is not None and not self.blurred:
            tally.add(f"orthogonal mode {label}", float(self.orthogonal != said["orthogonal_mode"]), _EXACT, at)
            if said["ema_mean"] is not None:
                tally.scalar(f"mean interference {label}", mean, said["ema_mean"], _MODEL, at)
                # Next to nothing after the first request; a deviation is rounded on the scale of what deviates.
                error = abs(variance**0.5 - said["ema_var"] ** 0.5) / said["ema_mean"]
                tally.add(f"deviation of interference {label}", error, _MODEL, at)
        self.blurred = self.blurred or (self.orthogonal and self.draws is None)
        if self.blurred:
            tally.note(f"{at} {label}", "hangs on directions drawn at random, meta.json tells no seed")
            return
        self.tensor(f"{at}/z", "z", found.values_ND[0])
        trajectory(tally, self.method.file, at, label, deltas, losses, lambda key: _MODEL)
        if said is not None:
            tally.add(f"forward passes {label}", float(abs(len(deltas) - said["steps"])), _EXACT, at)
            tally.scalar(f"probability at the end {label}", float(found.probability_N[0]), said["prob_end"], _MODEL, at)

    def values(self, edit: int, values: Tensor) -> None:
        """Compare the largest eigenvalues of ``B B^T``."""
        head = self.told[edit]["singular_head"] if edit < len(self.told) else None
        if head and not self.blurred:
            error = relative(values[: len(head)], torch.tensor(head, dtype=torch.float64))
            self.tally.add(f"eigenvalues of B B^T {self.label}", error, _MODEL, f"edit{edit}")

    def drawn(self, edit: int, used_OB: Tensor, exact_OQ: Tensor, editor: DeltaEdit) -> Tensor:
        r"""The directions as the reference draws them: a randomised decomposition of :math:`B B^T` in float32.

        Its power iterations leave about :math:`(\lambda_{q+1} / \lambda_j)^5` of the exact direction ``j`` outside: little of
        the leading half, which is compared, and most of the last one, by which targets differ in the second digit.
        """
        assert self.draws is not None
        product = used_OB.float() @ used_OB.float().T
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.draws)
            left, values, _ = torch.svd_lowrank(product, q=int(len(product) * editor.space))
            self.draws = torch.get_rng_state()
        drawn_OQ = left[:, values > editor.floor][:, : int(len(product) * (1 - editor.space))].double()
        count, half = exact_OQ.shape[1], exact_OQ.shape[1] // 2
        if half and count < len(product):
            scale = torch.linalg.eigvalsh(used_OB @ used_OB.T).flip(0)
            allowed = Tolerance(THROUGH_MODEL + 20 * float(scale[count] / scale[half - 1]) ** 5, "power iteration")
            outside = remove_columns(exact_OQ[:, :half], torch.linalg.qr(drawn_OQ).Q).norm()
            self.tally.add(f"exact leading directions outside drawn ones {self.label}", float(outside), allowed, f"edit{edit}")
        return drawn_OQ


def draws(method: Method) -> Tensor | None:
    """State of the random generator that the reference started with, ``None`` where the recording does not tell."""
    seed = re.search(r"manual_seed\((\d+)\)", str(method.recording.meta.get("formulas", {}).get(method.name, "")))
    return None if seed is None else torch.Generator().manual_seed(int(seed[1])).get_state()
