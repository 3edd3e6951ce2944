"""Models of which every rank holds a part: FSDP2 over the transformer blocks, with the edited weights as ``DTensor``.

A block's parameters are gathered for the time that it runs and given back right after. Embeddings, final norm and head stay
whole on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_edit.errors import EditError


def check_device(device: torch.device, version: str = torch.__version__) -> None:
    """Refuse devices on which this torch cannot cut models.

    Raises:
        EditError: for a CPU and a torch whose FSDP2 waits for streams, which CPUs have not.
    """
    if device.type == "cpu" and tuple(map(int, version.split(".")[:2])) < (2, 8):
        raise EditError(
            f"--trainer.strategy sharded on CPUs needs torch 2.8 or newer, and this is {version}; update torch, or use "
            "--trainer.strategy replicated"
        )


def shard(blocks: nn.ModuleList, mesh: Any) -> None:
    """Cut the parameters of every block over the ranks of a mesh, along their first dimension.

    Every block is a root of its own: a pass may then start above some blocks, end below others and call none of them twice.

    Args:
        blocks: the transformer blocks, with whole parameters.
        mesh: one-dimensional device mesh.
    """
    from torch.distributed.fsdp import fully_shard

    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)


def is_sharded(block: nn.Module) -> bool:
    """Whether :func:`shard` has cut a block."""
    return hasattr(block, "reshard")


def whole(held: Tensor) -> Tensor:
    """A parameter with all of its rows; every rank has to ask for a sharded one."""
    sharded: Any = held
    return sharded.full_tensor() if hasattr(held, "full_tensor") else held


def write(held: Tensor, value: Tensor) -> None:
    """Copy a whole value into a parameter, of which a rank keeps its own rows."""
    if not hasattr(held, "to_local"):
        held.copy_(value)
        return
    sharded: Any = held
    (placement,) = sharded.placements
    parts = value.chunk(sharded.device_mesh.size(), placement.dim)
    rank = sharded.device_mesh.get_local_rank()
    if rank < len(parts):  # few rows leave nothing for the last ranks
        sharded.to_local().copy_(parts[rank])


@contextmanager
def gathered(block: nn.Module) -> Iterator[None]:
    """The parameters of a block are whole inside, so that its modules can be called on their own."""
    cut: Any = block
    if not is_sharded(block):
        yield
        return
    cut.unshard()
    try:
        yield
    finally:
        cut.reshard()


def given_back(blocks: nn.ModuleList) -> None:
    """Give back what a pass has gathered that was left half-way, by an exception: FSDP does so only behind a whole block.

    A weight that is edited afterwards would otherwise be run as it was.
    """
    for block in blocks:
        if is_sharded(block):
            cut: Any = block
            cut.reshard()
