"""Rehearsals of a run's own passes, each made once however often it is asked for."""

from __future__ import annotations

from functools import lru_cache

from lit_edit.plan.rehearsal import Held, TargetShape, forward, target_step
from lit_edit.plan.scene import Scene
from lit_edit.plan.work import Grid


def target_part(scene: Scene) -> tuple[TargetShape, Held]:
    """The largest part of a target optimisation, halved until it keeps no more than ``--model.targets.memory``."""
    parts = [part for batch in scene.stream.read for part in batch.parts]
    part = max(parts, key=lambda one: one.rows * (one.suffix + one.prefix / 8))
    if getattr(scene.editor, "in_order", False):
        while part.requests > 1:
            part = part.halved()
    elif scene.workers > 1:
        # Fewer parts than ranks are halved.
        while part.requests > max(1, -(-scene.largest.requests // scene.workers)):
            part = part.halved()
    held = rehearsed(scene, part)
    budget = scene.targets.memory
    while budget is not None and held.kept > budget * 2**30 and part.requests > 1:
        part = part.halved()
        held = rehearsed(scene, part)
    return part, held


@lru_cache(maxsize=256)
def _rehearsed(network: object, part: TargetShape, layer: int) -> Held:
    return target_step(network, part, layer)  # type: ignore[arg-type]


def rehearsed(scene: Scene, part: TargetShape) -> Held:
    """See :func:`lit_edit.plan.rehearsal.target_step`."""
    return _rehearsed(scene.network, part, scene.layers[-1])


@lru_cache(maxsize=256)
def _forwarded(network: object, grid: Grid, last: int | None) -> int:
    return forward(network, grid.lines, grid.columns, grid.spots, last, grid.packed)  # type: ignore[arg-type]


def forwarded(scene: Scene, grid: Grid, last: int | None) -> int:
    """See :func:`lit_edit.plan.rehearsal.forward`."""
    return _forwarded(scene.network, grid, last)
