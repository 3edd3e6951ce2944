"""Taking back what a batch has changed in editors and guards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

State = list[tuple[nn.Module, str, Tensor | None]]


def snapshot(parts: Sequence[nn.Module]) -> State:
    """References to all buffers of some modules; free of cost, since state is replaced and never modified in place."""
    return [(module, name, value) for part in parts for module in part.modules() for name, value in module._buffers.items()]


def restore(state: State) -> None:
    """Put the buffers of a :func:`snapshot` back."""
    for module, name, value in state:
        module._buffers[name] = value


class Growing(nn.Module):
    """A module whose buffers grow: their sizes are part of the state, so loading makes room for what was stored."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, value in self._buffers.items():
            stored = state_dict.get(prefix + name)
            if stored is not None and value is not None:  # before torch compares shapes
                self._buffers[name] = value.new_zeros(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
