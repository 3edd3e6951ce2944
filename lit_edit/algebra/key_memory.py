"""How close new keys come to those of earlier edits, with a memory that stays bounded.

Legend: N = new keys, R = remembered keys, I = d_in.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor


class KeyMemory:
    """The directions of the keys that earlier batches wrote, layer by layer.

    Up to ``most`` keys a layer are all remembered, and cosines to them are those to every earlier key. Of more, a uniform
    sample without replacement is kept (algorithm R of Vitter 1985; the slot of the ``i``-th key depends on ``i`` and ``seed``
    only), and :meth:`cosines` says of which share of the keys it speaks. Unit vectors are kept as float16 (``2 d_in`` bytes a
    key; 59 MB a layer for 2048 keys of width 14336), which changes a cosine by less than 5e-4, and that of a key with itself by
    less than 1e-6.

    Args:
        most: keys remembered per layer.
        seed: of the sample.
    """

    def __init__(self, most: int, seed: int = 0) -> None:
        self.most, self.seed = most, seed
        self._kept: dict[int, Tensor] = {}  # [R, I] float16
        self._seen: dict[int, int] = {}

    @torch.no_grad()
    def cosines(self, layer: int, keys_NI: Tensor) -> dict[str, float]:
        """Largest cosine of every new key to any remembered one.

        Args:
            layer: index of the transformer block.
            keys_NI: ``[n, d_in]``.

        Returns:
            ``key_cosine_max`` and ``key_cosine_mean`` over the new keys, ``key_memory_share``: remembered over all earlier
            keys, 1 while the cosines are exact. Empty without an earlier key.
        """
        kept = self._kept.get(layer)
        if kept is None or not len(kept) or not len(keys_NI):
            return {}
        kept = self._kept[layer] = kept.to(keys_NI.device)
        # Rounding changed the length of what is kept, too.
        largest_N = (_unit(keys_NI.float()) @ _unit(kept.float()).T).amax(1)
        share = len(kept) / self._seen[layer]
        found = {"key_cosine_max": largest_N.max(), "key_cosine_mean": largest_N.double().mean()}
        return {**{name: float(value) for name, value in found.items()}, "key_memory_share": share}

    @torch.no_grad()
    def add(self, layer: int, keys_NI: Tensor) -> None:
        """Remember the keys of a batch, ``[n, d_in]``."""
        fresh = _unit(keys_NI.float()).half()
        kept = self._kept.get(layer, fresh[:0]).to(fresh.device)
        seen = self._seen.get(layer, 0)
        room = max(0, min(self.most - len(kept), len(fresh)))
        kept = torch.cat([kept, fresh[:room]])
        for index in range(room, len(fresh)):
            slot = self._slot(seen + index)
            if slot < self.most:
                kept[slot] = fresh[index]
        self._kept[layer], self._seen[layer] = kept, seen + len(fresh)

    def _slot(self, index: int) -> int:
        """A place among the keys up to number ``index``, all equally likely."""
        return random.Random(f"{self.seed}/{index}").randrange(index + 1)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"kept": dict(self._kept), "seen": dict(self._seen)}

    def load(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._kept, self._seen = dict(state["kept"]), {layer: int(count) for layer, count in state["seen"].items()}


def _unit(vectors_NI: Tensor) -> Tensor:
    """Vectors of length 1; zero stays zero."""
    length_N1: Tensor = vectors_NI.norm(dim=1, keepdim=True)
    return vectors_NI / length_N1.clamp_min(1e-30)
