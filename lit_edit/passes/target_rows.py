"""The rows of a target optimisation: posed once per batch, run through the upper blocks at every step.

Legend: N = requests, R = rows (1 + contexts per request, and a KL row where no other row begins with it), S = positions from
the subject's last token on, D = hidden size, P = target tokens, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_edit.anatomy import Anatomy
from lit_edit.passes.forward import at_least_float32, last_mlp_at, logits_at, starting_after
from lit_edit.passes.suffix import Suffixes, suffixes
from lit_edit.prompts import EditRows, Row


@dataclass(frozen=True)
class Seen:
    """What one forward pass gives, per request still in the problem."""

    nll_N: Tensor
    probability_N: Tensor
    tokens_N: Tensor
    hits_N: Tensor
    behind_NV: Tensor
    """Log-probabilities behind the subject of the KL prompt."""


@dataclass(frozen=True)
class _Spots:
    """Positions whose logits are wanted, each once: a label may stand where the KL prompt ends."""

    row_U: Tensor
    column_U: Tensor
    index: Tensor
    """Which spot each wanted position is."""

    @classmethod
    def of(cls, rows: Tensor, columns: Tensor) -> _Spots:
        """The distinct ones among ``(row, column)`` pairs."""
        found, index = torch.stack([rows, columns]).unique(dim=1, return_inverse=True)
        return cls(found[0], found[1], index)


@dataclass(frozen=True)
class Problem:
    """Tensors of the requests that are still being optimised. Rewriting rows come first, KL rows after them."""

    requests_N: Tensor  # indices into the batch
    rows: Suffixes  # from the subject's last token on
    subject_R: Tensor  # column of that token
    owner_R: Tensor  # request (0..n-1) of a row
    pick_row_P: Tensor
    pick_column_P: Tensor
    spots: _Spots
    label_P: Tensor
    share_P: Tensor  # 1 / target tokens of the row
    row_share_P: Tensor  # 1 / rows of the request
    rewriting: int  # number of rewriting rows
    behind_N: Tensor  # the row in which a request's KL prompt stands

    @classmethod
    def pose(cls, anatomy: Anatomy, requests: Sequence[EditRows], layer: int, pad: int) -> Problem:
        """Run everything that no change at the subject can reach, once."""
        device = anatomy.device
        rewriting = [(owner, row) for owner, request in enumerate(requests) for row in request.rewriting]
        rows, behind = list(rewriting), []
        for owner, request in enumerate(requests):
            index = next((at for at, (own, row) in enumerate(rewriting) if own == owner and _begins(row, request.kl)), None)
            if index is None:
                index = len(rows)
                rows.append((owner, request.kl))
            behind.append(index)
        cut = suffixes(anatomy, [row.ids for _, row in rows], [row.subject for _, row in rows], layer, pad)
        start = cut.start_R.tolist()
        picks = [
            (index, column - start[index], label, 1 / len(row.labels), 1 / len(requests[owner].rewriting))
            for index, (owner, row) in enumerate(rewriting)
            for column, label in row.labels
        ]
        places, shares = [pick[:3] for pick in picks], [pick[3:] for pick in picks]
        row_P, column_P, label_P = torch.tensor(places, device=device).T
        dtype = torch.promote_types(cut.hidden_RSD.dtype, torch.float32)
        share_P, row_share_P = torch.tensor(shares, device=device, dtype=dtype).T
        subject_R = torch.tensor([row.subject for _, row in rows], device=device) - cut.start_R
        behind_N = torch.tensor(behind, device=device)
        return cls(
            requests_N=torch.arange(len(requests), device=device),
            rows=cut,
            subject_R=subject_R,
            owner_R=torch.tensor([owner for owner, _ in rows], device=device),
            pick_row_P=row_P,
            pick_column_P=column_P,
            spots=_Spots.of(torch.cat([row_P, behind_N]), torch.cat([column_P, subject_R[behind_N]])),
            label_P=label_P,
            share_P=share_P,
            row_share_P=row_share_P,
            rewriting=len(rewriting),
            behind_N=behind_N,
        )

    def start(self) -> Tensor:
        """Output of the layer at the subject of the bare prompts, ``[n, hidden]`` float32."""
        owners = self.owner_R[: self.rewriting]
        first = torch.searchsorted(owners, torch.arange(len(self.requests_N), device=owners.device))
        return at_least_float32(self.rows.hidden_RSD[first, self.subject_R[first]])

    def only(self, keep_N: Tensor) -> Problem:
        """The same problem without the requests (mask ``[n]``) that are done."""
        rows = keep_N[self.owner_R]
        new_row = rows.cumsum(0) - 1
        new_owner = keep_N.cumsum(0) - 1
        picks = rows[self.pick_row_P]
        row_P, column_P = new_row[self.pick_row_P[picks]], self.pick_column_P[picks]
        subject_R, behind_N = self.subject_R[rows], new_row[self.behind_N[keep_N]]
        return Problem(
            requests_N=self.requests_N[keep_N],
            rows=self.rows.only(rows),
            subject_R=subject_R,
            owner_R=new_owner[self.owner_R[rows]],
            pick_row_P=row_P,
            pick_column_P=column_P,
            spots=_Spots.of(torch.cat([row_P, behind_N]), torch.cat([column_P, subject_R[behind_N]])),
            label_P=self.label_P[picks],
            share_P=self.share_P[picks],
            row_share_P=self.row_share_P[picks],
            rewriting=int(rows[: self.rewriting].sum()),
            behind_N=behind_N,
        )

    def run(self, anatomy: Anatomy, delta_ND: Tensor, layer: int) -> Seen:
        """One forward pass with changes ``[n, hidden]`` added to the output of ``layer`` at the subjects."""
        count = len(delta_ND)
        all_rows = torch.arange(len(self.owner_R), device=delta_ND.device)
        added = delta_ND[self.owner_R].to(self.rows.hidden_RSD.dtype)
        hidden = self.rows.hidden_RSD.index_put((all_rows, self.subject_R), added, accumulate=True)
        spots = self.spots
        with starting_after(anatomy, layer, hidden), last_mlp_at(anatomy, spots.row_U, spots.column_U):
            logits_UV = logits_at(anatomy, self.rows.inputs(), spots.row_U, spots.column_U)
        log_p = logits_UV.log_softmax(-1)
        picked = len(self.label_P)
        at_P, at_N = spots.index[:picked], spots.index[picked:]
        log_target = log_p[at_P, self.label_P]
        owner_P = self.owner_R[self.pick_row_P]
        nll = delta_ND.new_zeros(count).index_add(0, owner_P, -log_target * self.share_P * self.row_share_P)
        # exp of a row's mean log-probability, then the mean over rows: the figure the released code prints.
        row_nll = delta_ND.new_zeros(self.rewriting).index_add(0, self.pick_row_P, -log_target * self.share_P)
        owners = self.owner_R[: self.rewriting]
        rows_of = delta_ND.new_zeros(count).index_add(0, owners, torch.ones_like(row_nll))
        probability = delta_ND.new_zeros(count).index_add(0, owners, (-row_nll).exp()) / rows_of
        # A row counts as a context if it is not its request's first one; without contexts the bare row has to do.
        first_R = torch.ones_like(owners, dtype=torch.bool)
        first_R[1:] = owners[1:] != owners[:-1]
        counted = (~first_R[self.pick_row_P] | (rows_of[owner_P] == 1)).to(nll)
        with torch.no_grad():
            right = (log_p.argmax(-1)[at_P] == self.label_P).to(nll)
            tokens = torch.zeros_like(nll).index_add(0, owner_P, counted)
            hits = torch.zeros_like(nll).index_add(0, owner_P, counted * right)
        return Seen(nll, probability, tokens, hits, log_p[at_N])


def _begins(row: Row, kl: Row) -> bool:
    """Whether a row stands, up to its subject, for the KL prompt: a causal model says the same there."""
    return row.subject == kl.subject and row.ids[: len(kl.ids)] == kl.ids
