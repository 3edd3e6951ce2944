"""Partial forward passes against whole ones: what editing leaves out must not change what it reads."""

from __future__ import annotations

import torch

from lit_edit.anatomy import PACK
from lit_edit.doctor.case import Case, Check, equal
from lit_edit.doctor.finding import Outcome, cannot, note, off, ok
from lit_edit.passes.forward import at_least_float32, block_outputs, last_mlp_at, logits_at, reading, starting_after
from lit_edit.passes.packing import pack_inputs, packed_logits_at, plant, tried_packing
from lit_edit.passes.suffix import suffixes, tried_continuing
from lit_edit.passes.trial import difference
from lit_edit.prompts import right_pad_unmasked

_UNUSABLE = "Targets and keys would be those of another model: this family cannot be edited."


def _told(apart: float) -> str:
    return f"off by {apart:.1e} of the logits' spread"


def causal(case: Case) -> Outcome:
    """Whether what stands behind a token leaves everything before it alone, over a whole sentence."""
    row = case.rows[2]
    cut = len(row) // 2
    other = row[:cut] + [(token + 1) % case.anatomy.vocabulary for token in row[cut:]]
    apart = difference(case.logits(other)[:cut], case.alone[2][:cut])
    if not apart <= case.allowed:
        advice = "Editing needs a causal decoder: rows are ended where nothing more is read, and padded behind."
        return cannot(f"a token sees what comes after it: {_told(apart)}", advice, difference=apart)
    return ok(f"no token sees what comes after it: {equal(apart)}", difference=apart)


def stop_early(case: Case) -> Outcome:
    """Whether leaving a pass after a block gives that block's output in a whole pass."""
    anatomy, row, layer = case.anatomy, case.rows[0], case.layers[-1]
    early_TD = at_least_float32(block_outputs(anatomy, case.inputs(row), layer)[0])
    whole: list[torch.Tensor] = []
    with reading(anatomy.blocks[layer], None, whole.append):
        case.logits(row)
    apart = difference(early_TD, at_least_float32(whole[0][0]))
    if not apart <= case.allowed:
        return cannot(f"the output of block {layer} is off by {apart:.1e}", _UNUSABLE, difference=apart)
    return ok(f"after block {layer}: {equal(apart)}", difference=apart)


def start_late(case: Case) -> Outcome:
    """Whether a pass that starts from a block's output ends in the logits of a whole one."""
    anatomy, row, layer = case.anatomy, case.rows[0], case.layers[-1]
    hidden_1TD = block_outputs(anatomy, case.inputs(row), layer)
    with starting_after(anatomy, layer, hidden_1TD):
        late_TV = case.logits(row)
    apart = difference(late_TV, case.alone[0])
    if not apart <= case.allowed:
        return cannot(f"started behind block {layer}, {_told(apart)}", _UNUSABLE, difference=apart)
    return ok(f"behind block {layer}: {equal(apart)}", difference=apart)


