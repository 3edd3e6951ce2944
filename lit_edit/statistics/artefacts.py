"""What the store keeps for every layer, on all ranks of a run."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lit_edit.parallel.ranks import Ranks
from lit_edit.store import Store


class Artefacts:
    """Artefacts by layer as the first rank's store has them, on every rank.

    A run reads even what it has just computed: the same numbers in another order of memory would give sums of other last
    bits in a run that resumes.

    Args:
        store: where they lie.
        identities: of the artefacts, by layer.
        ranks: who wants them.

    Raises:
        EditError: if one at its address belongs to something else.
    """

    def __init__(self, store: Store, identities: dict[int, dict[str, Any]], ranks: Ranks) -> None:
        self.store, self.identities, self.ranks = store, identities, ranks
        with ranks.together():
            found = {layer: store.get(identity) for layer, identity in identities.items()} if ranks.first else {}
        self._found = {layer: tensors for layer, tensors in found.items() if tensors is not None}
        self.missing: list[int] = ranks.of_first([layer for layer in identities if layer not in self._found])
        """Layers that have to be computed."""

    def put(self, layer: int, tensors: dict[str, Tensor], about: dict[str, Any] | None = None) -> None:
        """Keep what was computed."""
        with self.ranks.together():
            if self.ranks.first:
                self.store.put(self.identities[layer], tensors, about)
                self._found[layer] = self.store.get(self.identities[layer]) or tensors

    def get(self, layer: int) -> dict[str, Tensor]:
        """The tensors of a layer, by name."""
        own = self._found.get(layer)
        names = self.ranks.of_first(list(own) if own is not None else [])
        return dict(zip(names, self.ranks.of(0, None if own is None else list(own.values())), strict=True))
