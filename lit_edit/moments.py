"""Second moments of keys: what the edited layers usually read, streamed over a corpus.

Legend: I = d_in, N = keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError
from lit_edit.forward import reading, run_until
from lit_edit.prompts import right_pad


@dataclass(frozen=True)
class SecondMoment:
    r"""Mean uncentred second moment :math:`C = \frac1M \sum_{i=1}^{M} x_i x_i^T` of the inputs of one down-projection."""

    mean: Tensor  # [I, I], float32 (released statistics are float32 too)
    count: int
    """Number of tokens M."""

    def tensors(self) -> dict[str, Tensor]:
        """What the store keeps."""
        return {"mean": self.mean, "count": torch.tensor(self.count)}

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (ascending, ``[d_in]``) and eigenvectors (columns, ``[d_in, d_in]``), float64, on the tensor's device."""
        mean = self.mean.double()
        values, vectors = torch.linalg.eigh((mean + mean.T) / 2)
        return values, vectors


class MomentSum:
    """Running sum of ``x x^T``: GEMMs in float32, the sum over chunks in float64.

    Args:
        d_in: width of the keys.
        device: where the sum is kept.
    """

    def __init__(self, d_in: int, device: torch.device) -> None:
        self.total = torch.zeros(d_in, d_in, dtype=torch.float64, device=device)
        self.count = 0

    def add(self, keys_NI: Tensor) -> None:
        """Add the keys ``[n, d_in]`` of one chunk."""
        keys = keys_NI.float()
        self.total += keys.T @ keys  # float32 into float64, without a float64 copy of the product
        self.count += len(keys)

    def result(self) -> SecondMoment:
        """The mean so far."""
        return SecondMoment((self.total / max(self.count, 1)).float(), self.count)


@torch.no_grad()
def collect(
    anatomy: Anatomy,
    rows: Iterable[Sequence[int]],
    layers: Sequence[int],
    tokens: int,
    pad: int = 0,
    tokens_at_once: int = 8192,
    on_tokens: Callable[[int, int], None] | None = None,
) -> dict[int, SecondMoment]:
    """Second moments of several layers in one pass over a corpus that stops after the last of them.

    Args:
        anatomy: the unedited model.
        rows: documents as token ids.
        layers: blocks whose down-projection inputs are wanted.
        tokens: how many tokens to use; a shorter corpus is used whole.
        pad: token id for padding (padding never enters the sum).
        tokens_at_once: padded tokens per forward pass.
        on_tokens: told ``(tokens so far, tokens wanted)`` after every pass.

    Raises:
        EditError: if the corpus holds no token, or a key is not finite.
    """
    sums = {layer: MomentSum(anatomy.d_inner, anatomy.device) for layer in layers}
    last = anatomy.down(max(layers))
    seen = 0
    for batch in _batches(rows, tokens, tokens_at_once):
        inputs = right_pad(batch, pad, anatomy.device)
        mask = inputs["attention_mask"].bool()
        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(reading(anatomy.down(layer), _adder(sums[layer], mask), None))
            run_until(anatomy, last, inputs)
        seen += int(mask.sum())
        if on_tokens is not None:
            on_tokens(seen, tokens)
    if seen == 0:
        raise EditError("the corpus for the second moments holds no text; name one with --model.corpus")
    for layer, total in sums.items():
        if not bool(torch.isfinite(total.total).all()):
            raise EditError(
                f"the second moment of layer {layer} is not finite; the model overflows in this dtype on the corpus"
            )
    return {layer: total.result() for layer, total in sums.items()}


def _adder(total: MomentSum, mask_BT: Tensor) -> Callable[[Tensor], None]:
    def add(keys: Tensor) -> None:
        # Some families (OPT) flatten rows and positions before the MLP.
        total.add(keys.reshape(*mask_BT.shape, -1)[mask_BT])

    return add


def _batches(rows: Iterable[Sequence[int]], tokens: int, tokens_at_once: int) -> Iterator[list[Sequence[int]]]:
    """Rows in batches whose padded size stays under a budget, cut where the wanted number of tokens is reached."""
    batch: list[Sequence[int]] = []
    longest, left = 0, tokens
    for row in rows:
        if left <= 0:
            break
        row = row[:left]
        if not row:
            continue
        left -= len(row)
        longest = max(longest, len(row))
        if batch and longest * (len(batch) + 1) > tokens_at_once:
            yield batch
            batch, longest = [], len(row)
        batch.append(row)
    if batch:
        yield batch