def picked(case: Case) -> Outcome:
    """Whether logits at some positions alone, the last MLP run only there, are those of a whole pass."""
    anatomy, row = case.anatomy, case.rows[0]
    columns_P = torch.tensor(sorted({len(row) // 2, len(row) - 1}), device=anatomy.device)
    rows_P = torch.zeros_like(columns_P)
    with last_mlp_at(anatomy, rows_P, columns_P):
        some_PV = logits_at(anatomy, case.inputs(row), rows_P, columns_P)
    apart = difference(some_PV, case.alone[0][columns_P])
    if not apart <= case.allowed:
        return cannot(f"logits formed at some positions only are others: {_told(apart)}", _UNUSABLE, difference=apart)
    return ok(f"only where they are read: {equal(apart)}", difference=apart)


def packs(case: Case) -> Outcome:
    """Whether rows that begin alike are run as trees of tokens, or why not."""
    anatomy = case.anatomy
    if not anatomy.packs:
        size = min(PACK, anatomy.positions)
        trial = tried_packing(anatomy, size, size // 2, 0)
        why = trial.why_not or f"{_told(trial.difference)} (a window, or positions of its own)"
        advice = "Nothing has to be set: rows are run side by side, which is slower where they begin alike."
        return note(f"not used: {why}", advice, used=False, difference=trial.difference, why_not=why)
    row, device = case.rows[0], anatomy.device
    half = len(row) // 2
    rows = sorted([row, row[:half] + case.rows[1][:4], row[: half + 1]])
    (pack,) = plant(rows, 3 * len(row) + 4)
    # By their column in the pack: no position twice.
    spots = {pack.paths[at][column]: (at, column) for at in range(3) for column in (half - 1, len(rows[at]) - 1)}
    columns_P = torch.tensor(list(spots), device=device)
    inputs = pack_inputs([pack], case.pad, device, anatomy.dtype)
    found_PV = packed_logits_at(anatomy, inputs, torch.zeros_like(columns_P), columns_P)
    wanted_PV = torch.stack([case.logits(rows[at])[column] for at, column in spots.values()])
    apart = difference(found_PV, wanted_PV)
    if not apart <= case.allowed:
        advice = "Scores and keys of rows that begin alike would be wrong; the trial that chose this way is too easy for it."
        return off(f"used, but {_told(apart)}", advice, used=True, difference=apart, why_not="")
    return ok(f"used for rows that begin alike: {equal(apart)}", used=True, difference=apart, why_not="")


def continuation(case: Case) -> Outcome:
    """Whether rows are continued from cached keys and values behind the edited layers, or why not."""
    anatomy, layer = case.anatomy, case.layers[-1]
    if not anatomy.continues:
        trial = tried_continuing(anatomy)
        why = trial.why_not or f"off by {trial.difference:.1e} of the largest logit"
        advice = "Nothing has to be set: whole rows are run at every step of the target optimisation, which is slower."
        return note(f"not used: {why}", advice, used=False, difference=trial.difference, why_not=why)
    rows = case.rows
    starts = [max(len(row) // 2 - at, 0) for at, row in enumerate(rows)]
    cut = suffixes(anatomy, rows, starts, layer, case.pad)
    with starting_after(anatomy, layer, cut.hidden_RSD):
        found_RSV = at_least_float32(anatomy.model(**cut.inputs(), use_cache=False).logits)
    apart = []
    for at, (row, start) in enumerate(zip(rows, cut.start_R.tolist(), strict=True)):
        apart.append(difference(found_RSV[at, : len(row) - start], case.alone[at][start:]))
    worst = float(torch.tensor(apart).max())
    if not worst <= case.allowed:
        advice = "Targets would be optimised on another model; the trial that chose this way is too easy for it."
        return off(f"used behind block {layer}, but {_told(worst)}", advice, used=True, difference=worst, why_not="")
    return ok(f"used behind block {layer}: {equal(worst)}", used=True, difference=worst, why_not="")


def all_at_once(case: Case) -> Outcome:
    """Whether stopping early holds for several padded rows, too, as keys are read."""
    anatomy, layer = case.anatomy, case.layers[-1]
    inputs = right_pad_unmasked(case.rows, case.pad, anatomy.device)
    together_RTD = at_least_float32(block_outputs(anatomy, inputs, layer))
    apart = []
    for at, row in enumerate(case.rows):
        alone_TD = at_least_float32(block_outputs(anatomy, case.inputs(row), layer)[0])
        apart.append(difference(together_RTD[at, : len(row)], alone_TD))
    worst = float(torch.tensor(apart).max())
    if not worst <= case.allowed:
        return cannot(f"in a batch, the output of block {layer} is off by {worst:.1e}", _UNUSABLE, difference=worst)
    return ok(f"as alone: {equal(worst)}", difference=worst)


NAME = "partial passes"
CHECKS = (
    Check("causal", causal),
    Check("stopped early", stop_early),
    Check("in a batch", all_at_once),
    Check("started late", start_late),
    Check("picked logits", picked),
    Check("packs", packs),
    Check("continuation", continuation),
)
