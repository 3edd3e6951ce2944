"""What ranks do in the tests of ``lit_edit.parallel.ranks``; called on every rank by ``serving.py``."""

from __future__ import annotations

import os
import time

import torch

from lit_edit.errors import EditError, Rejected
from lit_edit.parallel.ranks import RankFailed


def shared(ranks, counts):
    """Shares of objects and of ragged rows, in order."""
    found = []
    for count in counts:
        asked = []

        def work(mine, asked=asked):
            asked.extend(mine)
            return [item * 10 for item in mine]

        objects = ranks.share(list(range(count)), work)
        rows = []
        if count:
            shares = ranks.strides(count)[::-1]
            mine = ranks.filled(shares)
            place, double = ranks.share_rows(
                shares,
                lambda mine=mine: (torch.tensor(mine), torch.tensor([[at, ranks.rank] for at in mine], dtype=torch.float64)),
            )
            rows = [place.tolist(), double.tolist()]
        found.append({"asked": asked, "objects": objects, "rows": rows})
    return found


def exchanged(ranks, given):
    one = torch.full((2, 3), float(ranks.rank + 1)).T  # not contiguous
    ranks.overwrite([one])
    total = torch.tensor([ranks.rank + 1.0], dtype=torch.float64)
    ranks.sums([total])
    last = ranks.size - 1
    of_last = ranks.of(last, [torch.tensor([7, 8]), torch.ones(1, 2)] if ranks.rank == last else None)
    return {
        "overwritten": one.tolist(),
        "sum": float(total),
        "of_last": [part.tolist() for part in of_last],
        "first": ranks.of_first({"rank": ranks.rank}),
        "everyone": ranks.everyone(ranks.rank),
    }


def rejected(ranks, who):
    """Some ranks cannot write a batch, at different moments; everybody undoes it and goes on with the next."""
    told = []
    for batch in range(2):
        try:
            with ranks.together():
                ranks.share([0, 1, 2], lambda mine: mine)
                if batch == 0 and ranks.rank in who:
                    raise Rejected(f"rank {ranks.rank} found no number" if len(who) == 1 else "no number")
                ranks.overwrite([torch.ones(2)])
                ranks.share([0, 1, 2], lambda mine: mine)
            told.append("written")
        except Rejected as reason:
            told.append(str(reason))
    return told


def failed(ranks, given):
    """One rank fails in its share: the others end with its words, and nobody waits for anybody."""
    started = time.monotonic()

    def work(mine):
        if ranks.rank == given["who"]:
            raise MemoryError("no room") if given["what"] == "memory" else EditError("the file is gone")
        return mine

    try:
        with ranks.together():
            ranks.share(list(range(5)), work)
        told = "nothing"
    except (MemoryError, EditError) as error:
        told = f"{type(error).__name__}: {error}"
    ranks.agree()  # whoever is alone has nobody to ask
    return [told, ranks.alone, time.monotonic() - started]


def dead(ranks, given):
    """One rank dies, or stops without dying, in the middle of an exchange."""
    started = time.monotonic()
    try:
        ranks.everyone(0)
        if ranks.rank == given["who"]:
            if given["how"] == "exits":
                os._exit(0)
            time.sleep(given["seconds"])
        for _ in range(3):
            ranks.share_rows(ranks.strides(8), lambda: (torch.zeros(len(ranks.strides(8)[ranks.rank]), 2),))
        return ["nothing", 0.0]
    except RankFailed as error:
        return [str(error), time.monotonic() - started]
