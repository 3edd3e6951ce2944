"""What an evaluation runs: a scorer that takes down the passes it is asked for, and runs none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from lit_edit.data.loader import spread
from lit_edit.passes.rows import passes
from lit_edit.plan.network import Network
from lit_edit.plan.work import Grid
from lit_edit.probes.base import Probe
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest
from lit_edit.scoring import AnswerScores, Scorer, _merged

SAMPLE = 256
"""Edits that are tokenised to learn what scoring one takes."""


class Listening(Scorer):
    """Says that every answer has a likelihood of 1 and is wrong; :attr:`grids` is what it would have run.

    Args:
        network: the model.
        encoder: its tokenizer.
    """

    def __init__(self, network: Network, encoder: Encoder) -> None:
        super().__init__(network.anatomy, encoder)
        self.grids: list[Grid] = []

    def rows(self, rows: Sequence[tuple[list[int], int]]) -> AnswerScores:
        """See :meth:`Scorer.rows`."""
        sizes = [len(ids) - first for ids, first in rows]
        fed, _ = _merged([tuple(ids[:-1]) for ids, _ in rows])
        share = sum(sizes) / max(len(fed), 1)
        for one in passes(self.anatomy, fed, self.tokens_at_once):
            lines = len(one.packs) or len(one.where)
            columns = max(len(pack.ids) for pack in one.packs) if one.packs else max(len(fed[at]) for at in one.where)
            self.grids.append(Grid(lines, columns, bool(one.packs), max(1, round(share * len(one.where)))))
        zero, wrong = torch.zeros(len(rows)), torch.zeros(len(rows), dtype=torch.bool)
        none = tuple((0,) * size for size in sizes)
        return AnswerScores(zero, wrong, torch.tensor(sizes), none, tuple((False,) * size for size in sizes))

    def generate(self, prompts: Sequence[str], tokens: int, until: Sequence[str] = ()) -> list[str]:
        """See :meth:`Scorer.generate`; every prompt is continued to the end."""
        longest = max(len(self.encoder.encode(prompt)[0]) for prompt in prompts)
        self.grids.append(Grid(len(prompts), longest + tokens, False, len(prompts) * tokens))
        return [""] * len(prompts)


def of_edits(network: Network, encoder: Encoder, requests: Sequence[EditRequest], at_once: int) -> tuple[tuple[Grid, ...], int]:
    """Passes that scoring some edits takes, and how many edits these are: a sample of at most :data:`SAMPLE`.

    Args:
        network: the model.
        encoder: its tokenizer.
        requests: the stream.
        at_once: edits to a batch in evaluation.
    """
    heard = Listening(network, encoder)
    chosen = [requests[at] for at in spread(len(requests), min(SAMPLE, at_once))]
    heard.requests(chosen, nullcontext)
    return tuple(heard.grids), len(chosen)


def of_probes(
    network: Network, encoder: Encoder, probes: Sequence[Probe], at_once: int, tell: Callable[[str], None]
) -> tuple[Grid, ...]:
    """Passes that one look at all probes takes.

    Args:
        network: the model.
        encoder: its tokenizer.
        probes: the probes.
        at_once: items to a batch.
        tell: told of probes whose passes cannot be counted without a model.
    """
    found: list[Grid] = []
    for probe in probes:
        heard, items = Listening(network, encoder), list(probe.items())
        try:
            for start in range(0, len(items), at_once):
                probe.measure(heard, items[start : start + at_once])
        except Exception as error:  # a user's own probe may look into the model itself
            tell(f"the probe {probe.name} is not counted: it runs the model in a way of its own ({type(error).__name__})")
            continue
        found += heard.grids
    return tuple(found)
