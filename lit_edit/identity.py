"""Which model is edited, and whether a checkpoint belongs to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_edit.errors import EditError
from lit_edit.finite import sound


def load_pretrained(pretrained: str, revision: str | None, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """Load a Hugging Face causal language model and its tokenizer.

    Args:
        pretrained: folder or hub id.
        revision: revision of a hub id.
        dtype: dtype of the weights; never left to the checkpoint.

    Raises:
        EditError: if there is none under that name, it is not a causal language model, or a weight of it is not finite.
    """
    from transformers import AutoModelForCausalLM

    name, config = read_config(pretrained, revision)
    try:
        model = AutoModelForCausalLM.from_pretrained(name, config=config, revision=revision, dtype=dtype)
    except ValueError as error:
        if "Unrecognized configuration class" in str(error):
            raise no_decoder(pretrained, config) from None
        raise EditError(f"the model {pretrained} cannot be loaded: {_first(error)}") from None
    except Exception as error:  # truncated or damaged weight files raise errors of many libraries
        raise EditError(f"the model {pretrained} cannot be loaded: {type(error).__name__}: {_first(error)}") from None
    tokenizer = read_tokenizer(name, pretrained, revision)
    said = str(dtype).removeprefix("torch.")
    weights = ((f"{name} of the model {pretrained}, loaded as {said},", value) for name, value in model.named_parameters())
    damaged = "the files are damaged, so save or download the model again"
    fits = dtype != torch.float16  # whose largest number is 65504
    sound(weights, damaged if fits else f"float16 cannot hold them (--model.dtype bfloat16 and float32 can), or {damaged}")
    return model, tokenizer


def read_config(pretrained: str, revision: str | None) -> tuple[str | Path, Any]:
    """What a model is called by the libraries that load it, and its configuration; no weight is looked at.

    Args:
        pretrained: folder or hub id.
        revision: revision of a hub id.

    Raises:
        EditError: if there is none under that name.
    """
    from transformers import AutoConfig

    looks_like_path = pretrained.startswith((".", "/", "~")) or pretrained.count("/") != 1
    folder = Path(pretrained).expanduser()
    if looks_like_path and not folder.exists() and "/" in pretrained:
        raise EditError(
            f"there is no model folder {pretrained}; --model.pretrained takes a folder with config.json or a hub id"
        )
    if folder.is_dir() and not (folder / "config.json").exists():
        raise EditError(f"the folder {pretrained} holds no config.json; --model.pretrained takes a saved Hugging Face model")
    name: str | Path = folder if folder.exists() else pretrained
    try:
        return name, AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise EditError(f"no model {pretrained!r} was found, neither as a folder nor on the hub ({_first(error)})") from None


def read_tokenizer(name: str | Path, pretrained: str, revision: str | None) -> Any:
    """The tokenizer of a model.

    Args:
        name: as :func:`read_config` gives it.
        pretrained: what the user calls it.
        revision: revision of a hub id.

    Raises:
        EditError: if it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except Exception as error:
        raise EditError(f"the tokenizer of {pretrained} cannot be loaded: {_first(error)}") from None


def no_decoder(pretrained: str, config: Any) -> EditError:
    """What is said of a model that predicts no next token."""
    return EditError(f"{pretrained} is a {config.model_type} model, not a causal language model; editing needs a decoder")


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


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
