"""What cannot be edited, or cannot even be loaded, each told in one sentence with the way out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_edit import errors
from lit_edit.errors import EditError
from lit_edit.models.decoder import is_projection
from lit_edit.models.nearest import downloaded, suggestion

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_ADAPTER = "adapter_config.json"
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")
_TOKENIZER = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json")


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without its full stop."""
    return errors.first_line(error).rstrip().rstrip(".")


# ------------------------------------------------------------------------------------------------ before anything is read


def refuse_folder(pretrained: str, folder: Path, weights: bool = True) -> None:
    """Refuse a path that holds no whole model.

    Args:
        pretrained: as the user wrote it.
        folder: the same with the home folder filled in.
        weights: whether weights have to be there.

    Raises:
        EditError: for a path that does not exist, and for a folder without configuration or weights, or with an adapter.
    """
    looks_like_path = pretrained.startswith((".", "/", "~")) or pretrained.count("/") > 1
    if looks_like_path and not folder.exists():
        raise EditError(
            f"there is no model folder {pretrained}; a model is a folder with config.json, a hub id, or the name of one that "
            f"comes with lit_edit (world-gpt2, world-llama){suggestion(pretrained)}"
        )
    if folder.is_file():
        raise EditError(f"{pretrained} is a file; a model is a folder with config.json, weights and tokenizer.json")
    if not folder.is_dir():
        return
    if (folder / _ADAPTER).exists():
        raise _adapter(f"the folder {pretrained}", folder / _ADAPTER)
    if not (folder / "config.json").exists():
        inside = [path.parent for path in sorted(folder.glob("*/config.json"))]
        hint = f"; did you mean {' or '.join(map(str, inside[:3]))}?" if inside else ""
        raise EditError(f"the folder {pretrained} holds no config.json; a model is a saved Hugging Face model{hint}")
    if not weights:
        return
    files = [path for pattern in _WEIGHTS for path in folder.glob(pattern) if not path.name.startswith("training_args")]
    if not files:
        raise EditError(
            f"the folder {pretrained} holds a configuration but no weights (model.safetensors); copy them there, or save the "
            "model with save_pretrained"
        )
    for path in files:
        with path.open("rb") as file:
            if file.read(40).startswith(b"version https://git-lfs"):
                raise EditError(f"{path} is a pointer that git left in place of the weights; fetch them with 'git lfs pull'")


def adapter_on_hub(pretrained: str, revision: str | None) -> None:
    """Refuse a repository of the hub that holds an adapter; nothing happens where the hub cannot be asked.

    Raises:
        EditError: if there is one.
    """
    from transformers.utils import cached_file

    quiet: dict[str, Any] = {f"_raise_exceptions_for_{what}": False for what in ("gated_repo", "missing_entries")}
    try:
        found = cached_file(pretrained, _ADAPTER, revision=revision, _raise_exceptions_for_connection_errors=False, **quiet)
    except (OSError, ValueError):  # no such repository: told by what asks for the configuration
        return
    if found is not None:
        raise _adapter(pretrained, Path(found))


def _adapter(what: str, path: Path) -> EditError:
    try:
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    return EditError(
        f"{what} holds an adapter ({_ADAPTER}) on top of {base or 'another model'}; merge it first (peft: merge_and_unload(), "
        f"then save_pretrained() to a new folder), or remove {_ADAPTER} if that is done"
    )


def not_found(pretrained: str, revision: str | None, error: Exception) -> EditError:
    """Why the configuration of a model could not be read, from whatever transformers raised."""
    from huggingface_hub import errors
    from huggingface_hub.constants import is_offline_mode

    causes = list(_causes(error))

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    folder = Path(pretrained).expanduser()
    if "custom code" in str(error):
        return foreign_code(pretrained)
    if "does not recognize this architecture" in str(error):
        from transformers import __version__ as installed

        kind = re.search(r"model type [`'\"](.+?)[`'\"]", str(error))
        what = f"of type {kind[1]}" if kind else "of a type"
        return EditError(f"the model {pretrained} is {what}, which transformers {installed} does not know; a newer one may")
    if folder.is_dir():
        return EditError(f"the configuration {folder / 'config.json'} cannot be read: {first_line(error)}")
    if caused_by(errors.GatedRepoError):
        return EditError(
            f"the model {pretrained} is gated: accept its terms at https://huggingface.co/{pretrained} and log in with "
            "'hf auth login', or give a folder that holds a copy"
        )
    if caused_by(errors.RevisionNotFoundError):
        return EditError(f"the model {pretrained} has no revision {revision!r}; give a branch, a tag or a commit id")
    none = f"no model {pretrained!r} was found"
    if caused_by(errors.RepositoryNotFoundError):
        return EditError(
            f"{none}, neither as a folder nor on the hub; a private one needs 'hf auth login'{suggestion(pretrained)}"
        )
    if caused_by(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError):
        why = "HF_HUB_OFFLINE is set" if is_offline_mode() else "the hub does not answer"
        have = "" if suggestion(pretrained) else _listed(downloaded())
        return EditError(
            f"{none} as a folder or among the downloaded ones, and {why}; 'hf download {pretrained}' fetches it where there "
            f"is a network{have}{suggestion(pretrained)}"
        )
    return EditError(f"{none}, neither as a folder nor on the hub ({first_line(error)}){suggestion(pretrained)}")


