"""What the edited layers read at the subject (keys) and what comes out of the target layer there (values).

Legend: N = requests, J = rows of a request (1 + contexts), R = all rows, U = distinct rows, I = d_in, D = hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_edit.anatomy import Anatomy
from lit_edit.forward import measured, reading, run_until, starting_after
from lit_edit.prompts import EditRows, right_pad


class KeyPass:
    r"""One incremental pass over a batch: reads layer after layer while the caller edits in between.

    A key is the input of the down-projection at the subject's last token, averaged as half the bare prompt and half the mean
    over the contexts: :math:`k = \frac12 k_{\text{bare}} + \frac{1}{2J}\sum_j k_j` (the released MEMIT code; not the uniform
    mean over ``J + 1`` rows). Rows end at the subject's last token, since nothing behind it can reach it, and blocks below
    the previous edited layer are not run again.

    Args:
        anatomy: the model.
        requests: rows of every request of the batch.
        pad: token id for padding.
        requests_at_once: requests per forward pass.
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


class _Chunk:
    """The requests of one forward pass, and the hidden states that the next one starts from."""

    written: Tensor

    def __init__(self, anatomy: Anatomy, requests: Sequence[EditRows], pad: int) -> None:
        self.anatomy = anatomy
        device = anatomy.device
        rows = [row for request in requests for row in request.reading]
        # Requests about one subject share rows. Each distinct row runs once: it is less work, and equal keys come out equal
        # to the last bit (two rows of one matrix product may not), which ill-conditioned statistics would blow up.
        distinct: dict[tuple[int, ...], int] = {}
        row_R = torch.tensor([distinct.setdefault(row.ids, len(distinct)) for row in rows], device=device)
        self.inputs = right_pad(list(distinct), pad, device)
        self.subject_U = torch.tensor([len(ids) - 1 for ids in distinct], device=device)
        # Every request has the same number of rows: the bare prompt, then the contexts.
        self.row_NJ = row_R.view(len(requests), -1)
        contexts = self.row_NJ.shape[1] - 1
        self.weight_J = torch.tensor([0.5, *([0.5 / contexts] * contexts)] if contexts else [1.0], device=device)
        self.bare_N = self.row_NJ[:, 0]
        self.layer = -1
        self.hidden: Tensor | None = None  # output of block `layer`, distinct rows

    def keys(self, layer: int) -> Tensor:
        inputs_NJI, outputs_NJO = self.rows(layer)
        self.written = outputs_NJO[:, 0]
        # A sum over one dimension, not index_add: that is not deterministic on a GPU.
        return (inputs_NJI * self.weight_J[None, :, None]).sum(1)

    def rows(self, layer: int) -> tuple[Tensor, Tensor]:
        rows = torch.arange(len(self.subject_U), device=self.subject_U.device)
        shape = self.inputs["input_ids"].shape  # some families (OPT) flatten rows and positions before the MLP
        kept: list[Tensor] = []
        entrance: list[Tensor] = []
        output: list[Tensor] = []
        down = self.anatomy.down(layer)
        start = self.layer if self.hidden is not None else -1

        def keep(x: Tensor) -> None:
            kept.append(x.reshape(*shape, -1)[rows, self.subject_U].float())

        with reading(down, keep, output.append):
            if layer > 0:
                with reading(self.anatomy.blocks[layer - 1], None, entrance.append):
                    self._run(down, start)
            else:
                self._run(down, start)
        if layer > 0:
            self.layer, self.hidden = layer - 1, entrance[0]
        put_out = output[0].reshape(*shape, -1)[rows, self.subject_U].float()
        return kept[0][self.row_NJ], put_out[self.row_NJ]

    def _run(self, until: torch.nn.Module, start: int) -> None:
        if start < 0:
            run_until(self.anatomy, until, self.inputs)
            return
        assert self.hidden is not None
        with starting_after(self.anatomy, start, self.hidden):
            run_until(self.anatomy, until, self.inputs)

    def values(self, layer: int) -> Tensor:
        inputs = {name: value[self.bare_N] for name, value in self.inputs.items()}
        columns = self.subject_U[self.bare_N]
        if self.hidden is None:
            return measured(self.anatomy, inputs, columns, (layer,))[layer]
        with starting_after(self.anatomy, self.layer, self.hidden[self.bare_N]):
            return measured(self.anatomy, inputs, columns, (layer,))[layer]
