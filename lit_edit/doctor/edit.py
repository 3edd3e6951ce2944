"""One tiny edit and its undo: does the answer become likelier, and is everything afterwards as it was?

Legend: O = d_out, I = d_in.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from math import nan

import torch
from torch import Tensor

from lit_edit.algebra.inverses import Inverse
from lit_edit.delta import Delta
from lit_edit.doctor.case import Case, Check
from lit_edit.doctor.finding import Outcome, note, off, ok
from lit_edit.doctor.tokens import decoded
from lit_edit.editors.locate import LocateThenEdit
from lit_edit.errors import EditError, Rejected
from lit_edit.models.refusals import first_line
from lit_edit.passes.forward import logits_at, reading, run_until
from lit_edit.prompts import EditRows
from lit_edit.request import EditRequest
from lit_edit.solver import WithHistory, solve
from lit_edit.spectrum import Subspace
from lit_edit.targets import TargetOptions, Targets
from lit_edit.workbench import Workbench

PROMPT, SUBJECT = "{} was born in", "Grace Hopper"
ANSWERS = ("Rome", "Sydney", "Tokyo", "Boston")
"""Answers for a model whose own continuations are no words."""

OPTIONS = TargetOptions(steps=20, lr=0.2, contexts=0, kl_factor=0.0, weight_decay=0.0)
"""Few steps, no contexts, and nothing but the answer in the loss: it is to be seen that a change takes, not how well."""

_RANKS = range(4, 200)
"""Which of the model's own continuations to take an answer from: not what it says anyway, and no nonsense to it either."""

_RIDGE = 0.01
"""Weight of the identity next to the sampled keys: what they do not span is nearly free."""


class Sampled(LocateThenEdit):
    r"""Least squares with the keys of a few sentences for a second moment: no corpus, no factorisation of a large matrix.

    .. math:: \Delta = R K^T (C + \nu c I + K K^T)^{-1}, \qquad C = \tfrac1M H H^T,\; c = \overline{h_i^2}

    That is MEMIT with :math:`\lambda = 1`, which writes nearly all that is asked for.

    Args:
        keys: keys of the sentences by layer, ``[tokens, d_in]``.
    """

    needs_moments = False
    needs_contexts = False

    def __init__(self, keys: dict[int, Tensor]) -> None:
        super().__init__()
        self.sampled = keys

    def solve(self, layer: int, keys: Tensor, residuals: Tensor, weight: Tensor, avoid: Subspace | None = None) -> Delta:
        """See :meth:`LocateThenEdit.solve`."""
        sampled_HI = self.sampled[layer].double()
        base = _Multiple(_RIDGE * float(sampled_HI.square().mean()))
        return solve(WithHistory(base, sampled_HI.T / len(sampled_HI) ** 0.5), keys, residuals)


class _Multiple(Inverse):
    """The inverse of a multiple of the identity."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, columns_IN: Tensor) -> Tensor:
        return columns_IN.double() / self.factor


@dataclass(frozen=True)
class Tried:
    """What came of the edit."""

    answer: str = ""
    before: float = nan
    """Probability of the answer before the edit: ``exp`` of its mean log-probability per token."""
    aimed: float = nan
    """The same at the optimised target, before any weight changes."""
    after: float = nan
    """The same with the weights changed."""
    reached: float = nan
    """Part of the wanted change of the hidden state that is there with the weights changed."""
    kept: float = nan
    """Part of the change of the weights that the model's own copy of them shows, in its dtype."""
    same_weights: bool = False
    """Whether all edited weights are byte for byte the same after the undo."""
    same_logits: bool = False
    """Whether logits are."""
    refused: str = ""
    """Why nothing was written, where that is so."""


