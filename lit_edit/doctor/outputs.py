"""What hooks see inside the model, and whether what the MLP writes arrives in the residual stream."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from lit_edit.doctor.case import Case, Check
from lit_edit.doctor.finding import Outcome, off, ok
from lit_edit.doctor.parts import spans
from lit_edit.models.decoder import hidden_of, in_features, norm_factors, out_features
from lit_edit.passes.forward import at_least_float32, reading, run_until

_STEP = 0.02
"""Size of the change that is tried, relative to the MLP's output: small enough for a norm to be linear."""


def block_output(case: Case) -> Outcome:
    """Whether all blocks return hidden states, or all return tuples that begin with them."""
    anatomy = case.anatomy
    kinds: dict[int, str] = {}
    shapes: dict[int, bool] = {}
    row = case.rows[0]

    def looking(layer: int) -> object:
        def look(_module: object, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            kinds[layer] = type(output).__name__ if isinstance(output, tuple) else "tensor"
            shapes[layer] = tuple(hidden_of(output).shape) == (1, len(row), anatomy.d_model)

        return anatomy.blocks[layer].register_forward_hook(look)

    handles: list[object] = [looking(layer) for layer in range(len(anatomy.blocks))]
    try:
        case.logits(row)
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]
    expected = "tuple" if anatomy.tuple_output else "tensor"
    others = [layer for layer, kind in kinds.items() if (kind != "tensor") != anatomy.tuple_output or not shapes[layer]]
    if others or len(kinds) < len(anatomy.blocks):
        silent = sorted(set(range(len(anatomy.blocks))) - set(kinds))
        what = f"{spans(others)} return something else" if others else f"{spans(silent)} do not run"
        advice = "Partial passes would hand on the wrong thing; the model's class has to return the same from every block."
        return off(f"block 0 returns a {expected}, but {what}", advice, kind=expected, others=others, silent=silent)
    return ok(f"a {expected} from all {len(kinds)} blocks", kind=expected, others=[], silent=[])


def hooks(case: Case) -> Outcome:
    """Whether every edited down-projection runs once per pass and shows its input and output at every token."""
    anatomy, row = case.anatomy, case.rows[0]
    inputs: dict[int, list[tuple[int, int]]] = {layer: [] for layer in case.layers}
    outputs: dict[int, list[tuple[int, int]]] = {layer: [] for layer in case.layers}

    def shape(x: Tensor) -> tuple[int, int]:
        return x.numel() // x.shape[-1], x.shape[-1]  # some families flatten rows and positions

    with ExitStack() as stack:
        for layer in case.layers:
            seen_in, seen_out = inputs[layer], outputs[layer]
            stack.enter_context(
                reading(
                    anatomy.down(layer),
                    lambda x, to=seen_in: to.append(shape(x)),  # type: ignore[misc]
                    lambda x, to=seen_out: to.append(shape(x)),  # type: ignore[misc]
                )
            )
        case.logits(row)
    wrong = []
    for layer in case.layers:
        down = anatomy.down(layer)
        expected = ([(len(row), in_features(down))], [(len(row), out_features(down))])
        if (inputs[layer], outputs[layer]) != expected:
            wrong.append(layer)
    if wrong:
        times = len(inputs[wrong[0]])
        what = f"ran {times} times" if times != 1 else "showed other shapes than tokens by width"
        advice = f"Keys cannot be read there; leave {spans(wrong)} out of --model.layers."
        return off(f"in {spans(wrong)} the down-projection {what} in one pass", advice, wrong=wrong)
    return ok(f"input and output of the down-projection are seen in {spans(list(case.layers))}", wrong=[])


def residual(case: Case) -> Outcome:
    r"""Whether a change of the down-projection's output moves the block's output by what was wanted.

    A random change :math:`c` is wanted of the block's output and pulled back to the down-projection
    (:meth:`Anatomy.pull_back`); found is :math:`\langle c, m \rangle / \langle c, c \rangle` with :math:`m` what the block's
    output moved by. 1 is right.
    """
    slopes = {layer: _slope(case, layer) for layer in case.layers}
    worst = max(slopes, key=lambda layer: abs(slopes[layer] - 1) if slopes[layer] == slopes[layer] else float("inf"))
    told = f"{100 * slopes[worst]:.1f} % of a wanted change arrives"
    values = {"slopes": slopes}
    if not abs(slopes[worst] - 1) <= 0.05:
        advice = f"What is written there is not what the solve asks for; leave layer {worst} out of --model.layers."
        return off(f"in layer {worst}, {told}", advice, **values)
    way = "straight" if case.anatomy.after_mlp_name is None else f"through {case.anatomy.after_mlp_name}"
    return ok(f"the MLP adds {way} to it: {told}", **values)


def _slope(case: Case, layer: int) -> float:
    anatomy = case.anatomy
    inputs = case.inputs(case.rows[0])
    block, down = anatomy.blocks[layer], anatomy.down(layer)
    seen: list[Tensor] = []
    written: list[Tensor] = []
    with reading(down, None, lambda x: written.append(x.clone())), reading(block, None, lambda x: seen.append(x.clone())):
        run_until(anatomy, block, inputs)
    down_ND = at_least_float32(written[0].flatten(0, -2))
    generator = torch.Generator().manual_seed(0)
    wanted_ND = torch.randn(down_ND.shape, generator=generator).to(down_ND)
    if anatomy.after_mlp_name is not None:
        # A norm cannot move its output along its own input: nothing is asked for there.
        gain_1D, _ = norm_factors(block.get_submodule(anatomy.after_mlp_name), written[0].flatten(0, -2))
        along_ND = down_ND / gain_1D
        share_N1 = (wanted_ND * along_ND).sum(1, keepdim=True) / along_ND.square().sum(1, keepdim=True)
        wanted_ND = wanted_ND - along_ND * share_N1
    size = _STEP * down_ND.norm() if anatomy.after_mlp_name is None else _STEP * at_least_float32(seen[0]).norm()
    wanted_ND = wanted_ND * size / wanted_ND.norm()
    change_ND = anatomy.pull_back(layer, down_ND, wanted_ND)

    def add(_module: object, _args: object, output: Tensor) -> Tensor:
        return output + change_ND.reshape(output.shape).to(output.dtype)

    handle = down.register_forward_hook(add)
    try:
        with reading(block, None, lambda x: seen.append(x.clone())):
            run_until(anatomy, block, inputs)
    finally:
        handle.remove()
    moved_ND = (at_least_float32(seen[1]) - at_least_float32(seen[0])).flatten(0, -2)
    return float((moved_ND * wanted_ND).sum() / wanted_ND.square().sum())


NAME = "inside"
CHECKS = (
    Check("block output", block_output),
    Check("hooks", hooks),
    Check("residual stream", residual),
)
