"""The walk over the edited layers: which change of each weight makes the model write the targets?

Legend: N = requests, O = d_out, I = d_in, D = hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_edit.anatomy import Anatomy
from lit_edit.editors.base import Editor
from lit_edit.errors import EditError
from lit_edit.guards.base import Guard
from lit_edit.keys import KeyPass
from lit_edit.prompts import EditRows


class Rejected(Exception):
    """A batch that must not be written; the message is the reason for the journal."""


@dataclass
class Walked:
    """What one walk found, by layer; nothing of it is written yet."""

    deltas: dict[int, Tensor] = field(default_factory=dict)  # [O, I] float32
    keys: dict[int, Tensor] = field(default_factory=dict)  # [N, I] float32
    scalars: dict[str, float] = field(default_factory=dict)
    """Norms and removed shares by logged name."""


@dataclass(frozen=True)
class LayerWalk:
    r"""Solves layer by layer, shallow to deep, and leaves the model as it found it.

    At layer :math:`l_i` of ``L`` the residual is an equal share of what is still missing at the last edited layer,
    :math:`R_i = (Z - z) / (L - i)`, read on the model with the earlier layers of this batch already changed (Meng et al. 2022,
    arXiv 2210.07229, algorithm 1). Guards cut a change before the next layer sees it.
    """

    anatomy: Anatomy
    layers: tuple[int, ...]
    editor: Editor
    guards: Sequence[Guard]
    weight: Callable[[int], Tensor]
    """The float32 weight ``[d_out, d_in]`` of a layer before this batch."""
    original: Callable[[int], Tensor]
    """The unedited weight ``[d_out, d_in]`` of a layer."""
    pad: int
    """Token id for padding."""
    requests_at_once: int
    """Requests per forward pass."""
    max_change: float | None
    """Largest change of a layer as a multiple of its original norm; ``None`` for no limit."""
    tell: Callable[[str, int, int], None]
    """Told ``("layers", layer of the walk, layers)``."""

    @torch.no_grad()
    def __call__(self, rows: Sequence[EditRows], targets_ND: Tensor) -> Walked:
        """Walk.

        Args:
            rows: rows of every request.
            targets_ND: what the last edited block should put out at the subjects, ``[n, hidden]``.

        Raises:
            Rejected: if the batch must not be written; the model is as before then, too.
        """
        walked = Walked()
        reader = KeyPass(self.anatomy, rows, self.pad, self.requests_at_once)
        try:
            for index, layer in enumerate(self.layers):
                self.tell("layers", index + 1, len(self.layers))
                keys = reader.keys(layer)
                residuals = (targets_ND - reader.values(self.layers[-1])) / (len(self.layers) - index)
                residuals = self.anatomy.pull_back(layer, reader.written(), residuals)
                walked.keys[layer] = keys
                walked.deltas[layer] = self._change(layer, keys, residuals, walked.scalars)
                # The next layer has to see this one as it will be written.
                self.anatomy.weight(layer).copy_(self.weight(layer) + walked.deltas[layer])
        except (torch.linalg.LinAlgError, EditError) as error:
            raise Rejected(f"the solve failed: {error}") from error
        finally:
            for layer in self.layers:
                self.anatomy.weight(layer).copy_(self.weight(layer))
        return walked

    def _change(self, layer: int, keys: Tensor, residuals: Tensor, scalars: dict[str, float]) -> Tensor:
        """The guarded change of one layer, dense float32."""
        weight = self.weight(layer)
        for name, value in (("keys", keys), ("residuals", residuals)):
            if not bool(torch.isfinite(value).all()):
                raise Rejected(f"the {name} of layer {layer} are not finite")
        spaces = [guard.avoid(layer, weight) for guard in self.guards]
        avoid = next((space for space in spaces if space is not None), None)
        delta = self.editor.solve(layer, keys, residuals, avoid)
        before = float(delta.norm())
        for index, guard in enumerate(self.guards):
            name = type(guard).__name__
            if f"guard/{name}/removed_share/layer_{layer}" in scalars:
                name = f"{name}_{index}"
            delta = guard(layer, delta, weight)
            after = float(delta.norm())
            scalars[f"guard/{name}/removed_share/layer_{layer}"] = 1.0 - (after / before) ** 2 if before > 0 else 0.0
            before = after
        if not delta.is_finite():
            raise Rejected(f"the change of layer {layer} is not finite")
        share = before / float(self.original(layer).norm())
        if self.max_change is not None and share > self.max_change:
            raise Rejected(
                f"the change of layer {layer} is {share:.3g} times its original norm, over the budget of {self.max_change:g}"
            )
        scalars[f"delta/norm/layer_{layer}"] = before
        scalars[f"delta/residual_norm/layer_{layer}"] = float(residuals.norm(dim=1).mean())
        return delta.dense().float()