class Trial:
    """The edit, made once for all checks that look at it."""

    def __init__(self, case: Case) -> None:
        self.case = case

    @cached_property
    def result(self) -> Tried:
        """Make it; weights are put back even if something fails in between."""
        anatomy, layers = self.case.anatomy, self.case.layers
        shown = {layer: anatomy.weight(layer).clone() for layer in layers}
        try:
            return self._tried(shown)
        finally:
            with torch.no_grad():
                for layer, weight in shown.items():
                    anatomy.weight(layer).copy_(weight)

    def _tried(self, shown: dict[int, Tensor]) -> Tried:
        case, anatomy, layers = self.case, self.case.anatomy, self.case.layers
        logits = [case.logits(ids) for ids in case.rows]
        masters = {layer: weight.float().contiguous() for layer, weight in shown.items()}
        bench = Workbench(
            anatomy=anatomy,
            layers=layers,
            guards=(),
            master=masters.__getitem__,
            original=masters.__getitem__,
            options=OPTIONS,
            pad=case.pad,
        )
        try:
            found = self._written(bench, shown)
        except (Rejected, EditError) as reason:
            found = Tried(refused=str(reason))
        except Exception as error:
            found = Tried(refused=f"{type(error).__name__}: {first_line(error)}")
        bench.clear()
        same_weights = all(torch.equal(_bytes(anatomy.weight(layer)), _bytes(weight)) for layer, weight in shown.items())
        again = [case.logits(ids) for ids in case.rows]
        same_logits = all(torch.equal(_bytes(one), _bytes(two)) for one, two in zip(logits, again, strict=True))
        return replace(found, same_weights=same_weights, same_logits=same_logits)

    def _written(self, bench: Workbench, shown: dict[int, Tensor]) -> Tried:
        row = self._request()
        before = self._probability(row)
        editor = Sampled(self._keys())
        targets = editor.aim(bench, [row])
        assert targets is not None
        editor.change(bench, [row], targets)
        after = self._probability(row)
        reached, kept = self._reached(bench, row, targets), self._kept(bench, shown)
        return Tried(row.request.target_new, before, float(targets.probability_N[0]), after, reached, kept)

    def _request(self) -> EditRows:
        """The fact to write: an answer that the model finds possible, whatever world it knows."""
        case = self.case
        ids = case.encoder.encode(PROMPT.replace("{}", SUBJECT))[0]
        for token in case.logits(ids)[-1].argsort(descending=True)[_RANKS.start : _RANKS.stop].tolist():
            text = decoded(case.tokenizer, [*ids, token])[len(decoded(case.tokenizer, ids)) :]
            if not (text.startswith(" ") and text.strip().isalpha() and len(text) > 2):
                continue
            rows = case.encoder.rows(EditRequest(PROMPT, SUBJECT, text.strip()), ())
            if [label for _, label in rows.rewriting[0].labels] == [token]:
                return rows
        possible = [case.encoder.rows(EditRequest(PROMPT, SUBJECT, answer), ()) for answer in ANSWERS]
        return min(possible, key=self._probability)

    def _keys(self) -> dict[int, Tensor]:
        """What the edited layers read at the tokens of some sentences, ``[tokens, d_in]`` each."""
        anatomy, layers = self.case.anatomy, self.case.layers
        found: dict[int, list[Tensor]] = {layer: [] for layer in layers}

        def keeping(layer: int) -> Callable[[Tensor], None]:
            return lambda x: found[layer].append(x.flatten(0, -2).clone())

        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(reading(anatomy.down(layer), keeping(layer), None))
            for row in self.case.rows:
                run_until(anatomy, anatomy.blocks[layers[-1]], self.case.inputs(row))
        return {layer: torch.cat(kept) for layer, kept in found.items()}

    @torch.no_grad()
    def _probability(self, rows: EditRows) -> float:
        row = rows.rewriting[0]
        device = self.case.anatomy.device
        columns_P, labels_P = torch.tensor(row.labels, device=device).T
        logits_PV = logits_at(self.case.anatomy, self.case.inputs(row.ids), torch.zeros_like(columns_P), columns_P)
        return float((-torch.nn.functional.cross_entropy(logits_PV, labels_P)).exp())

    @staticmethod
    def _reached(bench: Workbench, row: EditRows, targets: Targets) -> float:
        wanted_1D = targets.values_ND - targets.start_ND
        there_1D = bench.reader([row]).values(bench.layers[-1]) - targets.start_ND
        return float((there_1D * wanted_1D).sum() / wanted_1D.square().sum())

    def _kept(self, bench: Workbench, shown: dict[int, Tensor]) -> float:
        """Share of the solved change in what the model shows: a projection, since rounding adds noise of its own."""
        along = total = 0.0
        for layer, change_OI in bench.changes.items():
            seen_OI = bench.anatomy.weight(layer).double() - shown[layer].double()
            along += float((seen_OI * change_OI.double()).sum())
            total += float(change_OI.double().square().sum())
        return along / total if total else float("nan")


