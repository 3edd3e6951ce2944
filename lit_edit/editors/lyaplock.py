"""LyapLock: sequential editing under a long-run budget for the preservation loss.

Legend: O = d_out, I = d_in, N = requests of the batch, H = earlier requests, K = directions to be avoided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_edit.algebra.inverses import Inverse, Pencil, SpectralInverse
from lit_edit.algebra.second_moment import SecondMoment
from lit_edit.batch.state import Growing
from lit_edit.delta import Delta, remove_columns
from lit_edit.editors.locate import LocateThenEdit, required
from lit_edit.errors import EditError
from lit_edit.prompts import EditRows
from lit_edit.solver import Within, solve
from lit_edit.spectrum import Subspace
from lit_edit.targets import Targets
from lit_edit.workbench import Workbench


class LyapLock(LocateThenEdit):
    r"""MEMIT on all edits so far, with a weight of the second moment that rises while the preservation loss is over budget.

    With the accumulated change :math:`D = W - W_0`, the preservation loss of a layer is
    :math:`\mathcal{D}(W) = \mathrm{tr}(D\,C\,D^T)`, and its budget is ``alpha`` times what the first batch cost,
    :math:`\mathcal{D}_1`. A virtual queue ``Z`` (drift plus penalty) adds up what goes over it:

    .. math::
        Z \leftarrow \max\bigl(Z + a\,(\mathcal{D}(W) - \alpha \mathcal{D}_1) + b,\; \sqrt{\alpha \mathcal{D}_1}\bigr),
        \qquad a = 1 / \sqrt{\alpha \mathcal{D}_1}

    Every batch solves anew for the *whole* change, ``c`` being :math:`\lambda` in the first batch and
    :math:`a Z \lambda / V` later:

    .. math:: D' = Y T^T (c\,C + T T^T)^{-1}, \qquad \Delta = D' - D

    ``T`` ``[d_in, h + n]`` are the keys of all earlier batches and of this one, ``Y`` ``[d_out, h + n]`` what the change is to
    put out at them: what it did when they were written, :math:`(W_t - W_0)\,k`, and :math:`R + D K` for this batch, with
    residuals ``R`` ``[d_out, n]``. ``C`` ``[d_in, d_in]`` is the mean uncentred second moment of the layer's inputs.

    The published form is

    .. math::
        \Delta = \bigl[V R K^T + a Z \lambda\,(V_0 K_0^T - W C) + V (\textstyle\sum v k^T - W H H^T)\bigr]
        \bigl[V (K K^T + H H^T) + a Z \lambda\,C\bigr]^{-1}

    and the two are equal since :math:`V_0 K_0^T = W_0 C`: no statistics of outputs are needed, and nothing cancels. Directions
    to be avoided (a guard that constrains) are left out of the minimisation over :math:`\Delta`.

    State: keys and outputs of the latest edits, and two numbers per layer. Once ``d_in / 2`` keys have gathered they are folded
    into :math:`G = T T^T` and :math:`B = Y T^T`, and :math:`c\,C + G` is factored for every ``c`` at once
    (:class:`lit_edit.algebra.inverses.Pencil`), so that neither memory nor the cost of a solve grows for ever. A change is
    dense: with another ``c``, it rewrites everything.

    Source: LyapLock, EMNLP 2025; the released code. A first batch that changes nothing does not set the budget; the next one
    does.

    Args:
        lam: weight of the second moment in the first batch (``mom2_update_weight``; 1,000 for all models).
        alpha: budget of the preservation loss, as a multiple of the first batch's.
        v: weight of the edits against the queue (``V``).
        b: added to the queue by every batch.

    Raises:
        EditError: if ``lam``, ``alpha`` or ``v`` is not positive, or ``b`` is not finite.
    """

    def __init__(self, lam: float = 1000.0, alpha: float = 60.0, v: float = 1.0, b: float = 0.0) -> None:
        super().__init__()
        for name, value in (("lam", lam), ("alpha", alpha), ("v", v)):
            if not 0 < value < math.inf:
                raise EditError(f"LyapLock's {name} is {value:g}; it must be positive and finite")
        if not math.isfinite(b):
            raise EditError(f"LyapLock's b is {b:g}; it must be finite")
        self.lam, self.alpha, self.v, self.b = lam, alpha, v, b
        self.accounts = nn.ModuleDict()
        self._original: dict[int, Tensor] = {}
        self._eigen: dict[int, tuple[Tensor, Tensor]] = {}  # eigenvalues, eigenvectors
        self._pencils: dict[int, tuple[Tensor, Pencil]] = {}  # of which folded keys, and the factorisation

    def allocate(self, layer: int, d_out: int, d_in: int) -> None:
        """See :meth:`Editor.allocate`."""
        self.accounts[str(layer)] = Account(d_out, d_in)

    def prepare(self, layer: int, weight: Tensor, moment: SecondMoment | None) -> None:
        """See :meth:`Editor.prepare`; factors the second moment once."""
        values, vectors = required(moment, "LyapLock", layer, weight.shape[1]).eigen()
        self._eigen[layer] = values.to(weight.device), vectors.to(weight.device)
        self._original[layer] = weight

    def account(self, layer: int) -> Account:
        """Earlier edits and the queue of a layer."""
        account = self.accounts[str(layer)]
        assert isinstance(account, Account)
        return account

    def preservation(self, layer: int) -> float:
        """The weight ``c`` of the second moment in the next solve."""
        account = self.account(layer)
        base = float(account.base)
        return self.lam * float(account.queue) / (self.v * math.sqrt(self.alpha * base)) if base > 0 else self.lam

    def solve(self, layer: int, keys: Tensor, residuals: Tensor, weight: Tensor, avoid: Subspace | None = None) -> Delta:
        """See :meth:`LocateThenEdit.solve`."""
        account = self.account(layer)
        before = self._change(layer, weight)
        read = torch.cat([account.keys.double(), keys.double()])  # T^T [H + N, I]
        asked = torch.cat([account.written.double(), residuals.double() + keys.double() @ before.T])  # Y^T [H + N, O]
        past = account.past  # B [O, I]
        inverse: Inverse = self._inverse(layer)
        fixed = torch.zeros_like(before)
        if avoid is not None:
            before = remove_columns(before, avoid.left)
            asked = remove_columns(asked.T, avoid.left).T
            past = None if past is None else remove_columns(past, avoid.left)
            if avoid.right.shape[1]:
                inverse = Within(inverse, avoid.right)
                # What W - W_0 holds in avoided inputs stays (E = D V), and with it what the metric asks for there, whatever is
                # written: E (V^T A^-1 V)^-1 V^T A^-1. The rest is the ordinary problem inside the allowed subspace.
                stays = before @ avoid.right.double()
                fixed = stays @ torch.cholesky_solve(inverse.applied.T, inverse.factor)
                asked = asked - read @ fixed.T
                read = remove_columns(read.T, avoid.right).T
                past = None if past is None else remove_columns(past.T, avoid.right).T
        if past is not None:  # what the folded edits ask for, B A^-1; the others ask for what that leaves
            known = inverse(past.T).T
            asked, fixed = asked - read @ known.T, fixed + known
        found = solve(inverse, read, asked)
        if past is None and not bool(before.any()):
            return found
        return Delta.from_dense(found.dense() + fixed - before)

    def _inverse(self, layer: int) -> Inverse:
        r"""Applies :math:`(c\,C + G)^{-1}`."""
        account, scale = self.account(layer), self.preservation(layer)
        if account.gram.numel() == 0:
            return SpectralInverse(*self._eigen[layer], scale=scale)
        known = self._pencils.get(layer)
        if known is None or known[0] is not account.gram:
            known = (account.gram, Pencil(*self._eigen[layer], account.gram))
            self._pencils[layer] = known
        return known[1].at(scale)

    def remember(self, layer: int, keys: Tensor, weight: Tensor) -> None:
        """See :meth:`LocateThenEdit.remember`; the queue moves on."""
        account = self.account(layer)
        change = self._change(layer, weight)
        account.append(keys, keys.double() @ change.T)
        account.drift = self.drift(layer, change).to(account.drift)
        budget = self.alpha * account.base
        if float(budget) > 0:
            start = budget.sqrt()
            account.queue = torch.maximum(account.queue + (account.drift - budget) / start + self.b, start)
        else:
            account.base = account.drift
            account.queue = (self.alpha * account.drift).sqrt()

    def drift(self, layer: int, change_OI: Tensor) -> Tensor:
        r"""The preservation loss :math:`\mathrm{tr}(D C D^T)` of an accumulated change, a float64 scalar."""
        values, vectors = self._eigen[layer]
        return ((change_OI.double() @ vectors).square() @ values.clamp_min(0)).sum()

    def settle(self, bench: Workbench, rows: Sequence[EditRows], aimed: Targets) -> None:
        """See :meth:`LocateThenEdit.settle`; tells the logs about queue and preservation loss."""
        super().settle(bench, rows, aimed)
        for layer in bench.layers:
            bench.note(f"lyaplock/queue/layer_{layer}", float(self.account(layer).queue))
            bench.note(f"lyaplock/drift/layer_{layer}", float(self.account(layer).drift))

    def _change(self, layer: int, weight: Tensor) -> Tensor:
        return weight.double() - self._original[layer].double()


class Account(Growing):
    """What LyapLock knows of one layer's past.

    Args:
        d_out: rows of the weight.
        d_in: columns of the weight.
        limit: keys at which they are folded; default: half of ``d_in``.
    """

    keys: Tensor  # [H, I] float32
    written: Tensor  # [H, O] float32, what the accumulated change put out at each key when it was written
    gram: Tensor  # [I, I] float64, T T^T of the folded keys, or [0, 0] before the first fold
    products: Tensor  # [O, I] float64, Y T^T of the folded keys, or [0, 0]
    queue: Tensor  # [] float64, Z
    base: Tensor  # [] float64, preservation loss after the first batch; 0 before it
    drift: Tensor  # [] float64, preservation loss now

    def __init__(self, d_out: int, d_in: int, limit: int | None = None) -> None:
        super().__init__()
        self.limit = max(d_in // 2, 1) if limit is None else limit
        self.register_buffer("keys", torch.zeros(0, d_in))
        self.register_buffer("written", torch.zeros(0, d_out))
        for name in ("gram", "products"):
            self.register_buffer(name, torch.zeros(0, 0, dtype=torch.float64))
        for name in ("queue", "base", "drift"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    @property
    def past(self) -> Tensor | None:
        """What the folded keys ask for, ``[d_out, d_in]``; ``None`` before the first fold."""
        return self.products if self.products.numel() else None

    def append(self, keys_NI: Tensor, written_NO: Tensor) -> None:
        """Add the edits of one batch."""
        keys = torch.cat([self.keys, keys_NI.detach().to(self.keys)])
        written = torch.cat([self.written, written_NO.detach().to(self.written)])
        if len(keys) >= self.limit:
            read, put_out = keys.double().T, written.double().T
            gram, products = read @ read.T, put_out @ read.T
            folded = self.past is not None
            self.gram = self.gram + gram if folded else gram
            self.products = self.products + products if folded else products
            keys, written = keys[:0], written[:0]
        self.keys, self.written = keys, written
