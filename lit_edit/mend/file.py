"""A trained hyper-network as one safetensors file, with what it belongs to in the header."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lit_edit.errors import EditError
from lit_edit.mend.network import HyperNetwork
from lit_edit.options.documents import load_json
from lit_edit.store import fingerprint, write_atomically

FORMAT = "lit_edit-mend-1"


@dataclass(frozen=True)
class Trained:
    """What a trained network belongs to."""

    weights: dict[int, str]
    """Hash of the original weight by layer, see :func:`weight_hash`."""
    pretrained: str = ""
    """Folder or hub id of the model, for messages."""
    measured: dict[str, float] = field(default_factory=dict)
    """What was measured on held-out edits before and after training."""


def weight_hash(weight_OI: Tensor) -> str:
    """Hash of an original weight ``[d_out, d_in]``, of its float32 values."""
    return fingerprint({"weight": weight_OI.float()})


def save_network(path: str | Path, network: HyperNetwork, trained: Trained) -> None:
    """Write a network; a reader finds the old file or the new one, never a part.

    Raises:
        EditError: if the folder cannot be written to.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    said = {
        "shapes": {str(layer): shape for layer, shape in network.shapes.items()},
        "rank": network.rank,
        "blocks": network.block_count,
        **asdict(trained),
    }
    text = json.dumps(said)
    header = {"format": FORMAT, "network": text, "sha256": _checksum(text, tensors)}
    # One entry: safetensors writes several in any order, and equal networks are to be equal files.
    write_atomically(Path(path), save(tensors, metadata={"lit_edit": json.dumps(header)}))


def load_network(path: str | Path) -> tuple[HyperNetwork, Trained]:
    """Read a network, in evaluation mode and without gradients.

    Raises:
        EditError: if the file does not exist, is damaged, or holds something else.
    """
    if not Path(path).is_file():
        raise EditError(f"there is no hyper-network {path}; train one with 'lit-edit train-mend --config configs/mend.yaml'")
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(load_json((file.metadata() or {}).get("lit_edit", "{}")))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise EditError(f"the hyper-network {path} is damaged or was not written by lit_edit ({error})") from None
    if header.get("format") != FORMAT:
        raise EditError(
            f"{path} is no hyper-network of this format: it says {header.get('format')!r} instead of {FORMAT!r}; train it anew"
        )
    text = header.get("network", "")
    if header.get("sha256") != _checksum(text, tensors):
        raise EditError(f"the hyper-network {path} is damaged: its checksum does not fit; train it anew")
    said: dict[str, Any] = json.loads(text)
    shapes = {int(layer): (int(shape[0]), int(shape[1])) for layer, shape in said["shapes"].items()}
    network = HyperNetwork(shapes, said["rank"], said["blocks"])
    network.load_state_dict(tensors)
    weights = {int(layer): value for layer, value in said["weights"].items()}
    return network.eval().requires_grad_(False), Trained(weights, said["pretrained"], said["measured"])


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(text.encode() + fingerprint(tensors).encode()).hexdigest()
