"""Which model is edited, and whether a checkpoint belongs to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_edit.batch.finite import sound
from lit_edit.errors import EditError
from lit_edit.models.refusals import (
    adapter_on_hub,
    first_line,
    foreign_code,
    lacks_tokenizer,
    no_tokenizer,
    not_found,
    refuse_config,
    refuse_folder,
    refuse_missing,
)
from lit_edit.options.packaged import model_path
from lit_edit.runs.paths import named


def load_pretrained(
    pretrained: str, revision: str | None, dtype: torch.dtype, trust_remote_code: bool = False
) -> tuple[nn.Module, Any]:
    """Load a Hugging Face causal language model and its tokenizer.

    Args:
        pretrained: folder, hub id, or name of a model that comes with the project (``world-gpt2``); a folder wins over a name.
        revision: revision of a hub id.
        dtype: dtype of the weights; never left to the checkpoint.
        trust_remote_code: run Python files that come with the model; without it they are not even imported.

    Raises:
        EditError: if there is none under that name, none that can be edited (see :mod:`lit_edit.models.refusals`), or one of
        whose
            weights is not finite.
    """
    from transformers import AutoModelForCausalLM

    name, config = read_config(pretrained, revision, trust_remote_code)
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, config=config, dtype=dtype, output_loading_info=True, **common)
    except ValueError as error:
        if "custom code" in str(error):
            raise foreign_code(pretrained) from None
        if "Unrecognized configuration class" in str(error):
            raise no_decoder(pretrained, config) from None
        raise EditError(f"the model {pretrained} cannot be loaded: {first_line(error)}") from None
    except Exception as error:  # truncated or damaged weight files raise errors of many libraries
        raise EditError(f"the model {pretrained} cannot be loaded: {type(error).__name__}: {first_line(error)}") from None
    saved_as = ", ".join(getattr(config, "architectures", None) or ["saved as no particular class"])
    model, found = loaded
    refuse_missing(pretrained, found["missing_keys"], dict(model.named_parameters()), saved_as)
    tokenizer = read_tokenizer(name, pretrained, revision, trust_remote_code)
    said = str(dtype).removeprefix("torch.")
    weights = ((f"{name} of the model {pretrained}, loaded as {said},", value) for name, value in model.named_parameters())
    damaged = "the files are damaged, so save or download the model again"
    fits = dtype != torch.float16  # whose largest number is 65504
    sound(weights, damaged if fits else f"float16 cannot hold them (--model.dtype bfloat16 and float32 can), or {damaged}")
    return model, tokenizer


def read_config(
    pretrained: str, revision: str | None, trust_remote_code: bool = False, weights: bool = True
) -> tuple[str | Path, Any]:
    """What a model is called by the libraries that load it, and its configuration; no weight is looked at.

    Args:
        pretrained: folder, hub id, or name of a model that comes with the project.
        revision: revision of a hub id.
        trust_remote_code: see :func:`load_pretrained`.
        weights: whether a folder has to hold weights as well.

    Raises:
        EditError: if there is none under that name, or none that can be edited.
    """
    from transformers import AutoConfig

    folder = named(pretrained, "--model.pretrained")
    if not folder.exists():
        folder = model_path(pretrained) or folder
    refuse_folder(pretrained, folder, weights)
    name: str | Path = folder if folder.exists() else pretrained
    if not folder.exists():
        adapter_on_hub(pretrained, revision)
    try:
        # Told explicitly: where nothing is said, transformers asks on the terminal and waits.
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise not_found(pretrained, revision, error) from None
    refuse_config(pretrained, config)
    return name, config


def read_tokenizer(name: str | Path, pretrained: str, revision: str | None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model.

    Args:
        name: as :func:`read_config` gives it.
        pretrained: what the user calls it.
        revision: revision of a hub id.
        trust_remote_code: see :func:`load_pretrained`.

    Raises:
        EditError: if there is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise no_tokenizer(pretrained, error) from None
    if not tokenizer.vocab_size or lacks_tokenizer(name):  # some families make one out of nothing
        raise no_tokenizer(pretrained, None)
    return tokenizer


def no_decoder(pretrained: str, config: Any) -> EditError:
    """What is said of a model that predicts no next token."""
    return EditError(f"{pretrained} is a {config.model_type} model, not a causal language model; editing needs a decoder")


def check_identity(checkpoint: dict[str, Any], expected: dict[str, Any], tensors: set[str]) -> dict[str, Any]:
    """The project's part of a checkpoint, once it is sure to belong to this run.

    Args:
        checkpoint: as loaded.
        expected: what this run would write.
        tensors: names that its ``state_dict`` must hold.

    Raises:
        EditError: naming the first thing that differs.
    """
    state = checkpoint.get("lit_edit")
    if not isinstance(state, dict):
        raise EditError("the checkpoint was not written by lit_edit; it holds no 'lit_edit' entry")
    for key, wanted in expected.items():
        if key == "pretrained":  # where the model lies may change between machines; what it is, may not
            continue
        if state.get(key) != wanted:
            what = {"weights": "other original weights", "format": "another format"}.get(key, f"another {key}")
            raise EditError(
                f"the checkpoint belongs to {what}: {state.get(key)} instead of {wanted} (model {state.get('pretrained')})"
            )
    found = set(checkpoint.get("state_dict", {}))
    if missing := sorted(tensors - found):
        raise EditError(
            f"the checkpoint is incomplete: it lacks {missing[0]}; resume with the options of editor and guards that it was "
            "written with"
        )
    if foreign := sorted(found - tensors):
        raise EditError(
            f"the checkpoint holds {foreign[0]}, for which this run has no place; resume with the options of editor and guards "
            "that it was written with"
        )
    return state


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between the options of two runs, as ``name: old -> new``; nothing where either is unknown.

    >>> changes({"lr": 0.5, "steps": 25}, {"lr": 0.1, "steps": 25, "clamp": 4})
    ['clamp: unset -> 4', 'lr: 0.5 -> 0.1']
    """
    if not before or not now:
        return []
    names = sorted({*before, *now})
    pairs = {name: (before.get(name, "unset"), now.get(name, "unset")) for name in names}
    return [f"{name}: {old} -> {new}" for name, (old, new) in pairs.items() if old != new]
