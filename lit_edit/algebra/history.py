r"""Keys of earlier batches inside the metric: :math:`A = A_0 + H H^T`, exactly, at a cost that does not grow for ever.

Legend: I = d_in, H = remembered keys, N = keys of one batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_edit.algebra.inverses import DenseInverse, Inverse, Metric
from lit_edit.batch.state import Growing
from lit_edit.solver import WithHistory


class KeyHistory(Growing):
    r"""The keys of all earlier batches of one layer.

    While few are remembered they are kept as they are, ``[h, d_in]`` float32, and enter through the Woodbury identity: each
    batch adds its own columns of :math:`A_0^{-1} H`, so that nothing is solved twice. Once ``limit`` keys have gathered they
    are folded: :math:`C_p \leftarrow C_p + H H^T` in float64, and :math:`A_0 + C_p` is factored anew. That factorisation is
    the only one of size ``d_in``, once in ``limit`` keys, and works as the scheduled refresh of an inverse recursion whose
    rounding errors would otherwise add up. The state is bounded by ``limit`` keys and one matrix.

    What a checkpoint holds is the keys, the sizes of their batches and the folded matrix; a resumed run computes everything
    else anew in the same portions, and so to the same bits.

    Args:
        d_in: width of the keys.
        limit: keys at which they are folded; default: half of ``d_in``, where the thin form stops being cheaper.
    """

    keys: Tensor  # [H, I] float32
    sizes: Tensor  # [batches] int64
    folded: Tensor  # [I, I] float64, or [0, 0] before the first fold

    def __init__(self, d_in: int, limit: int | None = None) -> None:
        super().__init__()
        self.limit = max(d_in // 2, 1) if limit is None else limit
        self.register_buffer("keys", torch.zeros(0, d_in))
        self.register_buffer("sizes", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("folded", torch.zeros(0, 0, dtype=torch.float64))
        self._base: tuple[Metric, Tensor, Inverse] | None = None
        self._thin: WithHistory | None = None

    def append(self, keys_NI: Tensor) -> None:
        """Add the keys of one batch, ``[n, d_in]``."""
        keys = torch.cat([self.keys, keys_NI.detach().to(self.keys)])
        if len(keys) < self.limit:
            self.keys = keys
            self.sizes = torch.cat([self.sizes, self.sizes.new_tensor([len(keys_NI)])])
            return
        columns = keys.double().T
        product = columns @ columns.T
        self.folded = product if self.folded.numel() == 0 else self.folded + product
        self.keys, self.sizes = keys[:0], self.sizes[:0]

    def __len__(self) -> int:
        """Keys kept one by one."""
        return self.keys.shape[0]

    def inverse(self, start: Metric) -> Inverse:
        r"""Applies :math:`(A_0 + H H^T)^{-1}`.

        Args:
            start: :math:`A_0`; give the same object every time, or everything is computed anew.
        """
        base = self._folded_base(start)
        thin = self._thin
        if thin is None or thin.base is not base or not thin.extends(self.keys):
            thin = WithHistory(base)
        portions = self.sizes.tolist()
        at, done = 0, thin.count
        for size in portions:
            if at >= done:
                thin = thin.extended(self.keys[at : at + size].T)
            at += size
        self._thin = thin
        return thin

    def _folded_base(self, start: Metric) -> Inverse:
        if self.folded.numel() == 0:
            return start
        known = self._base
        if known is None or known[0] is not start or known[1] is not self.folded:
            known = (start, self.folded, DenseInverse(start.matrix(self.folded.shape[0]).to(self.folded) + self.folded))
            self._base = known
        return known[2]
