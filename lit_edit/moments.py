"""Second moments of keys: what the edited layers usually read, streamed over a corpus.

Legend: I = d_in, N = keys, S = random directions, B = rows, T = positions.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lit_edit.algebra.second_moment import SecondMoment
from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError
from lit_edit.micro_batches import Room, enough_memory, halving
from lit_edit.parallel.ranks import Ranks
from lit_edit.parallel.replicas import check_alike
from lit_edit.parallel.sharding import given_back
from lit_edit.prompts import right_pad
from lit_edit.statistics.partial import Partial, Stale

WINDOW = 256
"""Documents that are read ahead to find some of like length: padding is computed and thrown away."""

_DIRECTIONS = 32
"""Random directions in which two halves of the text are compared; they tell a Frobenius norm to about 10 %."""


class MomentSum:
    r"""Running sum of :math:`x x^T`: GEMMs in float32, the sum over chunks in float64, on one device throughout.

    Of the sum only the panels on and above the diagonal are computed. Besides, :math:`\sum x x^T G` is kept for each of two
    halves of the text, with a thin random :math:`G` of signs. As :math:`E\,\|A G\|_F^2 = S\,\|A\|_F^2` for every :math:`A`,
    that is enough to compare the halves (Hutchinson 1990), and costs a few percent of the sum instead of another one.

    Args:
        d_in: width of the keys.
        device: where the sum is kept.
    """

    def __init__(self, d_in: int, device: torch.device) -> None:
        self.total = torch.zeros(d_in, d_in, dtype=torch.float64, device=device)
        self.sketches = torch.zeros(2, d_in, _DIRECTIONS, dtype=torch.float64, device=device)
        self.squares = torch.zeros(2, dtype=torch.float64, device=device)
        self.counts = [0, 0]
        signs = torch.randint(2, (d_in, _DIRECTIONS), generator=torch.Generator().manual_seed(0))
        self.signs_IS = (2 * signs - 1).float().to(device)
        self.panel = max(512, -(-d_in // 8))

    @property
    def count(self) -> int:
        """Keys so far."""
        return sum(self.counts)

    def add(self, keys_NI: Tensor, half: int = 0) -> None:
        """Add the keys ``[n, d_in]`` of one chunk.

        Args:
            keys_NI: the keys; those of one half, and then those of the other.
            half: how many of them belong to the first half.
        """
        keys = keys_NI.float()
        parts = keys[:half], keys[half:]
        # Whatever needs memory comes before the first number is added, or it could not be begun anew with fewer keys.
        squares_N = keys.square().sum(1).double()
        squares = torch.stack([squares_N.sum(), squares_N.square().sum()])
        thin = [part.T @ (part @ self.signs_IS) for part in parts]
        product = keys[:, : self.panel].T @ keys
        with enough_memory("a second moment", "fewer blocks in --model.layers or a larger device help"):
            for start in range(0, keys.shape[1], self.panel):
                if start:
                    product = keys[:, start : start + self.panel].T @ keys[:, start:]
                # float32 into float64, without a float64 copy of the product
                self.total[start : start + self.panel, start:] += product
                del product
        self.squares += squares
        for index, part in enumerate(parts):
            self.sketches[index] += thin[index]
            self.counts[index] += len(part)

    def state(self) -> dict[str, Tensor]:
        """Everything it has added up."""
        return {"total": self.total, "sketches": self.sketches, "squares": self.squares, "counts": torch.tensor(self.counts)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from there."""
        self.total.copy_(state["total"])
        self.sketches.copy_(state["sketches"])
        self.squares.copy_(state["squares"])
        self.counts = state["counts"].tolist()

    def join(self, ranks: Ranks) -> None:
        """Add what the other ranks have added up."""
        counts = torch.tensor(self.counts, device=self.total.device)
        ranks.sums([self.total, self.sketches, self.squares, counts])
        self.counts = counts.tolist()

    def result(self) -> SecondMoment:
        """The mean so far, and how well it is known."""
        mean = (self.total / max(self.count, 1)).float().triu()
        mean = mean + mean.triu(1).T
        first, second = self.counts
        change = math.nan
        if first and second:
            distance = torch.linalg.norm(self.sketches[0] / first - self.sketches[1] / second) / math.sqrt(_DIRECTIONS)
            # Half of it is the way from either half to both together; parts of unequal size are judged alike.
            change = float(distance * math.sqrt(first * second) / self.count / torch.linalg.norm(mean.double()))
        weight, spread = self.squares.tolist()
        return SecondMoment(mean, self.count, change, weight**2 / spread if spread else math.nan)