def _bytes(value: Tensor) -> Tensor:
    """The bytes of a tensor: NaN equals NaN, and 0 is not -0."""
    return value.detach().contiguous().flatten().view(torch.uint8)


_SEE = "See what else is off: vocabulary, layers and numbers come first."


def target(trial: Trial) -> Outcome:
    """Whether a change of the hidden state at the subject can make the answer likelier."""
    found = trial.result
    values = {"answer": found.answer, "before": found.before, "target": found.aimed, "steps": OPTIONS.steps}
    told = f"{PROMPT.replace('{}', SUBJECT)} -> {found.answer}: {found.before:.2g}, at the target {found.aimed:.2g}"
    if found.refused:
        return off(f"no edit was made: {found.refused}", _SEE, **values)
    if not found.aimed > found.before * (1 + _rounding(trial)):
        advice = (
            "No change at the subject reaches the answer: choose lower layers with --model.layers, and make sure that the "
            "model attends to what comes before."
        )
        return off(told, advice, **values)
    if found.aimed < min(2 * found.before, 0.5):
        advice = "That is little. If the model is trained: lower --model.layers, more --model.targets.steps, another lr."
        return note(told, advice, **values)
    return ok(told, **values)


def written(trial: Trial) -> Outcome:
    """Whether the change of the weights moves the hidden state there, and makes the answer likelier."""
    found = trial.result
    values = {name: getattr(found, name) for name in ("before", "after", "reached", "kept", "refused")}
    if found.refused:
        return off("nothing was written", _SEE, **values)
    told = f"{_share(found.reached)} of the hidden state's change is there; probability {found.before:.2g} -> {found.after:.2g}"
    if not found.reached > 0.5:
        advice = "Writing into these weights does not change what the model computes; see 'parts' and 'inside'."
        return off(told, advice, **values)
    if found.kept < 0.9:
        advice = f"Its dtype shows {_share(found.kept)} of this change of the weights; evaluate with --dtype float32."
        return note(told, advice, **values)
    if not found.after > found.before * (1 + _rounding(trial)):
        advice = (
            "Other tokens read the same keys and have moved along. If the model is trained, give the second moments more "
            "weight (--model.editor.lam)."
        )
        return note(told, advice, **values)
    return ok(told, **values)


def _share(part: float) -> str:
    return f"{100 * part:.0f} %"


def _rounding(trial: Trial) -> float:
    return 0.1 * trial.case.allowed


def undo_weights(trial: Trial) -> Outcome:
    """Whether the edited weights are the same bytes again once the edit is taken back."""
    if not trial.result.same_weights:
        advice = "Float32 masters do not give these weights back (float64 ones, or shared between blocks); load another dtype."
        return off("weights differ once the edit is taken back", advice, same=False)
    return ok("edited weights are the same bytes again", same=True)


def undo_logits(trial: Trial) -> Outcome:
    """Whether logits are the same bytes again."""
    if not trial.result.same_logits:
        advice = "The model remembers what it was run on, or does not compute the same twice; see 'the same twice'."
        return off("logits differ once the edit is taken back", advice, same=False)
    return ok("logits are the same bytes again", same=True)


NAME = "edit and undo"


def checks(case: Case) -> tuple[Check, ...]:
    """The checks of one edit, which is made when the first of them asks for it."""
    trial = Trial(case)
    return (
        Check("target", lambda _: target(trial), needs_encoder=True),
        Check("written", lambda _: written(trial), needs_encoder=True),
        Check("weights undone", lambda _: undo_weights(trial), needs_encoder=True),
        Check("logits undone", lambda _: undo_logits(trial), needs_encoder=True),
    )
