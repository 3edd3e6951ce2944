"""A whole Hugging Face model, which needs nothing of this project to be loaded."""

from __future__ import annotations

from pathlib import Path

from lit_edit.errors import EditError
from lit_edit.export.about import Content
from lit_edit.export.card import Kind, card


def write_full(folder: Path, content: Content) -> str:
    """``save_pretrained`` of the edited model with tokenizer and generation config, and a card.

    The edited matrices are the float32 weights cast to the dtype of the run's model, as the run itself showed them; every other
    weight is the one that was loaded.

    Args:
        folder: empty.
        content: what is exported.

    Returns:
        What was written, in words.

    Raises:
        EditError: if the library does not save this model.
    """
    try:
        content.state.model.save(folder, dict(content.weights))
    except ValueError as error:
        raise EditError(f"transformers does not save this model: {' '.join(str(error).split())}") from error
    kind = Kind(
        library="transformers",
        relation="finetune",
        what="A causal language model that differs from the base model in the MLP down-projections of the layers "
        f"{', '.join(map(str, content.weights))} only. It needs nothing but transformers.",
        code="from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER_OR_HUB_ID")\n'
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_HUB_ID")',
        again=(),
    )
    (folder / "README.md").write_text(card(content, kind), encoding="utf-8")
    return f"a whole model in {content.dtype}"
