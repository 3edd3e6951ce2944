"""DeltaEdit: AlphaEdit one request at a time, whose values keep out of each other's way when they start to interfere.

Legend: N = requests, J = rows of a request (the bare prompt first), O = d_out, I = d_in, B = columns of S and one more,
Q = occupied output directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lit_edit.delta import remove_columns
from lit_edit.editors.alphaedit import AlphaEdit
from lit_edit.errors import EditError
from lit_edit.prompts import EditRows
from lit_edit.targets import Step, Targets
from lit_edit.workbench import Workbench


class DeltaEdit(AlphaEdit):
    r"""AlphaEdit one request at a time; a request that meets unusual interference writes into unused output directions.

    With :math:`S = W - W_0` ``[d_out, d_in]``, everything written so far at the last edited layer, and ``k`` the request's key
    there (bare prompt), the interference is :math:`n = S k` and its strength :math:`s = \|n\|`. Running averages keep the mean
    of ``s`` and of its squared deviation :math:`v`. A request with :math:`|s - \bar s| > \texttt{var} \sqrt v` is optimised in
    *orthogonal mode*, in which every Adam step of its value is projected:

    .. math:: \delta \leftarrow (I - U U^T)\,\delta, \qquad
        U = \text{leading eigenvectors of } B B^T \text{ with eigenvalue} > \texttt{floor}, \quad B = [n, S]

    at most :math:`\lfloor \texttt{space}\, d_{out} \rfloor` of them (and no more than :math:`\lfloor (1 - \texttt{space})\,
    d_{out} \rfloor`, so that a large share leaves something open). Otherwise the averages take the request in, first the
    mean, then the deviation from the new mean. They start with the second request, since nothing is written before the first;
    for the first ``warmup`` requests there is no orthogonal mode. An optimisation also ends once the mean probability of the
    answer exceeds ``stop_probability``. The solve is AlphaEdit's, with history.

    Source: Cao et al. 2025, arXiv 2505.07899, and its released code. That takes ``U`` from a *randomised* decomposition, which
    leaves the weakest of its directions to chance; here it is a symmetric eigendecomposition in float64, the same in every
    run. ``S`` is what was really written, so that it knows what guards have cut off; the released code, which has no guards,
    sums the deltas. Where a norm follows the MLP (Gemma), the directions are taken back through it, so that what is *written*
    stays out of them. The released settings for Llama-3-8B read the loss at a block that the model does not have; here it is
    the last.

    Args:
        threshold: see :class:`AlphaEdit` (fixed to 0.02 in the released code).
        ridge: see :class:`AlphaEdit` (``L2``; 10 for Llama-3-8B, 1 for GPT-2-XL).
        var: deviations (in standard deviations) from which interference is unusual (1.5 for Llama-3-8B, 3 for GPT-2-XL).
        space: largest share of the output directions that is closed to a request in orthogonal mode (0.25).
        decay: of the running averages (0.9).
        warmup: requests before the first that may be orthogonal (20).
        stop_probability: mean probability of the answer at which its optimisation ends (0.98).
        floor: eigenvalues of :math:`B B^T` up to here count as unused; absolute (0.1).

    Raises:
        EditError: if a value is out of its range.
    """

    in_order = True

    edits: Tensor  # int64 scalar: requests that were optimised and written
    mean: Tensor  # float64 scalar
    variance: Tensor  # float64 scalar

    def __init__(
        self,
        threshold: float = 0.02,
        ridge: float = 10.0,
        var: float = 1.5,
        space: float = 0.25,
        decay: float = 0.9,
        warmup: int = 20,
        stop_probability: float = 0.98,
        floor: float = 0.1,
    ) -> None:
        super().__init__(threshold, ridge, history=True)
        if not var >= 0:
            raise EditError(f"DeltaEdit's var is {var:g}; a number of standard deviations must not be negative")
        if not 0 < space < 1:
            raise EditError(f"DeltaEdit's space is {space:g}; a share of the output directions must lie in (0, 1)")
        if not 0 <= decay < 1:
            raise EditError(f"DeltaEdit's decay is {decay:g}; it must lie in [0, 1), or the averages never move")
        if warmup < 0:
            raise EditError(f"DeltaEdit's warmup is {warmup}; it counts requests and must not be negative")
        if not stop_probability > 0:
            raise EditError(f"DeltaEdit's stop_probability is {stop_probability:g}; it must be positive (1 never stops)")
        if not floor >= 0:
            raise EditError(f"DeltaEdit's floor is {floor:g}; the eigenvalues it is compared with are not negative")
        self.var, self.space, self.decay, self.warmup = var, space, decay, warmup
        self.stop_probability, self.floor = stop_probability, floor

    def allocate(self, layer: int, d_out: int, d_in: int) -> None:
        """See :meth:`Editor.allocate`."""
        super().allocate(layer, d_out, d_in)
        self.register_buffer("edits", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("variance", torch.zeros((), dtype=torch.float64))

    def targets(self, bench: Workbench, rows: Sequence[EditRows]) -> Targets:
        """See :meth:`LocateThenEdit.targets`; of the one request whose turn it is."""
        confine = self.confinement(bench, rows)
        self.edits = self.edits + 1
        return bench.optimise(rows, stop=Probable(self.stop_probability), confine=confine)

    @torch.no_grad()
    def confinement(self, bench: Workbench, rows: Sequence[EditRows]) -> Callable[[Tensor], Tensor] | None:
        """Takes the request into the averages and returns ``None``, or in orthogonal mode the projection of its value."""
        if not int(self.edits):
            return None
        layer = bench.layers[-1]
        written_OI = bench.weight(layer) - bench.original(layer)
        inputs_NJI, outputs_NJO = bench.reader(rows).rows(layer)
        noise_O = (written_OI @ inputs_NJI[0, 0]).double()
        strength = noise_O.norm()
        unusual = self.unusual(strength)
        bench.note("deltaedit/interference", float(strength))
        bench.note("deltaedit/orthogonal", float(unusual))
        if not unusual:
            self.observe(strength)
            return None
        used_OQ = self.occupied(torch.cat([noise_O[:, None], written_OI.double()], dim=1))
        bench.note("deltaedit/closed_directions", used_OQ.shape[1])
        # The change of the residual stream whose writing keeps out of them; an orthonormal basis again where a norm follows.
        closed = torch.linalg.qr(bench.anatomy.pull_back(layer, outputs_NJO[:1, 0], used_OQ.T).double().T).Q
        return lambda delta_ND: remove_columns(delta_ND.T, closed).T

    def unusual(self, strength: Tensor) -> bool:
        """Whether interference of this strength calls for orthogonal mode."""
        if int(self.edits) < self.warmup or not float(self.variance) > 0:
            return False
        return bool((strength - self.mean).abs() > self.var * self.variance.sqrt())

    def observe(self, strength: Tensor) -> None:
        """Take a request into the averages; the first one seen is their start."""
        before = strength if int(self.edits) == 1 else self.mean
        self.mean = before + (1 - self.decay) * (strength - before)
        self.variance = self.decay * self.variance + (1 - self.decay) * (strength - self.mean).square()

    def occupied(self, used_OB: Tensor) -> Tensor:
        r"""Orthonormal directions ``[d_out, q]`` that dominate :math:`B B^T` of ``B`` ``[d_out, .]``."""
        values, vectors = torch.linalg.eigh(used_OB @ used_OB.T)
        width = len(values)
        most = min(int(width * self.space), int(width * (1 - self.space)))
        count = min(int((values > self.floor).sum()), most)
        dominant: Tensor = vectors.flip(1)[:, :count]
        return dominant


class Probable:
    """Done as soon as the mean probability of the answer exceeds a bound.

    Args:
        bound: mean over rows of ``exp(-NLL)``.
    """

    def __init__(self, bound: float) -> None:
        self.bound = bound

    def __call__(self, seen: Step) -> Tensor:
        """See :class:`lit_edit.targets.StopRule`."""
        return seen.probability > self.bound
