"""Whether rows of unequal length say the same together as alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_edit.doctor.case import Case, Check, equal
from lit_edit.doctor.finding import Outcome, cannot, note, off, ok
from lit_edit.models.refusals import first_line
from lit_edit.passes.forward import at_least_float32
from lit_edit.passes.generation import tried_left_padding
from lit_edit.passes.trial import CANNOT_RUN, difference
from lit_edit.prompts import right_pad, right_pad_unmasked

_Pad = Callable[..., dict[str, Tensor]]


def _apart(case: Case, inputs: dict[str, Tensor], on_the_left: bool = False) -> float:
    """How far the logits of padded rows are from those of each row alone."""
    model: Any = case.model
    together_RTV = at_least_float32(model(**inputs, use_cache=False).logits)
    longest = together_RTV.shape[1]
    found = []
    for at, alone_TV in enumerate(case.alone):
        place = slice(longest - len(alone_TV), longest) if on_the_left else slice(0, len(alone_TV))
        found.append(difference(together_RTV[at, place], alone_TV))
    return float(torch.tensor(found).max())


def _right(case: Case, pad: _Pad, what: str) -> Outcome:
    apart = _apart(case, pad(case.rows, case.pad, case.anatomy.device))
    told = f"off by {apart:.1e} of the logits' spread"
    if not apart <= case.allowed:
        advice = (
            "Every pass over several rows pads on the right, and what one row says would depend on the others: this model "
            "cannot be edited; another attn_implementation in its configuration may help."
        )
        return cannot(f"{what} changes what a row says: {told}", advice, difference=apart, allowed=case.allowed)
    return ok(f"each row as alone: {equal(apart)}", difference=apart, allowed=case.allowed)


def right_masked(case: Case) -> Outcome:
    """Padding behind a row's end that the mask hides, as scores are computed."""
    return _right(case, right_pad, "masked padding on the right")


def right_seen(case: Case) -> Outcome:
    """Padding behind a row's end that is not masked, as keys and targets are: no token of a decoder looks to its right."""
    return _right(case, right_pad_unmasked, "padding on the right")


def left(case: Case) -> Outcome:
    """Padding before a row's start, with positions counted from its first token, as prompts are continued."""
    anatomy, longest = case.anatomy, max(map(len, case.rows))
    ids = [[case.pad] * (longest - len(row)) + row for row in case.rows]
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in case.rows], device=anatomy.device)
    inputs = {"input_ids": torch.tensor(ids, device=anatomy.device), "attention_mask": mask}
    if "position_ids" in inspect.signature(anatomy.model.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    apart = _apart(case, inputs, on_the_left=True)
    told = f"off by {apart:.1e} of the logits' spread"
    values = {"difference": apart, "allowed": case.allowed}
    if not apart <= case.allowed:
        return note(f"not exact: {told}", "Nothing has to be set: answers are generated in batches of equal length.", **values)
    return ok(f"with positions given, each row as alone: {equal(apart)}", **values)


def generation(case: Case) -> Outcome:
    """Whether the model's own ``generate`` can take prompts of unequal length."""
    if not callable(getattr(case.model, "generate", None)):
        return note("the model has no generate()", "Generated answers need one; teacher-forced scores do not.", difference=None)
    try:
        trial = tried_left_padding(case.anatomy, case.encoder)
    except CANNOT_RUN as error:
        advice = "Leave generated answers out (no 'lit-edit predict', no Generations callback); teacher-forced scores work."
        return off(f"the model's generate() fails ({type(error).__name__}: {first_line(error)})", advice, difference=None)
    values = {"difference": trial.difference, "allowed": trial.allowed}
    if not trial.same:
        advice = "Nothing has to be set: prompts of unequal length are generated apart, which is slower."
        return note(f"what it says moves with padding, by {trial.difference:.1e} of the logits' spread", advice, **values)
    return ok("prompts of unequal length are continued together", **values)


NAME = "padding"
CHECKS = (
    Check("right, masked", right_masked),
    Check("right, unmasked", right_seen),
    Check("left", left),
    Check("generation", generation, needs_encoder=True),
)
