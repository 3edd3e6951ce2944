"""The change alone: one tensor file and one JSON, for :class:`lit_edit.EditDelta`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save

from lit_edit.errors import EditError
from lit_edit.export.about import Content, about
from lit_edit.export.card import Kind, card
from lit_edit.export.changes import changes
from lit_edit.export.edit_delta import EditDelta
from lit_edit.export.reading import CONFIG, FORMAT, TENSORS, name
from lit_edit.journal.files import hashes
from lit_edit.models.decoder import is_transposed
from lit_edit.report.numbers import count


def write_delta(folder: Path, content: Content) -> str:
    """Write the change of every layer in the smaller of its forms, and read it back.

    Args:
        folder: empty.
        content: what is exported.

    Returns:
        What was written, in words.

    Raises:
        EditError: if a file of the journal is damaged, or what was read back does not give the weights.
    """
    state, anatomy, original = content.state, content.state.model.anatomy, content.state.model.original
    found = changes(state.book, state.batches, original, state.written, content.weights)
    tensors = {
        name(layer, at, part): value.detach().cpu().contiguous()
        for layer, change in found.items()
        for at, step in enumerate(change.steps)
        for part, value in step.items()
    }
    data = save(tensors)
    base, edited = hashes(original), hashes(content.weights)
    shown = hashes({layer: weight.to(anatomy.dtype) for layer, weight in content.weights.items()})
    layers = {
        str(layer): {
            "weight": anatomy.weight_name(layer),
            "shape": list(original[layer].shape),
            "transposed": is_transposed(anatomy.down(layer)),
            "form": change.form,
            "steps": len(change.steps),
            "rank": change.rank,
            "bytes": change.bytes,
            "base_sha256": base[str(layer)],
            "edited_sha256": edited[str(layer)],
            "shown_sha256": shown[str(layer)],
        }
        for layer, change in found.items()
    }
    said = {
        "format": FORMAT,
        **about(content),
        "layers": layers,
        "file": TENSORS,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    (folder / TENSORS).write_bytes(data)
    (folder / CONFIG).write_text(json.dumps(said, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    rows = [
        [
            str(layer),
            change.form,
            str(len(change.steps)),
            str(change.rank if change.rank is not None else "full"),
            f"{change.bytes:,}",
        ]
        for layer, change in found.items()
    ]
    kind = Kind(
        library="lit_edit",
        relation="adapter",
        what="Not a model, but the change that editing made to one. Put on the base model, it gives the edited weights bit for "
        "bit, in float32; taken off, it leaves the base model as it was, byte for byte.",
        code="import lit_edit\nfrom transformers import AutoModelForCausalLM\n\n"
        f"model = {content.base_in_code}\n"
        'edit = lit_edit.EditDelta.load("FOLDER")\nedit.apply(model)\nedit.unapply(model)',
        again=("--format", "delta"),
        details=("How the change is stored", ["layer", "form", "steps", "rank, at most", "bytes"], rows),
    )
    (folder / "README.md").write_text(card(content, kind), encoding="utf-8")
    read = EditDelta.load(folder)
    for layer, weight in original.items():
        if not torch.equal(read.edited(layer, weight).view(torch.int32), content.weights[layer].view(torch.int32)):
            raise EditError(f"the disk does not give back what was written to {folder}")
    whole = sum(4 * weight.numel() for weight in original.values())
    forms = ", ".join(f"layer {layer}: {change.form}" for layer, change in found.items())
    return f"a delta of {count(len(data), 'byte')} ({forms}); the edited weights are {whole:,} bytes in float32"
