"""MEND: a trained hyper-network turns the gradient of an edit into an update that edits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lit_edit.algebra.second_moment import SecondMoment
from lit_edit.delta import Delta
from lit_edit.editors.base import Editor
from lit_edit.errors import EditError
from lit_edit.mend.file import Trained, load_network, weight_hash
from lit_edit.mend.network import HyperNetwork
from lit_edit.passes.gradients import Captured

if TYPE_CHECKING:
    from lit_edit.prompts import EditRows, Encoder
    from lit_edit.request import EditRequest
    from lit_edit.targets import Targets
    from lit_edit.workbench import Workbench


class MEND(Editor):
    r"""One forward and one backward pass per batch; a trained network makes an edit of the gradient.

    .. math:: \Delta W_p = -s\,\alpha_p \sum_t \tilde g_t \tilde x_t^T

    with the factors and rates of :class:`lit_edit.mend.network.HyperNetwork`, summed over the tokens of all requests, and
    ``s`` the ``scale``. The loss is the mean negative log-likelihood over the answer tokens of the batch, on the weights
    from before the batch. No subject is needed. Train the network with ``lit-edit train-mend``.

    As released, network and statistics stay those of the original model while the stream moves away from it, and all
    requests of a batch share one loss: a batch of ``n`` shrinks every gradient to about a share ``1/n`` of what a network
    trained on single edits has seen. ``reduction="request"`` gives every request a loss of its own instead, so that a batch
    is the sum of the updates that its requests would get alone.

    **Restriction:** only the MLP down-projections of the given layers are edited; the published setting edits the
    projections into the MLPs of the last three blocks as well.

    Source: Mitchell et al. 2022, arXiv 2110.11309. The network is not part of a run's checkpoint: it stays in its file.

    Args:
        network: file of a network that was trained on this model and these layers.
        scale: factor of every update (``lr_scale``; published: 1).
        reduction: ``batch`` (released) or ``request``: what the loss is the mean of.

    Raises:
        EditError: if ``scale`` is not positive; before the first batch, if the file is missing or damaged, or the network
            belongs to another model, layer set or shape.
    """

    needs_moments = False
    needs_contexts = False

    def __init__(self, network: str, scale: float = 1.0, reduction: Literal["batch", "request"] = "batch") -> None:
        super().__init__()
        if not scale > 0:
            raise EditError(f"MEND's scale is {scale:g}; the factor of its updates must be positive")
        if reduction not in ("batch", "request"):
            raise EditError(f"MEND's reduction is {reduction!r}; it is 'batch' or 'request'")
        self.path, self.scale, self.reduction = network, scale, reduction
        # In a tuple: a module held as an attribute would go into every checkpoint.
        self._loaded: tuple[HyperNetwork, Trained] | None = None
        self._layers: dict[int, tuple[int, int]] = {}

    @property
    def _name(self) -> str:
        return f"the hyper-network {self.path}"

    def loaded(self) -> tuple[HyperNetwork, Trained]:
        """The network and what it belongs to; read once."""
        if self._loaded is None:
            self._loaded = load_network(self.path)
        return self._loaded

    def rows(self, encoder: Encoder, request: EditRequest, contexts: Sequence[str]) -> EditRows:
        """See :meth:`Editor.rows`; the bare prompt with its answer."""
        return encoder.answer_rows(request)

    def allocate(self, layer: int, d_out: int, d_in: int) -> None:
        """See :meth:`Editor.allocate`; nothing is carried, but a network that does not fit is refused early."""
        network, trained = self.loaded()
        self._layers[layer] = (d_out, d_in)
        wanted = network.shapes.get(layer)
        if wanted is None:
            raise EditError(
                f"{self._name} was trained for the layers {list(network.layers)} of {trained.pretrained}, not for layer "
                f"{layer}; set --model.layers to those or train another"
            )
        if wanted != (d_out, d_in):
            raise EditError(
                f"{self._name} was trained for a weight of {wanted[0]} x {wanted[1]} in layer {layer}, and this model's is "
                f"{d_out} x {d_in}: it belongs to another model ({trained.pretrained})"
            )

    def prepare(self, layer: int, weight: Tensor, moment: SecondMoment | None) -> None:
        """See :meth:`Editor.prepare`; checks that the network belongs to these weights and layers."""
        network, trained = self.loaded()
        if missing := sorted(set(network.layers) - set(self._layers)):
            raise EditError(
                f"{self._name} was trained for the layers {list(network.layers)}, and layer {missing[0]} is not edited here; "
                "set --model.layers to those or train another"
            )
        if trained.weights[layer] != weight_hash(weight):
            raise EditError(
                f"{self._name} was trained on other weights of layer {layer} ({trained.pretrained}); train one on this model, "
                "loaded with the same --model.dtype"
            )

    @torch.no_grad()
    def change(self, bench: Workbench, rows: Sequence[EditRows], aimed: Targets | None) -> None:
        """See :meth:`Editor.change`."""
        network = self.loaded()[0].to(bench.anatomy.device)
        captured, loss = self._capture(bench, rows)
        bench.note("mend/loss", loss)
        for layer, tokens in captured.items():
            left, right = network.delta(layer, tokens).factors
            bench.write(layer, Delta.low_rank(self.scale * left, right))

    def _capture(self, bench: Workbench, rows: Sequence[EditRows]) -> tuple[dict[int, Captured], float]:
        """Tokens of all requests as if they had gone through the model together, and the mean loss."""
        answers = [row.rewriting[0] for row in rows]
        total = sum(len(row.labels) for row in answers)
        inputs: dict[int, list[Tensor]] = {layer: [] for layer in bench.layers}
        gradients: dict[int, list[Tensor]] = {layer: [] for layer in bench.layers}
        mean, size = 0.0, bench.options.requests_at_once
        portions = [answers[at : at + size] for at in range(0, len(answers), size)]
        for some, (found, loss) in zip(portions, bench.capture(portions, answers_only=False), strict=True):
            labels = sum(len(row.labels) for row in some)
            mean += loss * labels / total
            # A mini-batch's loss is the mean over its own answer tokens.
            weights = [labels / (total if self.reduction == "batch" else len(row.labels)) for row in some]
            lengths = torch.tensor([len(row.ids) for row in some], device=bench.anatomy.device)
            weight_T = torch.tensor(weights, device=bench.anatomy.device).repeat_interleave(lengths)
            for layer, tokens in found.items():
                inputs[layer].append(tokens.inputs_TI)
                gradients[layer].append(weight_T[:, None] * tokens.gradients_TO)
        return {layer: Captured(torch.cat(inputs[layer]), torch.cat(gradients[layer])) for layer in bench.layers}, mean
