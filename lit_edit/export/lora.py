"""The change as a LoRA adapter that PEFT loads: close to the edited model, never bit-equal to it.

Legend: O = d_out, I = d_in, R = rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from lit_edit.errors import EditError
from lit_edit.export.about import Content
from lit_edit.export.card import Kind, card
from lit_edit.models.decoder import is_transposed
from lit_edit.spectrum import gram_svd

TOLERANCE = 1e-3
"""Relative error of a layer's change that is accepted where no rank was asked for."""
MAX_RANK = 512
"""Largest rank that is taken where no rank was asked for."""


@dataclass(frozen=True)
class LoRA:
    """One layer's adapter: the change is ``B A``, scaled by 1."""

    a: Tensor  # [R, I] float32, PEFT's lora_A
    b: Tensor  # [O, R] float32, PEFT's lora_B
    error: float
    """Relative Frobenius error of ``B A``."""

    @property
    def rank(self) -> int:
        """R."""
        return self.a.shape[0]


def factorise(change: Tensor, rank: int | None, tolerance: float = TOLERANCE) -> LoRA:
    r"""The best approximation of a change by a product of two thin factors.

    .. math:: \Delta = U \Sigma V^T, \qquad B = U_r \Sigma_r^{1/2}, \; A = \Sigma_r^{1/2} V_r^T, \qquad
        e(r)^2 = \sum_{i > r} \sigma_i^2 / \sum_i \sigma_i^2

    Args:
        change: ``[d_out, d_in]`` float64, not zero.
        rank: ``r``, if the change has so many singular values above 1e-7 of the largest; default: the smallest with
            :math:`e(r) \le` ``tolerance``.
        tolerance: largest relative error where ``rank`` is not given.

    Returns:
        The factors in float32, and the relative error that they really have.
    """

    def choose(sigma: Tensor) -> int:
        if rank is not None:
            return min(rank, int((sigma > 0).sum()))
        tail = sigma.square().flip(0).cumsum(0).flip(0)  # what is lost by keeping only those before
        return max(1, int((tail > tolerance**2 * tail[0]).sum()))

    left, sigma, right = gram_svd(change, choose)
    b, a = (left * sigma.sqrt()).float().contiguous(), (sigma.sqrt().unsqueeze(1) * right.T).float().contiguous()
    return LoRA(a, b, float((change - b.double() @ a.double()).norm() / change.norm()))


def adapters(content: Content, rank: int | None, max_rank: int, tolerance: float) -> dict[int, LoRA]:
    """Adapters of all layers that were changed.

    Raises:
        EditError: if nothing was changed, or no rank was asked for and none up to ``max_rank`` is close enough.
    """
    found = {}
    for layer, before in content.state.model.original.items():
        change = content.weights[layer].double() - before.double()
        if not bool(change.any()):
            continue
        one = factorise(change, rank, tolerance)
        if rank is None and one.error > tolerance:
            raise EditError(
                f"the float32 factors of layer {layer} come no closer to its change than {one.error:.1e} of it, and "
                f"--tolerance is {tolerance:g}; the exact change is --format delta"
            )
        if rank is None and one.rank > max_rank:
            least = factorise(change, max_rank)
            raise EditError(
                f"the change of layer {layer} needs rank {one.rank} to come within {tolerance:g} of it (--tolerance), and "
                f"with --max-rank {max_rank} the error is {least.error:.1e}; accept that with --rank {least.rank}, raise "
                "--max-rank, or export the exact change with --format delta"
            )
        found[layer] = one
    if not found:
        raise EditError(f"no weight differs from the base model behind {content.state.batches} batches, so there is no adapter")
    return found


def write_lora(folder: Path, content: Content, rank: int | None, max_rank: int, tolerance: float) -> str:
    """``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT writes them, and a card.

    Args:
        folder: empty.
        content: what is exported.
        rank: of every layer; default: what ``tolerance`` asks for.
        max_rank: largest rank where ``rank`` is not given.
        tolerance: largest relative Frobenius error of a layer's change where ``rank`` is not given.

    Returns:
        What was written, in words.

    Raises:
        EditError: see :func:`adapters`.
    """
    made = adapters(content, rank, max_rank, tolerance)
    anatomy = content.state.model.anatomy
    modules = {layer: anatomy.weight_name(layer).removesuffix(".weight") for layer in made}
    tensors = {
        f"base_model.model.{modules[layer]}.lora_{side}.weight": value
        for layer, one in made.items()
        for side, value in (("A", one.a), ("B", one.b))
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    ranks = {modules[layer]: one.rank for layer, one in made.items()}
    said = adapter_config(content, ranks, is_transposed(anatomy.down(next(iter(made)))))
    (folder / "adapter_config.json").write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    rows = [[str(layer), modules[layer], str(one.rank), f"{one.error:.1e}"] for layer, one in made.items()]
    kind = Kind(
        library="peft",
        relation="adapter",
        what="A LoRA adapter that comes close to the edited model. The change of a layer is approximated by a product of two "
        "thin factors, with the relative error below; the scores are those of the edited model itself.",
        code="from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f"base = {content.base_in_code}\n"
        'model = PeftModel.from_pretrained(base, "FOLDER_OR_HUB_ID")',
        again=(
            "--format",
            "lora",
            *(("--rank", str(rank)) if rank else ("--max-rank", str(max_rank), "--tolerance", f"{tolerance:g}")),
        ),
        details=("How close the adapter is", ["layer", "module", "rank", "relative error of the change"], rows),
    )
    (folder / "README.md").write_text(card(content, kind), encoding="utf-8")
    told = "; ".join(f"layer {layer}: rank {one.rank}, relative error {one.error:.1e}" for layer, one in made.items())
    return f"a LoRA adapter ({told})"


def adapter_config(content: Content, ranks: Mapping[str, int], transposed: bool) -> dict[str, Any]:
    """What PEFT reads; ``lora_alpha / r`` is 1 for every module.

    Args:
        content: what is exported.
        ranks: by the full name of a module, which PEFT matches from its end.
        transposed: whether the modules are ``Conv1D``.
    """
    largest = max(ranks.values())
    return {
        "alpha_pattern": dict(ranks),
        "base_model_name_or_path": content.base,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
        "lora_alpha": largest,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": largest,
        "rank_pattern": dict(ranks),
        "revision": content.revision,
        "target_modules": sorted(ranks),
        "task_type": "CAUSAL_LM",
    }
