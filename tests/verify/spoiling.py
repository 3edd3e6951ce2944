"""A recording to be spoilt: what the tests of the replays of single methods share."""

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file


def copied(shared: Path, tmp_path: Path, method: str) -> Path:
    """A recording of a method with its records."""
    golden, target = shared / "golden" / "a", tmp_path / "set" / "tiny-llama"
    shutil.copytree(golden / "tiny-llama" / "model", target / "model")
    shutil.copy(golden / "records.json", target.parent)
    for name in ("meta.json", "stats.safetensors", "float64_recomputation.json", f"{method}.safetensors"):
        shutil.copy(golden / "tiny-llama" / name, target)
    return target


def spoil(folder: Path, method: str, names: set[str]) -> None:
    """Make the tensors of these names larger by a hundredth."""
    tensors = load_file(folder / f"{method}.safetensors")
    save_file(
        {name: value * (1.01 if name in names else 1.0) for name, value in tensors.items()}, folder / f"{method}.safetensors"
    )
