"""How well second moments are known: said once, warned of where it is too little, logged, and kept beside them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from lit_edit.algebra.second_moment import SecondMoment

log = logging.getLogger(__name__)

ENOUGH = 0.1
"""Relative change between half and all of the tokens up to which a second moment counts as known."""


def report(moments: dict[int, SecondMoment], wanted: int, say: Callable[[str], None]) -> None:
    """Say in one sentence how well the moments are known; warn of the layer that is known worst, where that is too little.

    Args:
        moments: by layer.
        wanted: tokens that were asked for.
        say: told the sentence.
    """
    known = {layer: moment for layer, moment in moments.items() if not math.isnan(moment.change)}
    if not known:
        return
    layer, worst = max(known.items(), key=lambda item: item[1].change)
    effective = min(moment.effective for moment in known.values())
    say(
        f"Second moments of layers {', '.join(map(str, moments))}: {worst.count:,} tokens (in effect {effective:,.0f}); half "
        f"of them are within {worst.change:.1%} of all (layer {layer})"
    )
    if worst.change <= ENOUGH:
        return
    # The error falls with the square root of the tokens.
    needed = math.ceil(worst.count * (worst.change / ENOUGH) ** 2)
    more = f"--model.moment_tokens {needed}" if worst.count >= wanted else "a larger --model.corpus"
    log.warning(
        "the second moment of layer %d is known poorly: half of its %d tokens differ from all by %.0f %%, above %.0f %%; %s "
        "would help",
        *(layer, worst.count, 100 * worst.change, 100 * ENOUGH, more),
    )


def scalars(moments: dict[int, SecondMoment]) -> dict[str, float]:
    """What is logged of second moments: ``moments/convergence/layer_*`` and ``moments/effective_tokens/layer_*``."""
    found = {f"moments/convergence/layer_{layer}": moment.change for layer, moment in moments.items()}
    found.update({f"moments/effective_tokens/layer_{layer}": moment.effective for layer, moment in moments.items()})
    return {name: value for name, value in found.items() if not math.isnan(value)}


def about(moment: SecondMoment) -> dict[str, Any]:
    """What a reader of the store wants to know of a moment, as plain JSON."""
    numbers = {"tokens": moment.count, "convergence": moment.change, "effective_tokens": moment.effective}
    return {name: None if math.isnan(value) else value for name, value in numbers.items()}
