"""Whether all ranks hold the same: the same stream before the first batch, the same weights and state behind every one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lit_edit.batch.state import snapshot
from lit_edit.errors import EditError
from lit_edit.parallel.ranks import Ranks
from lit_edit.store import fingerprint


def check_alike(ranks: Ranks, facts: Mapping[str, Any]) -> None:
    """Make sure that every rank says the same.

    Args:
        ranks: who is asked; one rank alone always agrees with itself.
        facts: plain data by what it is, as it stands in a sentence ("the edit set").

    Raises:
        EditError: on all ranks, naming the first that does not say what most say, and about what.
    """
    if ranks.size == 1:
        return
    everyone = ranks.everyone({what: repr(value) for what, value in facts.items()})
    for what in facts:
        said = [theirs.get(what, "nothing") for theirs in everyone]
        usual = Counter(said).most_common(1)[0][0]  # of equally many, what the lower rank says
        for rank, value in enumerate(said):
            if value != usual:
                found = f"{_short(value)} instead of {_short(usual)}"
                raise EditError(
                    f"rank {rank} differs from the others in {what} ({found}); all ranks must run the same program with the "
                    "same files, and a device that computes wrongly has to be replaced"
                )


def digests(masters: Mapping[int, Tensor], shown: Mapping[int, Tensor], parts: Sequence[nn.Module]) -> dict[str, str]:
    """SHA-256 of everything that has to be the same on all ranks behind a batch.

    Args:
        masters: float32 weight ``[d_out, d_in]`` by layer.
        shown: what the model shows of it, by layer.
        parts: editor and guards, of which all buffers count.
    """
    found = {f"the master of layer {layer}": fingerprint({"": weight}) for layer, weight in masters.items()}
    found |= {f"the weight shown at layer {layer}": fingerprint({"": weight}) for layer, weight in shown.items()}
    for part in parts:
        state = {f"{number}": value for number, (_, _, value) in enumerate(snapshot([part])) if value is not None}
        found[f"the state of {type(part).__name__}"] = fingerprint(state)
    return found


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
