"""What a run writes: journal, checkpoints, caches and logs.

Legend: O = d_out, I = d_in, n = requests of a batch, R = rank of its change.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lit_edit.algebra.drift import MEASURES
from lit_edit.plan.result import Cached, Disk, Part
from lit_edit.plan.scene import Scene
from lit_edit.plan.standing import checkpoint_bytes, spectra

RECORD = 1800
"""Bytes of a record of the journal without its requests: hashes, scalars and names."""
REQUEST = 190
"""Bytes of a request in a record, besides its own text."""
PATCHED = 1e-4
"""Share of a weight's numbers that the journal patches, eight bytes each: less than 4e-4 however large the change. More are
where the keys of a batch are nearly dependent or an editor writes more than one change, see docs/journal.md."""

_EXPLAINED = 28_000
"""Bytes of what TensorBoard is told once, measured."""


def journal_batch(scene: Scene, requests: int, rank: int | None) -> int:
    """Bytes of the factors of one batch: the smaller of thin factors with their patch, and the whole weight, by layer."""
    d_out, d_in = scene.shape
    dense = 4 * d_out * d_in
    if not scene.settings.factors or not requests:
        return 0
    size = dense
    if rank is not None and 5 * rank * (d_out + d_in) < dense:
        size = min(dense, 5 * rank * (d_out + d_in) + 2 * (d_out + d_in) + round(8 * PATCHED * d_out * d_in))
    return len(scene.layers) * (size + 600)  # a header of eight names a layer


def disk_of(scene: Scene, cached: tuple[Cached, ...], cache_dir: Path, text_bytes: float) -> Disk:
    """Everything that is written, and what there is room for.

    Args:
        scene: the run.
        cached: what is there already and is not written again.
        cache_dir: where caches lie.
        text_bytes: bytes of the text of an average request.
    """
    settings, layers = scene.settings, len(scene.layers)
    d_in = scene.shape[1]
    read = [batch for batch in scene.stream.read if batch.requests]
    factors = sum(journal_batch(scene, batch.requests, scene.rank_of(batch)) for batch in read) * scene.stream.scale
    per_request = REQUEST + text_bytes
    records = len(scene.stream.batches) * RECORD + sum(scene.stream.batches) * per_request
    journal = round(factors + records)
    one = checkpoint_bytes(scene)
    kept = _checkpoints(scene)
    new = {found.name: [layer for layer, there in (found.layers or {}).items() if there] for found in cached}
    moments = 0
    if scene.moment_tokens:
        moments = (layers - len(new.get("second moments", []))) * 4 * d_in**2
    missing = layers - len(new.get("spectra", []))
    parts = [
        Part("journal", journal, f"{len(scene.stream.batches)} batches"),
        Part("checkpoints", (kept + 1) * one, f"{kept} kept and one being written, {one / 2**20:.1f} MiB each at the end"),
        Part("second moments in the cache", moments),
        Part("spectra in the cache", missing * spectra(scene) // layers),
        Part("logs", _logs(scene)),
    ]
    return Disk(tuple(part for part in parts if part.bytes), free_bytes(Path(settings.run_dir)), _per_batch(scene, per_request))


def _per_batch(scene: Scene, per_request: float) -> int:
    largest = scene.largest
    return round(journal_batch(scene, largest.requests, scene.rank) + RECORD + largest.requests * per_request)


def _checkpoints(scene: Scene) -> int:
    """Checkpoints that stay; ``last.ckpt`` is another name of the newest."""
    every, batches = scene.settings.checkpoint_every, len(scene.stream.batches)
    # One is written when the next batch begins, and one behind the last.
    made = (batches - 1) // every + 1 if every else 1
    return made if scene.settings.checkpoints_kept < 0 else min(made, scene.settings.checkpoints_kept)


def looks(scene: Scene) -> tuple[int, int]:
    """Looks at the spectra, and those of them that find all singular values."""
    settings, batches = scene.settings, len(scene.stream.batches)
    if not settings.drift_every:
        return 0, 0
    count = -(-batches // settings.drift_every)
    return count, (count - 1) // settings.drift_full_every + 1 if settings.drift_full_every else 0


def _logs(scene: Scene) -> int:
    """CSV and TensorBoard: 70 bytes a number and batch in each, two pictures of 37 KB a layer and full look, charts, words."""
    count, full = looks(scene)
    numbers = 12 + 8 * len(scene.layers)
    drift = count * len(MEASURES) * len(scene.layers)
    pictures = 2 * full * len(scene.layers) * 37_000 if scene.settings.drift_figures else 0
    return round(150 * (len(scene.stream.batches) * numbers + drift)) + pictures + _EXPLAINED


def free_bytes(folder: Path) -> int:
    """Free bytes where a folder lies or would lie."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free
