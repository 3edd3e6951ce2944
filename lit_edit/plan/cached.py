"""What a run finds in its cache, by the identities that it will ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lit_edit.algebra.second_moment import SecondMoment
from lit_edit.editors import AlphaEdit, BetaEdit, Editor
from lit_edit.errors import EditError
from lit_edit.models.decoder import is_transposed
from lit_edit.plan.network import Network
from lit_edit.plan.result import Cached
from lit_edit.prompts import Encoder
from lit_edit.statistics.preparation import TOKENS_PER_INPUT, _reading
from lit_edit.statistics.whole_documents import WholeDocuments
from lit_edit.store import Store, fingerprint

_UNKNOWN = "its name in the cache holds a hash of the weights; --hash true reads the model's files to find out"


@dataclass(frozen=True)
class Cache:
    """What was found."""

    found: tuple[Cached, ...]
    moments: tuple[dict[str, Any], ...] = ()
    """Identities of the second moments that are there."""

    def protected(self, store: Store, editor: Editor) -> float | None:
        r"""The share of the input directions that a null-space editor protects, mean over the layers that are there.

        Every eigenvalue of the second moment that reaches ``threshold`` is one; they take ``4/3 I^3`` operations a layer.

        Args:
            store: the cache.
            editor: as configured.

        Returns:
            ``None`` for an editor of another kind, and where no second moment is there.
        """
        if not isinstance(editor, AlphaEdit | BetaEdit):
            return None
        shares = []
        for identity in self.moments:
            stored = store.get(identity)
            if stored is not None:
                values = torch.linalg.eigvalsh(SecondMoment.of(stored, torch.device("cpu")).mean.double())
                shares.append(float((values >= editor.threshold).double().mean()))
        return sum(shares) / len(shares) if shares else None


def cached(
    network: Network,
    encoder: Encoder,
    layers: Sequence[int],
    store: Store,
    corpus: Any | None,
    tokens: int | None,
    wants_spectra: bool,
    weights: Path | None,
) -> Cache:
    """Which second moments and spectra are there already.

    Args:
        network: the model.
        encoder: its tokenizer.
        layers: edited blocks.
        store: the cache.
        corpus: of the second moments; ``None`` where none are collected.
        tokens: ``--model.moment_tokens``.
        wants_spectra: whether spectra are needed.
        weights: the model's folder, whose files are read and hashed; ``None`` to look at no weights.

    Raises:
        EditError: if the folder holds no safetensors files of this model.
    """
    found = []
    names = (["second moments"] if corpus is not None else []) + (["spectra"] if wants_spectra else [])
    if weights is None:
        kinds = {"second moments": "second-moment", "spectra": "spectrum"}
        for name in names:
            # A folder without a single file of this kind needs no hash.
            empty = not any((store.folder / kinds[name]).glob("*.safetensors"))
            found.append(Cached(name, dict.fromkeys(layers, False) if empty else None, "" if empty else _UNKNOWN))
        return Cache(tuple(found))
    moments: list[dict[str, Any]] = []
    tensors = _weights(network, weights)
    if corpus is not None:
        whole = tokens is None and isinstance(corpus, WholeDocuments)
        shared = {
            "kind": "second-moment",
            "weights": fingerprint(tensors),
            "reading": _reading(network.anatomy, encoder),
            "corpus": corpus.identity(),
            "tokens": None if whole else tokens or TOKENS_PER_INPUT * network.anatomy.d_inner,
            "version": 3,
        }
        identities = {at: {**shared, "layer": at} for at in layers}
        found.append(Cached("second moments", {at: _there(store, one) for at, one in identities.items()}, ""))
        moments = [one for one in identities.values() if _there(store, one)]
    if wants_spectra:
        there = {}
        for layer in layers:
            weight = tensors[network.anatomy.weight_name(layer)]
            weight = (weight.T if is_transposed(network.anatomy.down(layer)) else weight).float().contiguous()
            there[layer] = _there(store, {"kind": "spectrum", "weights": fingerprint({"weight": weight}), "version": 1})
        found.append(Cached("spectra", there, ""))
    return Cache(tuple(found), tuple(moments))


def _there(store: Store, identity: dict[str, Any]) -> bool:
    path = store.path(identity)
    return path.exists() and path.with_suffix(".json").exists()


def _weights(network: Network, folder: Path) -> dict[str, Tensor]:
    """The model's parameters by name, in the dtype that the run will load them in, from local safetensors files."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        raise EditError(f"--hash true reads safetensors files, and {folder} holds none; leave it out, or save the model there")
    stored: dict[str, Tensor] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            stored |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    prefix = getattr(network.anatomy.model, "base_model_prefix", "")
    found = {}
    for name, value in network.anatomy.model.named_parameters():
        known = next((stored[key] for key in (name, name.removeprefix(f"{prefix}.")) if key in stored), None)
        if known is None or known.shape != value.shape:
            raise EditError(f"the files in {folder} hold no {name} of the shape {list(value.shape)}; leave --hash out")
        found[name] = known.to(value.dtype)
    return found
