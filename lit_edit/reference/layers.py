"""Where a model keeps its facts: causal patching at the subject's last token.

After Meng et al. 2022 (https://arxiv.org/abs/2202.05262): what decides an answer is found by moving states from one run to
another. Here the states of one subject replace those of another in the same question, rather than those of a noisy run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from torch import nn

from lit_edit.pretraining.measures import Questions, blocks, first_tokens, in_eval_mode, moved_by_patching, right_without
from lit_edit.reference.facts import Fact, Template

Asked = tuple[Fact, Template]
ENOUGH = 0.9
"""Share of the effect of the best window of layers that a smaller one has to reach to be chosen."""


@dataclass(frozen=True)
class Layers:
    """How much the layers decide, at the subject's last token; all numbers are shares of ``n`` pairs of known facts.

    Args:
        n: pairs of facts of one relation that the model knows in the same template, with different objects.
        block: how often the output of each block, moved to the other subject's question, takes the answer with it.
        mlp: the same for the output of each MLP alone.
        without: how often the answer stays right while the MLP of the layer writes nothing there.
        windows: the same as ``mlp`` for the MLPs of several layers at once, ``first-last``.
        chosen: the smallest window that reaches nine tenths of the largest effect of any; the first one of its size.
    """

    n: int
    block: list[float]
    mlp: list[float]
    without: list[float]
    windows: dict[str, float]
    chosen: list[int]


def pairs_of(known: Sequence[Asked], n: int, seed: int = 0) -> list[tuple[Asked, Asked]]:
    """``n`` pairs of known facts in the same words, with different objects; fewer if there are fewer."""
    groups: dict[tuple[str, str], list[Asked]] = defaultdict(list)
    for fact, template in known:
        groups[fact.relation, template.prompt].append((fact, template))
    usable = [group for group in groups.values() if len({fact.object for fact, _ in group}) > 1]
    rng = Random(f"pairs-{seed}")
    found: list[tuple[Asked, Asked]] = []
    while usable and len(found) < n:
        one, other = rng.sample(rng.choice(usable), 2)
        if one[0].object != other[0].object:
            found.append((one, other))
    return found


def measure_layers(model: nn.Module, tokenizer: Any, known: Sequence[Asked], n: int = 300, seed: int = 0) -> Layers | None:
    """Patch every block, every MLP and every window of MLPs; ``None`` where the model does not know enough to be asked.

    Args:
        model: a GPT-2 or Llama type model.
        tokenizer: its tokenizer.
        known: facts that it knows, each in words in which it knows them.
        n: number of pairs.
        seed: of their draw.
    """
    pairs = pairs_of(known, n, seed)
    if not pairs:
        return None
    sources, targets = (
        Questions.of(tokenizer, [asked[1].asked(asked[0].subject) for asked in side]) for side in zip(*pairs, strict=True)
    )
    answers = first_tokens(tokenizer, [one[0].object for one, _ in pairs])
    parts: Any = blocks(model)
    mlps = [block.mlp for block in parts]
    spans = [(a, b) for a in range(len(mlps)) for b in range(a, len(mlps))]
    with in_eval_mode(model):
        block = [moved_by_patching(model, [part], sources, targets, answers) for part in parts]
        windows = {(a, b): moved_by_patching(model, mlps[a : b + 1], sources, targets, answers) for a, b in spans}
        without = [right_without(model, mlp, sources, answers) for mlp in mlps]
    enough = ENOUGH * max(windows.values())
    first, last = min((span for span in spans if windows[span] >= enough), key=lambda span: (span[1] - span[0], span[0]))
    return Layers(
        len(pairs),
        block,
        [windows[layer, layer] for layer in range(len(mlps))],
        without,
        {f"{a}-{b}": moved for (a, b), moved in windows.items()},
        list(range(first, last + 1)),
    )
