"""Fine-tuning baselines: FT, FT-L (in a box) and FT-M (mean over tokens).

Legend: O = d_out, I = d_in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from lit_edit.delta import Delta
from lit_edit.editors.base import Editor
from lit_edit.errors import EditError
from lit_edit.models.decoder import is_transposed
from lit_edit.passes.descent import DescentOptions, Shares, descend, mean_of_rows, mean_of_tokens
from lit_edit.prompts import EditRows, Encoder, Row
from lit_edit.targets import Targets
from lit_edit.workbench import Workbench

if TYPE_CHECKING:
    from lit_edit.request import EditRequest


class FT(Editor):
    r"""Adam on the edited matrices themselves.

    .. math:: \min_W \; \frac1N \sum_{i=1}^{N} \frac{1}{T_i} \sum_{j=1}^{T_i} -\log p_W(t_{ij} \mid x_i, t_{i,<j})

    over the ``N`` requests of a mini-batch with prompts ``x`` and answers of ``T`` tokens; all edited layers are trained
    together, from the weights that earlier batches left. A mini-batch with a loss below ``enough`` is skipped, and training
    ends once the mean of an epoch is. Nothing is remembered between batches and nothing protects what was known before; the
    change has full rank.

    Source: the baseline of Meng et al. 2022 (ROME, arXiv 2202.05262), with the released code's constants. Three deviations:

    * The released code reads *all* tokens of an answer at the prompt's last position, which means what it should for
      one-token answers only. Here every token is read where it is predicted; ``prompt_last=True`` reproduces the released
      loss, on which published tables depend.
    * The released code also trains biases of the edited projections where a family has them (GPT-2, GPT-J); this library
      edits matrices only. :func:`lit_edit.passes.descent.descend` trains any parameters.
    * With Llama's tokenizer the released code trains the BOS token and the padding of the answers as if they were answers;
      that is not reproduced.

    A guard cuts the finished change; one that wants the solve itself to be constrained gets the same projection here, since
    there is no closed form to constrain.

    Args:
        lr: Adam's learning rate (5e-4 for all published models).
        steps: most epochs.
        minibatch: requests per update (64; 128 in ROME's code, 1 in EasyEdit for Llama-3).
        enough: loss at which training ends.
        weight_decay: Adam's L2 penalty (0 wherever published; FT-W's schedule never took effect in the released code).
        prompt_last: read all answer tokens at the prompt's last position, as released.

    Raises:
        EditError: if a value is out of its range.
    """

    needs_moments = False
    needs_contexts = False
    runs_sharded = False

    def __init__(
        self,
        lr: float = 5e-4,
        steps: int = 25,
        minibatch: int = 64,
        enough: float = 1e-2,
        weight_decay: float = 0.0,
        prompt_last: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not lr > 0:
            raise EditError(f"{name}'s lr is {lr:g}; the learning rate must be positive")
        for what, count in (("steps", steps), ("minibatch", minibatch)):
            if count < 1:
                raise EditError(f"{name}'s {what} is {count}; it must be at least 1")
        for what, value in (("enough", enough), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise EditError(f"{name}'s {what} is {value:g}; it must not be negative")
        self.options = DescentOptions(steps, lr, minibatch, enough, weight_decay)
        self.prompt_last = prompt_last
        self.shares: Shares = mean_of_rows

    def rows(self, encoder: Encoder, request: EditRequest, contexts: Sequence[str]) -> EditRows:
        """See :meth:`Editor.rows`: the bare prompt with its answer; no subject is needed."""
        return encoder.answer_rows(request)

    def asked(self, row: EditRows) -> Row:
        """The row that is trained on for a request."""
        if not self.prompt_last:
            return row.rewriting[0]
        last = len(row.kl.ids) - 1
        return Row(row.kl.ids, last, tuple((last, token) for _, token in row.rewriting[0].labels))

    def change(self, bench: Workbench, rows: Sequence[EditRows], aimed: Targets | None) -> None:
        """See :meth:`Editor.change`; the changes are dense."""
        anatomy, name = bench.anatomy, type(self).__name__.lower()
        before = {layer: bench.weight(layer) for layer in bench.layers}
        turned = {layer: is_transposed(anatomy.down(layer)) for layer in bench.layers}
        losses: list[float] = []

        def follow(epoch: int, loss: float) -> None:
            losses.append(loss)
            bench.tell("epochs", epoch + 1, self.options.steps)

        trained = descend(
            anatomy,
            {anatomy.weight_name(layer): weight.T if turned[layer] else weight for layer, weight in before.items()},
            [self.asked(row) for row in rows],
            bench.pad,
            self.options,
            self.shares,
            follow,
        )
        bench.note(f"{name}/loss", losses[-1])
        bench.note(f"{name}/epochs", float(len(losses)))
        for layer, weight_OI in before.items():
            after = trained[anatomy.weight_name(layer)]
            bench.write(layer, Delta.from_dense((after.T if turned[layer] else after) - weight_OI))


class FTL(FT):
    r"""Fine-tuning inside a box: after every update each weight is clamped.

    .. math:: \|W - W_0\|_\infty \le \epsilon

    ``W_0`` are the weights at the **start of the batch**, as in the released code: the box moves with every batch, so that it
    limits a batch, not a stream.

    Source: the constrained baseline of Meng et al. 2022 (ROME, arXiv 2202.05262), after Zhu et al. 2020 (arXiv 2012.00363).
    Deviations as in :class:`FT`.

    Args:
        epsilon: largest change of a weight per batch (5e-4 for GPT-2-XL, 5e-5 for GPT-J).
        lr: see :class:`FT`.
        steps: see :class:`FT`.
        minibatch: see :class:`FT`.
        enough: see :class:`FT`.
        weight_decay: see :class:`FT`.
        prompt_last: see :class:`FT`.

    Raises:
        EditError: if a value is out of its range.
    """

    def __init__(
        self,
        epsilon: float,
        lr: float = 5e-4,
        steps: int = 25,
        minibatch: int = 64,
        enough: float = 1e-2,
        weight_decay: float = 0.0,
        prompt_last: bool = False,
    ) -> None:
        super().__init__(lr, steps, minibatch, enough, weight_decay, prompt_last)
        if not epsilon > 0:
            raise EditError(f"FTL's epsilon is {epsilon:g}; the largest change of a weight must be positive")
        self.options = replace(self.options, epsilon=epsilon)


class FTM(FT):
    r"""Fine-tuning on the answer with the prompt masked: :class:`FT` with every answer token read where it is predicted.

    That is what :class:`FT` does here anyway, since the released loss of the other baselines is right for one-token answers
    only (``prompt_last``); the name is kept for the published method. ``average="tokens"`` is ordinary cross-entropy over all
    answer tokens of a mini-batch instead, under which long answers weigh more:

    .. math:: \min_W \; \frac{1}{\sum_i T_i} \sum_i \sum_{j=1}^{T_i} -\log p_W(t_{ij} \mid x_i, t_{i,<j})

    With one request to a mini-batch, EasyEdit's setting for Llama-3, the two agree. FT-M is one layer in the literature: name
    it with ``--model.layers``.

    Source: Zhang et al. 2024 (arXiv 2401.01286), ``objective_optimization: target_new`` in EasyEdit.

    Args:
        lr: see :class:`FT`.
        steps: see :class:`FT`.
        minibatch: see :class:`FT`.
        enough: see :class:`FT`.
        weight_decay: see :class:`FT`.
        average: ``rows`` for the mean over requests of the mean over their tokens (EasyEdit's code), ``tokens`` for the mean
            over all answer tokens of a mini-batch.

    Raises:
        EditError: if a value is out of its range.
    """

    def __init__(
        self,
        lr: float = 5e-4,
        steps: int = 25,
        minibatch: int = 64,
        enough: float = 1e-2,
        weight_decay: float = 0.0,
        average: Literal["rows", "tokens"] = "rows",
    ) -> None:
        super().__init__(lr, steps, minibatch, enough, weight_decay)
        if average not in ("tokens", "rows"):
            raise EditError(f"FTM's average is {average!r}; it must be rows or tokens")
        self.shares = mean_of_tokens if average == "tokens" else mean_of_rows
