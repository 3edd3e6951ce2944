"""Which setting near the wanted one would fit."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lit_edit.plan.rehearsed import rehearsed, target_part
from lit_edit.plan.result import Disk, Memory
from lit_edit.plan.scene import Scene
from lit_edit.plan.state import needs_targets

_MOST = 64
"""Ranks up to which a model is cut in thought."""


def advice(scene: Scene, memory: Memory, disk: Disk, other: Callable[..., Memory]) -> tuple[str, ...]:
    """Changes of one option each after which the run fits, the least one first; a sentence if there is none.

    Args:
        scene: the run.
        memory: its memory.
        disk: what it writes.
        other: memory of the same run with another ``dtype``, ``layers`` or number of ``ranks``.
    """
    found: list[str] = []
    if not disk.fits:
        found.append(_of_disk(disk, scene))
    if memory.fits:
        return tuple(found)
    wanted = [_fewer_at_once(scene, memory), _smaller_dtype(scene, other), _fewer_layers(scene, other), _sharded(scene, other)]
    fitting = [one for one in wanted if one]
    if not fitting:
        fitting = ["no single option makes it fit; a smaller model, a larger device or several of them are needed"]
    return (*found, *fitting)


def _of_disk(disk: Disk, scene: Scene) -> str:
    journal = next((part.bytes for part in disk.parts if part.name == "journal"), 0)
    if disk.bytes - journal <= disk.free:
        return "--journal.factors false leaves out what every batch changed, and what is left fits on the disk"
    return "a --run_dir on a disk with more room"


def _fewer_at_once(scene: Scene, memory: Memory) -> str | None:
    """Fewer requests optimised together, if the targets alone are too large."""
    if not needs_targets(scene.editor):
        return None
    others = max((phase.bytes for phase in memory.phases if phase.name != "targets"), default=0)
    if others > memory.room:
        return None
    targets = next(phase for phase in memory.phases if phase.name == "targets")
    part, held = target_part(scene)
    room = memory.room - (targets.bytes - held.peak)
    at_once = part.requests
    while at_once > 1:
        part, at_once = part.halved(), -(-at_once // 2)
        if rehearsed(scene, part).peak <= room:
            return f"--model.targets.requests_at_once {at_once} (or --model.targets.memory {0.9 * room / 2**30:.1f})"
    return None


def _smaller_dtype(scene: Scene, other: Callable[..., Memory]) -> str | None:
    if scene.network.anatomy.dtype.itemsize <= 2:
        return None
    return "--model.dtype bfloat16" if other(dtype=torch.bfloat16).fits else None


def _fewer_layers(scene: Scene, other: Callable[..., Memory]) -> str | None:
    for count in range(len(scene.layers) - 1, 0, -1):
        kept = scene.layers[-count:]
        if other(layers=kept).fits:
            return f"--model.layers {list(kept)}"
    return None


def _sharded(scene: Scene, other: Callable[..., Memory]) -> str | None:
    """The least number of devices over which the blocks have to be cut; ranks on one CPU machine save nothing."""
    if scene.device == "cpu" or not scene.editor.runs_sharded:
        return None
    ranks = 2
    while ranks <= _MOST:
        if ranks > scene.settings.ranks and other(ranks=ranks).fits:
            return f"--trainer.strategy sharded --trainer.devices {ranks}"
        ranks *= 2
    return None
