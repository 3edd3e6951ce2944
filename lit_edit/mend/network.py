"""The hyper-network of MEND: token by token, from a layer's input and output gradient to the factors of its update.

Legend: T = tokens, I = d_in, O = d_out, F = I + O, R = rank, P = layers that share a network.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lit_edit.delta import Delta
from lit_edit.errors import EditError
from lit_edit.passes.gradients import Captured

EPSILON = 1e-7
"""Added to every standard deviation before dividing by it (the released value)."""


class RunningNorm(nn.Module):
    r"""Standardises features by mean and standard deviation over all tokens seen so far.

    .. math:: \hat h = (h - \mu) / (\sigma + \epsilon)

    Kept in float64 and updated block by block (Chan, Golub & LeVeque 1983), which equals Welford's token by token update of
    the released code in exact arithmetic; ``sigma`` divides by the number of tokens less one.

    Args:
        size: number of features.
    """

    count: Tensor
    mean_F: Tensor
    squares_F: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean_F", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("squares_F", torch.zeros(size, dtype=torch.float64))

    @torch.no_grad()
    def update(self, tokens_TF: Tensor) -> None:
        """Take note of tokens ``[T, F]``; buffers are replaced, never modified in place."""
        if not len(tokens_TF):
            return
        tokens = tokens_TF.double()
        mean, count = tokens.mean(0), self.count + len(tokens)
        shift = mean - self.mean_F
        self.squares_F = self.squares_F + (tokens - mean).square().sum(0) + shift.square() * self.count * len(tokens) / count
        self.mean_F = self.mean_F + shift * len(tokens) / count
        self.count = count

    @property
    def deviation_F(self) -> Tensor:
        """Standard deviation of every feature, ``[F]`` float64."""
        return (self.squares_F / (self.count - 1)).sqrt()

    def forward(self, tokens_TF: Tensor) -> Tensor:
        """Standardised tokens, ``[T, F]``.

        Raises:
            EditError: if fewer than two tokens were seen.
        """
        if self.count < 2:
            raise EditError(
                f"the normaliser of the hyper-network has seen {int(self.count)} tokens; train it first, on at least 2"
            )
        deviation = self.deviation_F + EPSILON
        return ((tokens_TF.double() - self.mean_F) / deviation).to(tokens_TF.dtype)


class ResidualBlock(nn.Module):
    r"""One layer of the network: the identity until it is trained.

    .. math:: h \leftarrow \max(0,\; s_p \odot (V_2 V_1 h + b) + t_p) + h

    ``V_1`` ``[rank, F]`` starts standard normal, ``V_2`` ``[F, rank]``, ``b`` and ``t_p`` at zero and ``s_p`` at one. The
    layer ``p`` that a token comes from chooses scale and shift.

    Args:
        size: features in and out.
        rank: of the product ``V_2 V_1``; ``size`` if that is smaller.
        layers: how many layers share the block.
        generator: draws ``V_1``.
    """

    def __init__(self, size: int, rank: int, layers: int, generator: torch.Generator) -> None:
        super().__init__()
        rank = min(rank, size)
        self.first_RF = nn.Parameter(torch.randn(rank, size, generator=generator))
        self.second_FR = nn.Parameter(torch.zeros(size, rank))
        self.bias_F = nn.Parameter(torch.zeros(size))
        self.scale_PF = nn.Parameter(torch.ones(layers, size))
        self.shift_PF = nn.Parameter(torch.zeros(layers, size))

    def forward(self, h_TF: Tensor, place: int) -> Tensor:
        """Tokens ``[T, F]`` of the layer at ``place`` among those that share the block."""
        inner = h_TF @ self.first_RF.T @ self.second_FR.T + self.bias_F
        # Not relu(): its gradient at 0, where every unit starts, is 0, and nothing would ever be learnt.
        return (self.scale_PF[place] * inner + self.shift_PF[place]).clamp(min=0) + h_TF


class FactorTransform(nn.Module):
    """The network of all layers whose weights have one shape: standardise ``[x; g]``, then the residual blocks."""

    def __init__(self, d_out: int, d_in: int, rank: int, blocks: int, layers: int, generator: torch.Generator) -> None:
        super().__init__()
        self.d_in = d_in
        self.norm = RunningNorm(d_in + d_out)
        self.blocks = nn.ModuleList(ResidualBlock(d_in + d_out, rank, layers, generator) for _ in range(blocks))

    def forward(self, captured: Captured, place: int) -> tuple[Tensor, Tensor]:
        """Factors ``[T, d_in]`` and ``[T, d_out]`` of the tokens that count; in training they are taken note of first."""
        tokens_TF = joined(captured)
        if self.training:
            self.norm.update(tokens_TF)
        h_TF = self.norm(tokens_TF)
        for block in self.blocks:
            h_TF = block(h_TF, place)
        return h_TF[:, : self.d_in], h_TF[:, self.d_in :]


class HyperNetwork(nn.Module):
    r"""From captured tokens to a change of each edited weight.

    .. math:: \Delta W_p = -\alpha_p \sum_t \tilde g_t \tilde x_t^T, \qquad
              [\tilde x_t; \tilde g_t] = f([\hat x_t; \hat g_t],\, p)

    with :math:`x_t` the input and :math:`g_t` the gradient of the edit's loss at the output of the down-projection of layer
    ``p`` at token ``t``, standardised (:class:`RunningNorm`), and ``f`` the residual blocks. Tokens at which either is all
    zero (those behind the answer, or without a way to it) are left out. Layers whose weights have one shape share ``f`` and
    its statistics; each has its own scale, shift and learnt rate :math:`\alpha_p`.

    **Sign.** :math:`g_t` is the gradient of the loss, as it is in the released code, so :math:`\sum_t g_t x_t^T` points
    uphill. The minus sign (the paper's :math:`W - \alpha \tilde\nabla`) makes the untrained network, which is the identity,
    a gradient descent step on standardised factors. The released code *adds* the update with :math:`\alpha_p` starting at
    +1e-4, so that an untrained network climbs and the sign has to be learnt; ``edit_lr=-1e-4`` does the same here, and a
    released network is used by negating its rates.

    Source: Mitchell et al. 2022, arXiv 2110.11309; released code (shared networks, one hidden layer: two blocks).

    Args:
        shapes: ``(d_out, d_in)`` of the edited weights by layer.
        rank: of the residual blocks (published: 1920); the full size where that is smaller.
        blocks: number of residual blocks (published: 2).
        edit_lr: where the learnt rates start (published: 1e-4).
        seed: of the initialisation.

    Raises:
        EditError: for a rank or number of blocks below 1, no layers, or a rate of zero.
    """

    def __init__(
        self,
        shapes: Mapping[int, tuple[int, int]],
        rank: int = 1920,
        blocks: int = 2,
        edit_lr: float = 1e-4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not shapes:
            raise EditError("the hyper-network was given no layers; it needs at least one weight to change")
        for name, value in (("rank", rank), ("blocks", blocks)):
            if value < 1:
                raise EditError(f"the {name} of the hyper-network is {value}; it must be at least 1")
        if edit_lr == 0:
            raise EditError("edit_lr is 0, with which no edit changes anything; the published value is 1e-4")
        self.shapes = {layer: (int(shapes[layer][0]), int(shapes[layer][1])) for layer in sorted(shapes)}
        self.rank, self.block_count = rank, blocks
        generator = torch.Generator().manual_seed(seed)
        self.places = {layer: [p for p in self.shapes if self.shapes[p] == s].index(layer) for layer, s in self.shapes.items()}
        self.transforms = nn.ModuleDict(
            {
                _key(shape): FactorTransform(*shape, rank, blocks, list(self.shapes.values()).count(shape), generator)
                for shape in dict.fromkeys(self.shapes.values())
            }
        )
        self.rates_P = nn.Parameter(torch.full((len(self.shapes),), float(edit_lr)))

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers it was made for, ascending."""
        return tuple(self.shapes)

    @property
    def tokens_seen(self) -> int:
        """Tokens that the normaliser which saw fewest knows."""
        return min(int(transform.norm.count) for transform in self._transforms())

    def factors(self, layer: int, captured: Captured) -> tuple[Tensor, Tensor]:
        """Transformed inputs ``[T, d_in]`` and gradients ``[T, d_out]`` of a layer, without its rate."""
        transform = self.transforms[_key(self.shapes[layer])]
        factors: tuple[Tensor, Tensor] = transform(captured, self.places[layer])
        return factors

    def delta(self, layer: int, captured: Captured) -> Delta:
        """The change of a layer's weight, of rank at most the number of tokens; gradients flow through it."""
        x_TI, g_TO = self.factors(layer, captured)
        rate = self.rates_P[self.layers.index(layer)]
        return Delta.low_rank(-rate * g_TO.T, x_TI)

    def observe(self, captured: Mapping[int, Captured]) -> None:
        """Let the normalisers see tokens, without anything else."""
        for layer, tokens in captured.items():
            transform = self.transforms[_key(self.shapes[layer])]
            assert isinstance(transform, FactorTransform)
            transform.norm.update(joined(tokens))

    def _transforms(self) -> list[FactorTransform]:
        return [transform for transform in self.transforms.values() if isinstance(transform, FactorTransform)]


def joined(captured: Captured) -> Tensor:
    """``[x; g]`` of the tokens at which neither is all zero, ``[T, F]`` float32."""
    x_TI, g_TO = captured.inputs_TI.float(), captured.gradients_TO.float()
    counts_T = (x_TI != 0).any(1) & (g_TO != 0).any(1)
    return torch.cat([x_TI[counts_T], g_TO[counts_T]], dim=1)


def _key(shape: tuple[int, int]) -> str:
    """Name of the network of a shape; module names hold no dots."""
    return f"{shape[0]}x{shape[1]}"