@torch.no_grad()
def collect(
    anatomy: Anatomy,
    rows: Iterable[Sequence[int]],
    layers: Sequence[int],
    tokens: int,
    pad: int = 0,
    tokens_at_once: int | None = None,
    on_tokens: Callable[[int, int], None] | None = None,
    partial: Partial | None = None,
    ranks: Ranks | None = None,
) -> dict[int, SecondMoment]:
    """Second moments of several layers in one pass over a corpus that stops at the input of the last down-projection.

    Which tokens count is settled before rows are batched, so that neither :data:`WINDOW` nor ``tokens_at_once`` changes it.

    Args:
        anatomy: the unedited model.
        rows: documents as token ids.
        layers: blocks whose down-projection inputs are wanted.
        tokens: how many tokens to use; a shorter corpus is used whole.
        pad: token id for padding (padding never enters the sum).
        tokens_at_once: padded tokens per forward pass; default: 1024 on a CPU (more overflow its caches), else 8192. Halved
            where memory runs out.
        on_tokens: told ``(tokens so far, tokens wanted)`` after every pass.
        partial: where the sums are kept every now and then; a pass that finds some goes on from there.
        ranks: who shares the passes; everyone reads all rows, and gets all of the sums.

    Raises:
        EditError: if the corpus holds no token, or a key is not finite.
        OutOfMemory: if a single document, or a sum, is too large.
        Stale: if ``partial`` holds the sums of other text than ``rows``.
    """
    ranks = ranks or Ranks()
    sums, room = {layer: MomentSum(anatomy.d_inner, anatomy.device) for layer in layers}, Room()
    behind, seen, text = 0, 0, hashlib.sha256()
    kept = None if partial is None else partial.load()
    if len(set(ranks.everyone(0 if kept is None else int(kept["batches"])))) > 1:
        kept = None  # ended while ranks were writing theirs
    if kept is not None:
        behind = int(kept["batches"])
        for layer, total in sums.items():
            total.restore({name: kept[f"{layer}.{name}"] for name in total.state()})
    number = 0
    if tokens_at_once is None:
        tokens_at_once = 1024 if anatomy.device.type == "cpu" else 8192
    for number, batch in enumerate(_batches(rows, tokens, tokens_at_once), start=1):
        for _, row in batch:
            text.update(array("q", row).tobytes() + b";")
        seen += sum(len(row) for _, row in batch)
        if number < behind:
            continue
        digest = torch.tensor(list(text.digest()), dtype=torch.uint8)
        if number == behind:
            if kept is None or not torch.equal(digest, kept["text"]):
                raise Stale
        else:
            if number % ranks.workers == ranks.worker:
                _add(anatomy, batch, pad, sums, room)
            if partial is not None and seen < tokens and number % ranks.workers == 0 and ranks.of_first(partial.due()):
                states = {f"{layer}.{name}": value for layer, total in sums.items() for name, value in total.state().items()}
                partial.save({**states, "batches": torch.tensor(number), "text": digest})
        if on_tokens is not None:
            on_tokens(seen, tokens)
    if number < behind:
        raise Stale
    if seen == 0:
        raise EditError("the corpus for the second moments holds no text; name one with --model.corpus")
    check_alike(ranks, {"the text for the second moments": text.hexdigest()})
    for layer, total in sums.items():
        total.join(ranks)
        if not bool(torch.isfinite(total.total).all()):
            raise EditError(
                f"the second moment of layer {layer} is not finite; the model overflows in this dtype on the corpus"
            )
    return {layer: total.result() for layer, total in sums.items()}


