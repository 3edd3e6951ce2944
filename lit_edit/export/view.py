"""The weights that evaluation saw: what was written, or what guards such as PRUNE make of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

import lit_edit.guards  # noqa: F401 (short class names resolve only for what is imported)
from lit_edit.errors import EditError
from lit_edit.export.state import State
from lit_edit.guards.base import Guard, viewing

Which = Literal["evaluated", "written"]
"""``written``: the masters that the run edited. ``evaluated``: what every score is a score of."""


def weights_of(state: State, which: Which) -> tuple[dict[int, Tensor], str]:
    r"""The weights of the edited layers that are exported.

    Without a guard that shows evaluation another weight, both are the same. With one (PRUNE in its ``view`` mode) a run edits
    on without restraint, and what was evaluated is

    .. math:: W' = W_0 + \sum_i F(\sigma_i)\, u_i v_i^T, \qquad W_t - W_0 = \sum_i \sigma_i u_i v_i^T

    It is computed as 'lit-edit validate' does, on the CPU; a GPU may round the decomposition otherwise.

    Args:
        state: the run and its masters.
        which: which of them.

    Returns:
        Float32 weights by layer, ``[d_out, d_in]``, and a sentence that says which they are, where there is a choice.

    Raises:
        EditError: if ``which`` is neither, the guards cannot be made again from the configuration, or one that needs its state
            is asked about a replay.
    """
    if which not in get_args(Which):
        raise EditError(f"--weights is {which!r}; it is one of {', '.join(get_args(Which))}")
    written = dict(state.written)
    try:
        guards = viewing(_guards(state))
    except EditError:
        if which == "evaluated":
            raise
        names = " or ".join(state.run.summary["guards"])
        return written, f"Weights as the run wrote them; whether {names} showed evaluation others is not known"
    if not guards:
        return written, ""
    for layer, weight in state.model.original.items():
        for guard in guards:
            guard.prepare(layer, weight, None)
    shown = {}
    with torch.no_grad():
        for layer, weight in written.items():
            for guard in guards:
                weight = guard.view(layer, weight)
            shown[layer] = weight.contiguous()
    if all(torch.equal(shown[layer].view(torch.int32), weight.view(torch.int32)) for layer, weight in written.items()):
        return written, ""
    names = " and ".join(type(guard).__name__ for guard in guards)
    if which == "written":
        return written, f"Weights as the run wrote them; its scores are of others, which {names} showed evaluation"
    return shown, f"Weights as they were evaluated, restrained by {names}; --weights written exports those that the run wrote"


def _guards(state: State) -> list[Guard]:
    """The guards of the run, with the state that the checkpoint has of them."""
    path, names = state.run.path / "config.yaml", state.run.summary["guards"]
    if not names:
        return []
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--guards", type=list[Guard])
    try:
        parsed = parser.parse_object({"guards": state.run.config["model"].get("guards")})
        made: list[Guard] = parser.instantiate_classes(parsed).guards or []
    except (ArgumentError, TypeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise EditError(f"the guards in {path} cannot be made: {told}") from error
    if [type(guard).__name__ for guard in made] != names:
        raise EditError(f"{path} names other guards than the run had ({', '.join(names)}), so it was changed since")
    held: Mapping[str, Any] = nn.ModuleList(made).state_dict()
    if state.guards is None and any(name.startswith(f"{made.index(guard)}.") for guard in viewing(made) for name in held):
        raise EditError(
            f"no checkpoint stands behind {state.batches} batches, and what evaluation saw there depends on a guard's state, "
            "which only checkpoints have; add --weights written, or name a checkpoint"
        )
    nn.ModuleList(made).load_state_dict(dict(state.guards or {}), strict=False)
    return made
