"""What the edited layers read at the subject (keys) and what comes out of the target layer there (values).

Legend: N = requests, J = rows of a request (1 + contexts), U = distinct rows, I = d_in, O = d_out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor

from lit_edit.anatomy import Anatomy
from lit_edit.micro_batches import halving
from lit_edit.parallel.ranks import Ranks
from lit_edit.passes.forward import at_least_float32, block_outputs, reading, run_until, starting_after
from lit_edit.passes.layout import lay
from lit_edit.prompts import EditRows

Read = TypeVar("Read")


class KeyPass:
    r"""One incremental pass over a batch: reads layer after layer while the caller edits in between.

    A key is the input of the down-projection at the subject's last token, averaged as half the bare prompt and half the mean
    over the contexts: :math:`k = \frac12 k_{\text{bare}} + \frac{1}{2J}\sum_j k_j` (the released MEMIT code; not the uniform
    mean over ``J + 1`` rows). Rows end at the subject's last token, since nothing behind it can reach it; what rows share at
    their beginning is run once where the model allows it; and blocks below the previous edited layer are not run again.

    Args:
        anatomy: the model.
        requests: rows of every request of the batch.
        pad: token id for padding.
        requests_at_once: requests per forward pass; halved where memory runs out.
    """

    def __init__(self, anatomy: Anatomy, requests: Sequence[EditRows], pad: int, requests_at_once: int = 32) -> None:
        self.anatomy = anatomy
        self._chunks = [
            _Chunk(anatomy, requests[at : at + requests_at_once], pad) for at in range(0, len(requests), requests_at_once)
        ]

    @torch.no_grad()
    def keys(self, layer: int) -> Tensor:
        """Keys of a layer, ``[n, d_in]`` float32. Layers must be asked for in ascending order."""
        return torch.cat([chunk.keys(layer) for chunk in self._chunks])

    @torch.no_grad()
    def rows(self, layer: int) -> tuple[Tensor, Tensor]:
        """Input ``[n, rows, d_in]`` and output ``[n, rows, d_out]`` of the down-projection at the subject, row by row.

        The bare prompt is row 0. Layers must be asked for in ascending order.
        """
        inputs, outputs = zip(*(chunk.rows(layer) for chunk in self._chunks), strict=True)
        return torch.cat(inputs), torch.cat(outputs)

    @torch.no_grad()
    def values(self, layer: int) -> Tensor:
        """Output of block ``layer`` at the subject of the bare prompts, weights as they are: ``[n, d_model]`` float32."""
        return torch.cat([chunk.values(layer) for chunk in self._chunks])

    def written(self) -> Tensor:
        """Output of the down-projection, bare prompts, as of the last call of :meth:`keys`: ``[n, d_model]`` float32."""
        return torch.cat([chunk.written for chunk in self._chunks])


class SharedKeyPass(KeyPass):
    """A pass over a batch of which every rank runs its share; everybody gets to read all of it.

    Args:
        ranks: who shares the work.
        anatomy: the model, with the same weights on every rank.
        requests: rows of every request of the batch.
        pad: token id for padding.
        requests_at_once: requests per forward pass.
    """

    def __init__(
        self, ranks: Ranks, anatomy: Anatomy, requests: Sequence[EditRows], pad: int, requests_at_once: int = 32
    ) -> None:
        self.anatomy, self._ranks = anatomy, ranks
        count = len(requests)
        parts = [list(range(at, min(at + requests_at_once, count))) for at in range(0, count, requests_at_once)]
        dealt = ranks.deal(parts, [1.0] * len(parts))
        self._shares = [[at for part in own for at in part] for own in dealt]
        self._chunks = [_Chunk(anatomy, [requests[at] for at in part], pad) for part in ranks.filled(dealt)]

    def _all(self, read: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return self._ranks.share_rows(self._shares, read)

    def keys(self, layer: int) -> Tensor:
        """See :meth:`KeyPass.keys`."""
        return self._all(lambda: (super(SharedKeyPass, self).keys(layer),))[0]

    def rows(self, layer: int) -> tuple[Tensor, Tensor]:
        """See :meth:`KeyPass.rows`."""
        inputs, outputs = self._all(lambda: super(SharedKeyPass, self).rows(layer))
        return inputs, outputs

    def values(self, layer: int) -> Tensor:
        """See :meth:`KeyPass.values`."""
        return self._all(lambda: (super(SharedKeyPass, self).values(layer),))[0]

    def written(self) -> Tensor:
        """See :meth:`KeyPass.written`."""
        return self._all(lambda: (super(SharedKeyPass, self).written(),))[0]


class _Chunk:
    """The requests of one forward pass."""

    written: Tensor

    def __init__(self, anatomy: Anatomy, requests: Sequence[EditRows], pad: int) -> None:
        device = anatomy.device
        # Requests about one subject share rows. Each distinct row runs once: it is less work, and equal keys come out equal
        # to the last bit (two rows of one matrix product may not), which ill-conditioned statistics would blow up.
        distinct: dict[tuple[int, ...], int] = {}
        bare = [distinct.setdefault(request.reading[0].ids, len(distinct)) for request in requests]
        bares = len(distinct)
        others = [[distinct.setdefault(row.ids, len(distinct)) for row in request.reading[1:]] for request in requests]
        rows = list(distinct)
        # Bare prompts are also run alone, for the values: a layout of their own.
        self.bare = _Readings(anatomy, rows[:bares], pad)
        self.rest = _Readings(anatomy, rows[bares:], pad) if len(rows) > bares else None
        # Every request has the same number of rows: the bare prompt, then the contexts.
        self.row_NJ = torch.tensor([[first, *more] for first, more in zip(bare, others, strict=True)], device=device)
        contexts = self.row_NJ.shape[1] - 1
        self.weight_J = torch.tensor([0.5, *([0.5 / contexts] * contexts)] if contexts else [1.0], device=device)

    def keys(self, layer: int) -> Tensor:
        inputs_NJI, outputs_NJO = self.rows(layer)
        self.written = outputs_NJO[:, 0]
        # A sum over one dimension, not index_add: that is not deterministic on a GPU.
        return (inputs_NJI * self.weight_J[None, :, None]).sum(1)

    def rows(self, layer: int) -> tuple[Tensor, Tensor]:
        parts = [part.rows(layer) for part in (self.bare, self.rest) if part is not None]
        inputs, outputs = (torch.cat(found) for found in zip(*parts, strict=True))
        return inputs[self.row_NJ], outputs[self.row_NJ]

    def values(self, layer: int) -> Tensor:
        return self.bare.values(layer)[self.row_NJ[:, 0]]


class _Readings:
    """Rows that end at their subject, read together, or in parts where memory does not suffice.

    A part that is split is begun anew: it runs the blocks below, as they are by now, once more.
    """

    def __init__(self, anatomy: Anatomy, rows: Sequence[Sequence[int]], pad: int) -> None:
        self.anatomy, self.pad = anatomy, pad
        self.parts: list[tuple[Sequence[Sequence[int]], _Reading | None]] = [(rows, None)]

    def rows(self, layer: int) -> tuple[Tensor, Tensor]:
        """See :meth:`_Reading.rows`."""
        inputs, outputs = zip(*self._each(lambda part: part.rows(layer)), strict=True)
        return torch.cat(inputs), torch.cat(outputs)

    def values(self, layer: int) -> Tensor:
        """See :meth:`_Reading.values`."""
        return torch.cat(self._each(lambda part: part.values(layer)))

    def _each(self, read: Callable[[_Reading], Read]) -> list[Read]:
        """What is read of every part."""
        parts, found = self.parts, []
        self.parts = []
        for rows, known in parts:

            def run(items: list[int], rows: Any = rows, known: _Reading | None = known) -> tuple[_Reading, Read]:
                part = known if len(items) == len(rows) else None
                part = part or _Reading(self.anatomy, [rows[at] for at in items], self.pad)
                return part, read(part)

            for items, (part, what) in halving(list(range(len(rows))), run, "the keys of one prompt"):
                self.parts.append(([rows[at] for at in items], part))
                found.append(what)
        return found


class _Reading:
    """Rows that end at their subject, and the hidden states that the next pass over them starts from."""

    def __init__(self, anatomy: Anatomy, rows: Sequence[Sequence[int]], pad: int) -> None:
        self.anatomy = anatomy
        laid = lay(anatomy, rows, pad)
        self.inputs = laid.inputs
        self.line_U, self.column_U = (
            laid.line_RT[:, -1],
            laid.column_RT[:, -1],
        )  # behind its end a row's last token stands again
        self.layer = -1
        self.hidden: Tensor | None = None  # output of block `layer`

    def rows(self, layer: int) -> tuple[Tensor, Tensor]:
        """Input ``[U, d_in]`` and output ``[U, d_out]`` of the down-projection at the ends of the rows."""
        shape = self.inputs["input_ids"].shape  # some families (OPT) flatten rows and positions before the MLP
        kept: list[Tensor] = []
        entrance: list[Tensor] = []
        output: list[Tensor] = []
        down = self.anatomy.down(layer)

        def at_the_ends(x: Tensor) -> Tensor:
            return at_least_float32(x.reshape(*shape, -1)[self.line_U, self.column_U])

        with ExitStack() as stack:
            stack.enter_context(reading(down, lambda x: kept.append(at_the_ends(x)), output.append))
            if layer > 0:
                stack.enter_context(reading(self.anatomy.blocks[layer - 1], None, entrance.append))
            if self.hidden is not None:
                stack.enter_context(starting_after(self.anatomy, self.layer, self.hidden))
            run_until(self.anatomy, down, self.inputs)
        if layer > 0:
            self.layer, self.hidden = layer - 1, entrance[0]
        return kept[0], at_the_ends(output[0])

    def values(self, layer: int) -> Tensor:
        """Output of block ``layer`` at the ends of the rows, ``[U, d_model]``."""
        with ExitStack() as stack:
            if self.hidden is not None:
                stack.enter_context(starting_after(self.anatomy, self.layer, self.hidden))
            return at_least_float32(block_outputs(self.anatomy, self.inputs, layer)[self.line_U, self.column_U])