Document = tuple[bool, Sequence[int]]
"""Token ids, and whether they belong to the first half of the text: every other document does, so that both are alike."""


def _batches(rows: Iterable[Sequence[int]], tokens: int, tokens_at_once: int) -> Iterator[list[Document]]:
    """Documents of like length in batches whose padded size stays under a budget."""
    chosen = _chosen(rows, tokens)
    while window := list(islice(chosen, WINDOW)):
        window.sort(key=lambda document: len(document[1]), reverse=True)  # the largest first: if memory is short, it shows
        batch: list[Document] = []
        for document in window:
            if batch and len(batch[0][1]) * (len(batch) + 1) > tokens_at_once:
                yield batch
                batch = []
            batch.append(document)
        yield batch


def _chosen(rows: Iterable[Sequence[int]], tokens: int) -> Iterator[Document]:
    """The documents that count, the last one cut where the wanted number of tokens is reached."""
    first = True
    for row in rows:
        row = row[:tokens]
        if row:
            yield first, row
            tokens, first = tokens - len(row), not first
        if tokens <= 0:
            break


class _Enough(Exception):
    """Raised inside a hook to leave a forward pass before the last down-projection runs."""


def _add(anatomy: Anatomy, batch: Sequence[Document], pad: int, sums: dict[int, MomentSum], room: Room) -> None:
    """Run one batch and add the keys of every layer; in halves where memory does not suffice."""
    added: dict[int, set[int]] = {layer: set() for layer in sums}

    def run(items: list[int]) -> None:
        # A pass that breaks off has added the keys of some layers, which its halves leave out.
        missing = {layer: total for layer, total in sums.items() if not added[layer].issuperset(items)}
        if missing:
            _run(anatomy, [batch[at] for at in items], pad, missing, lambda layer: added[layer].update(items))

    halving(
        list(range(len(batch))),
        run,
        "the keys of one document",
        "a --model.corpus whose max_tokens or length is smaller, or a larger device, helps",
        room,
        lambda items: len(items) * max(len(batch[at][1]) for at in items),
    )


def _run(
    anatomy: Anatomy, batch: Sequence[Document], pad: int, sums: dict[int, MomentSum], on_layer: Callable[[int], None]
) -> None:
    """One pass; tells ``on_layer`` of every layer whose keys have been added."""
    inputs = right_pad([row for _, row in batch], pad, anatomy.device)
    lengths = torch.tensor([len(row) for _, row in batch])
    there_BT = torch.arange(int(lengths.max())) < lengths[:, None]
    half_B1 = torch.tensor([half for half, _ in batch])[:, None]
    # Positions are listed here, not on the device: no pass has to wait for how many there are.
    first, rest = ((there_BT & wanted).flatten().nonzero()[:, 0] for wanted in (half_B1, ~half_B1))
    places_N = torch.cat([first, rest]).to(anatomy.device)
    last = max(sums)

    def adder(layer: int) -> Callable[..., None]:
        def add(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keys = args[0] if args else next(iter(kwargs.values()))
            # Some families (OPT) flatten rows and positions before the MLP.
            sums[layer].add(keys.reshape(-1, keys.shape[-1])[places_N], len(first))
            on_layer(layer)
            if layer == last:
                raise _Enough

        return add

    handles = [anatomy.down(layer).register_forward_pre_hook(adder(layer), with_kwargs=True) for layer in sums]
    try:
        anatomy.model(**inputs, use_cache=False)
    except _Enough:
        given_back(anatomy.blocks)
    finally:
        for handle in handles:
            handle.remove()