def _listed(names: list[str]) -> str:
    return f" (downloaded: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def foreign_code(pretrained: str) -> EditError:
    """A model whose repository brings Python files that would have to be run."""
    return EditError(
        f"the model {pretrained} comes with code of its own, which is never executed unless you say so: read it, then add "
        "--trust_remote_code to 'lit-edit doctor', or --model.trust_remote_code true to 'lit-edit fit'"
    )


# ------------------------------------------------------------------------------------------------ from the configuration


def refuse_config(pretrained: str, config: Any) -> None:
    """Refuse, before gigabytes are read, what its configuration says cannot be edited.

    Raises:
        EditError: for an encoder-decoder, quantised weights and a mixture of experts.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise EditError(
            f"{pretrained} is an encoder-decoder ({config.model_type}), not a causal language model; editing needs a decoder "
            "alone, such as GPT-2 or Llama"
        )
    _refuse_quantised(str(pretrained), config)
    text = config.get_text_config()
    if getattr(text, "enable_moe_block", True) is False:
        return
    for name in _EXPERTS:
        count = getattr(text, name, None)
        if isinstance(count, int) and count > 1:
            raise _experts(pretrained, f"{name} = {count}", int(getattr(text, "first_k_dense_replace", 0) or 0))


def _refuse_quantised(name: str, config: Any) -> None:
    found = getattr(config, "quantization_config", None)
    if not found:
        return
    settings = found if isinstance(found, dict) else found.to_dict()
    method = str(getattr(settings.get("quant_method"), "value", settings.get("quant_method") or "of an unknown kind"))
    bits = 4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else settings.get("bits")
    raise EditError(
        f"{name} is quantised ({method}{f', {bits} bits' if bits else ''}), and a small change of a weight would be rounded "
        "away; edit the checkpoint it was made from, or load it, call model.dequantize() and save that"
    )


def _experts(name: str, found: str, dense: int) -> EditError:
    part = f"; only the dense MLP of {'block 0' if dense == 1 else f'blocks 0 to {dense - 1}'} would be" if dense else ""
    return EditError(
        f"{name} is a mixture of experts ({found}): which matrix holds a fact changes from token to token, and that is not "
        f"supported{part}; take a dense model"
    )


def refuse_missing(pretrained: str, missing: Iterable[str], parameters: Iterable[str], saved_as: str) -> None:
    """Refuse a model some of whose weights would be random because the checkpoint has none for them.

    Args:
        pretrained: the model.
        missing: names that the checkpoint lacks.
        parameters: names of the model's parameters.
        saved_as: class that the checkpoint was saved as.

    Raises:
        EditError: if there are such weights.
    """
    lacking = sorted(set(missing) & set(parameters))
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise EditError(
            f"the checkpoint {pretrained} ({saved_as}) lacks {lacking[0]}{more}, which would be random; editing needs one that "
            "was saved as a causal language model with all its weights"
        )


# ------------------------------------------------------------------------------------------------ tokenizers


def lacks_tokenizer(name: str | Path) -> bool:
    """Whether a folder holds nothing that a tokenizer could be made of: old versions of transformers make an empty one then."""
    folder = Path(name).expanduser()
    return folder.is_dir() and not any(next(folder.glob(pattern), None) for pattern in (*_TOKENIZER, "tokenizer_config.json"))


def no_tokenizer(pretrained: str, error: Exception | None) -> EditError:
    """Why a tokenizer could not be loaded, or came out empty."""
    folder = Path(pretrained).expanduser()
    if error is not None and "custom code" in str(error):
        return foreign_code(pretrained)
    there = not folder.is_dir() or any(next(folder.glob(pattern), None) for pattern in _TOKENIZER)
    if error is None or not there:
        return EditError(
            f"the model {pretrained} comes without a tokenizer (no tokenizer.json); copy tokenizer.json and "
            "tokenizer_config.json from the model it was made from"
        )
    if any(word in str(error) for word in ("sentencepiece", "tiktoken")):
        return EditError(
            f"the tokenizer of {pretrained} is a SentencePiece or tiktoken file, which has to be converted: "
            "'pip install sentencepiece tiktoken', or put a tokenizer.json there"
        )
    return EditError(f"the tokenizer of {pretrained} cannot be loaded: {first_line(error)}")


# ------------------------------------------------------------------------------------------------ models as they are


def refuse_model(model: nn.Module, name: str) -> None:
    """Refuse a model whose weights are not the plain matrices that a change can be written into.

    Args:
        model: the model.
        name: its class, for the sentence.

    Raises:
        EditError: for adapters, quantised weights and mixtures of experts.
    """
    for path, _ in model.named_modules():
        if path.rpartition(".")[2] in ("lora_A", "lora_embedding_A", "base_layer"):
            raise EditError(
                f"{name} is wrapped by an adapter ({path}); merge it first (model = model.merge_and_unload()) and edit what "
                "comes out"
            )
    _refuse_quantised(name, model.config)
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if is_projection(module) and isinstance(weight, torch.Tensor) and weight.dtype not in _FLOATS:
            kind = str(weight.dtype).removeprefix("torch.")
            raise EditError(f"{name} keeps {path}.weight as {kind}; editing needs float32, bfloat16 or float16")
    experts = [path for path, _ in model.named_modules() if re.search(r"(^|[._])experts$", path)]
    if experts:
        numbers = [int(part) for path in experts for part in path.split(".") if part.isdecimal()]
        raise _experts(name, experts[0], min(numbers, default=0))
