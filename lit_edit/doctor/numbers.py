"""Whether the numbers are sound: finite, far from what their dtype holds, repeatable, and solvable on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_edit.doctor.case import Case, Check
from lit_edit.doctor.finding import Outcome, cannot, note, off, ok
from lit_edit.models.refusals import first_line
from lit_edit.passes.forward import reading
from lit_edit.solver import solve

_ROOM = 8.0
"""How far below the largest number of its dtype a hidden state should stay: targets move it by a multiple of itself."""

_ELSEWHERE = "Edits are solved in float64; run on a CPU or a CUDA device."


def weights(case: Case) -> Outcome:
    """Whether all weights are finite."""
    wrong: dict[str, int] = {}
    total = 0
    for name, parameter in case.model.named_parameters():
        total += parameter.numel()
        if not parameter.is_floating_point() or parameter.device.type == "meta":
            continue
        # A sum over a finite tensor is finite unless it overflows: the exact count is made only where it is needed.
        if not bool(torch.isfinite(parameter.detach().double().sum() if parameter.numel() < 2**20 else parameter.sum())):
            bad = int((~torch.isfinite(parameter)).sum())
            if bad:
                wrong[name] = bad
    if wrong:
        name, bad = next(iter(wrong.items()))
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        advice = "Load the checkpoint anew; if it is bfloat16 and was loaded as float16, use --dtype bfloat16 or float32."
        return cannot(f"NaN or Inf in {name} ({bad} of them){more}", advice, wrong=wrong)
    return ok(f"all {total} are finite", wrong={})


def device(case: Case) -> Outcome:
    """Whether the whole model is on one device."""
    places = sorted({str(parameter.device) for parameter in case.model.parameters()})
    if len(places) > 1 or places == ["meta"]:
        advice = "Load it whole onto one device, without device_map; --dtype bfloat16 halves what it takes."
        return cannot(f"spread over {', '.join(places)}", advice, devices=places)
    return ok(f"all on {places[0]}", devices=places)


def finite(case: Case) -> Outcome:
    """Whether the model's predictions are finite."""
    bad = sum(int((~torch.isfinite(logits_TV)).sum()) for logits_TV in case.alone)
    if bad:
        advice = "Hidden states overflow: use --dtype bfloat16 or float32."
        return cannot(f"{bad} logits are NaN or Inf", advice, bad=bad)
    return ok("all logits are finite", bad=0)


def headroom(case: Case) -> Outcome:
    """How large hidden states become, next to the largest number of their dtype."""
    largest = 0.0
    sizes: list[Tensor] = []
    handles = [reading(block, None, lambda x: sizes.append(x.abs().max())) for block in case.anatomy.blocks]
    for handle in handles:
        handle.__enter__()
    try:
        for row in case.rows:
            case.logits(row)
    finally:
        for handle in handles:
            handle.__exit__(None, None, None)
    largest = float(torch.stack(sizes).max())
    most = torch.finfo(case.anatomy.dtype).max
    name = str(case.anatomy.dtype).removeprefix("torch.")
    values = {"largest": largest, "holds": most}
    if not largest <= most / _ROOM:
        advice = "A changed hidden state may overflow: use --dtype bfloat16 or float32."
        return off(f"as large as {largest:.2g}, and {name} holds {most:.2g}", advice, **values)
    return ok(f"at most {largest:.2g}, and {name} holds {most:.2g}", **values)


def precision(case: Case) -> Outcome:
    """The smallest relative change of a weight that the model's dtype can show."""
    kind = case.anatomy.dtype
    name, step = str(kind).removeprefix("torch."), torch.finfo(kind).eps
    if step > 1e-4:
        found = f"{name} shows changes of a weight from {step / 2:.1e} of it on; float32 masters keep smaller ones"
        return note(found, "Small edits may not show before they add up; evaluate with --dtype float32.", dtype=name, step=step)
    return ok(f"{name} shows changes of a weight from {step / 2:.0e} of it on", dtype=name, step=step)


def twice(case: Case) -> Outcome:
    """Whether the same row gives the same bytes twice."""
    row = case.rows[0]
    one, two = case.logits(row), case.logits(row)
    if not torch.equal(one, two):
        apart = float((one - two).abs().max())
        advice = "Runs that resume will not be bit-equal to ones that never stopped; look for dropout, noise or kept state."
        return off(f"the same row gives other logits the second time (by {apart:.1e})", advice, difference=apart)
    return ok("the same row gives the same bytes twice", difference=0.0)


def float64(case: Case) -> Outcome:
    """Whether the device solves in float64."""
    place = case.anatomy.device
    try:
        keys_NI = torch.eye(3, 5, device=place)
        delta = solve(lambda columns_IN: columns_IN, keys_NI, torch.ones(3, 2, device=place), mu=0.0).dense()
        apart = float((delta - torch.ones(2, 3, device=place, dtype=torch.float64) @ keys_NI.double()).abs().max())
    except (RuntimeError, TypeError) as error:
        return cannot(f"{place} has no float64 ({first_line(error)})", _ELSEWHERE, device=str(place))
    if not apart <= 1e-12:
        return cannot(f"{place} solves only to {apart:.0e}", _ELSEWHERE, device=str(place))
    return ok(f"{place} solves in float64", device=str(place))


NAME = "numbers"
CHECKS = (
    Check("weights", weights, needs_anatomy=False),
    Check("device", device, needs_anatomy=False),
    Check("logits", finite),
    Check("hidden states", headroom),
    Check("precision", precision),
    Check("the same twice", twice),
    Check("float64", float64),
)
