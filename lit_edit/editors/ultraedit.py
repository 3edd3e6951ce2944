"""UltraEdit: gradients at the answers, normalised by what was seen so far, written by ridge regression.

Legend: T = answer tokens, I = d_in, O = d_out, F = I + O.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lit_edit.algebra.inverses import Ridge
from lit_edit.batch.rejection import solving
from lit_edit.delta import Delta, remove_columns
from lit_edit.editors.base import Editor
from lit_edit.errors import EditError
from lit_edit.prompts import EditRows, Encoder, Row
from lit_edit.solver import solve
from lit_edit.spectrum import Subspace
from lit_edit.targets import Targets
from lit_edit.workbench import Workbench

if TYPE_CHECKING:
    from lit_edit.request import EditRequest

_TINY = torch.finfo(torch.float32).eps  # the released constant, whatever precision is used here


class Normaliser(nn.Module):
    r"""Running mean and deviation of tokens, each feature on its own.

    For a portion of ``b`` tokens with mean :math:`m` and *unbiased* variance :math:`v`, after ``n`` tokens,

    .. math::
        \delta = m - \mu, \quad \mu \leftarrow \mu + \frac{b}{n + b} \delta, \quad
        S \leftarrow S + b\,v + \frac{n b}{n + b} \delta^2, \quad \sigma = \sqrt{S / (n + b - 1)}

    This is the released formula. A sum of squares would take :math:`(b - 1) v`, so that :math:`\sigma` comes out large by
    about :math:`1 / 2b` of itself; the method's learning rate was chosen with it. A portion of one token has
    :math:`v = 0` (in the released code: NaN).

    Args:
        width: features of a token.
    """

    count: Tensor  # [] float64
    mean: Tensor  # [F] float64
    squares: Tensor  # [F] float64, S

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(width, dtype=torch.float64))

    def update(self, tokens_TF: Tensor) -> None:
        """Take in a portion of tokens, ``[t, width]``."""
        tokens = tokens_TF.double()
        new = len(tokens)
        total = self.count + new
        apart = tokens.mean(0) - self.mean
        squares = self.squares + self.count * new / total * apart.square()
        self.squares = squares + new * tokens.var(0) if new > 1 else squares
        self.mean = self.mean + new / total * apart
        self.count = total

    @property
    def std(self) -> Tensor:
        """Deviation of every feature, ``[width]``."""
        return (self.squares / (self.count - 1 + _TINY)).sqrt()

    def forward(self, tokens_TF: Tensor) -> Tensor:
        """Tokens with the mean taken out and divided by the deviation, ``[t, width]`` float64."""
        return (tokens_TF.double() - self.mean) / (self.std + _TINY)


class UltraEdit(Editor):
    r"""One backward pass, and a ridge regression from inputs to normalised gradients at the answer tokens.

    For the answer tokens of a batch with inputs ``X`` ``[t, d_in]`` of a down-projection and gradients ``G`` ``[t, d_out]`` at
    its output (of the mean negative log-likelihood over a mini-batch's answer tokens), and :math:`\hat x, \hat g` normalised
    by :class:`Normaliser` over everything seen so far, this batch included,

    .. math::
        v = -\eta\, \|\hat x\|^2\, \hat g, \qquad
        \Delta^T = (X^T X + \nu I)^{-1} X^T V = X^T (X X^T + \nu I)^{-1} V

    ``X`` on the right is not normalised. The second form needs a system of ``t`` equations instead of ``d_in`` and gives thin
    factors of rank ``t``; it is :func:`lit_edit.solver.solve` with :math:`A = \nu I, \mu = 1`. All layers are read on the
    weights before the batch and solved independently. Layers of one shape share one normaliser, updated mini-batch by
    mini-batch and, within one, from shallow to deep. No subject is needed, and nothing but the normaliser is carried between
    batches.

    What is edited here are down-projections. The published presets for GPT-J (``fc_out`` of blocks 18 to 26) and Mistral
    (``down_proj`` of 29 and 30) are such; those for Llama-3 edit ``gate_proj`` and ``up_proj``, so that their numbers cannot
    be compared with.

    Source: Gu et al. 2025, arXiv 2505.14679, and the released code. Deviations: in the released code the tokens of a last,
    incomplete portion of the gradients are replaced by a spurious constant (an integer division); here every token counts. It
    solves in float32, this in float64. It adds to a bfloat16 weight, which rounds most of a small change away; here a float32
    master keeps it.

    Args:
        lr: ``eta`` (1e-6 wherever published).
        ridge: ``nu``.
        minibatch: requests per forward and backward pass (10); the loss is a mean over it, so that it is part of the method.

    Raises:
        EditError: if a value is out of its range.
    """

    needs_moments = False
    needs_contexts = False

    def __init__(self, lr: float = 1e-6, ridge: float = 1.0, minibatch: int = 10) -> None:
        super().__init__()
        for what, value in (("lr", lr), ("ridge", ridge)):
            if not value > 0:
                raise EditError(f"UltraEdit's {what} is {value:g}; it must be positive")
        if minibatch < 1:
            raise EditError(f"UltraEdit's minibatch is {minibatch}; it must be at least 1")
        self.lr, self.ridge, self.minibatch = lr, ridge, minibatch
        self.normalisers = nn.ModuleDict()
        self._shape: dict[int, str] = {}

    def rows(self, encoder: Encoder, request: EditRequest, contexts: Sequence[str]) -> EditRows:
        """See :meth:`Editor.rows`: the bare prompt with its answer; no subject is needed."""
        return encoder.answer_rows(request)

    def allocate(self, layer: int, d_out: int, d_in: int) -> None:
        """See :meth:`Editor.allocate`."""
        shape = f"{d_out}x{d_in}"
        # A layer that is known already belongs to a new run, which starts from nothing.
        if shape not in self.normalisers or layer in self._shape:
            self.normalisers[shape] = Normaliser(d_in + d_out)
        self._shape[layer] = shape

    def normaliser(self, layer: int) -> Normaliser:
        """The statistics that a layer shares with all others of its shape; features are inputs, then gradients."""
        found = self.normalisers[self._shape[layer]]
        assert isinstance(found, Normaliser)
        return found

    def portions(self, rows: Sequence[EditRows]) -> list[list[Row]]:
        """The mini-batches of a batch: longest rows first, as released, so that rows of like length share one."""
        bare = sorted((row.rewriting[0] for row in rows), key=lambda row: len(row.ids), reverse=True)
        return [bare[at : at + self.minibatch] for at in range(0, len(bare), self.minibatch)]

    def change(self, bench: Workbench, rows: Sequence[EditRows], aimed: Targets | None) -> None:
        """See :meth:`Editor.change`."""
        inputs: dict[int, list[Tensor]] = {layer: [] for layer in bench.layers}
        gradients: dict[int, list[Tensor]] = {layer: [] for layer in bench.layers}
        for captured, loss in bench.capture(self.portions(rows), answers_only=True):
            bench.note("ultraedit/loss", loss)
            for layer, tokens in captured.items():
                self.normaliser(layer).update(torch.cat([tokens.inputs_TI, tokens.gradients_TO], dim=1))
                inputs[layer].append(tokens.inputs_TI)
                gradients[layer].append(tokens.gradients_TO)
        with torch.no_grad():
            for layer in bench.layers:
                with solving(f"the solve of layer {layer}"):
                    delta = self.solve(layer, torch.cat(inputs[layer]), torch.cat(gradients[layer]), bench.avoid(layer))
                bench.write(layer, delta)

    def solve(self, layer: int, inputs_TI: Tensor, gradients_TO: Tensor, avoid: Subspace | None = None) -> Delta:
        r"""The change of one layer, from tokens that its normaliser has seen.

        Directions to be avoided leave the problem, :math:`X \to X \Pi_d, V \to V \Pi_m`; what is normalised does not change.

        Args:
            layer: index of the transformer block.
            inputs_TI: inputs of the down-projection, ``[t, d_in]``.
            gradients_TO: gradients at its output, ``[t, d_out]``.
            avoid: directions to stay out of.

        Returns:
            Float64 factors of rank ``t``.
        """
        both = self.normaliser(layer)(torch.cat([inputs_TI, gradients_TO], dim=1))
        x, g = both.split([inputs_TI.shape[1], gradients_TO.shape[1]], dim=1)
        values_TO = -self.lr * x.square().sum(1, keepdim=True) * g
        keys_TI = inputs_TI.double()
        if avoid is not None:
            keys_TI = remove_columns(keys_TI.T, avoid.right).T
            values_TO = remove_columns(values_TO.T, avoid.left).T
        return solve(Ridge(self.ridge), keys_TI, values_TO)
