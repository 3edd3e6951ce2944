"""Replays recorded runs of MEMIT with history (``MEMIT_seq``)."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_edit.algebra.inverses import Inverse
from lit_edit.algebra.second_moment import SecondMoment
from lit_edit.editors import MEMIT
from lit_edit.verify import family, walk
from lit_edit.verify.recording import Check, Recording, TensorFile
from lit_edit.verify.sequence import Method
from lit_edit.verify.table import CLOSED_FORM, THROUGH_MODEL, Row, Tally, Tolerance, tolerance


class StoredCache(MEMIT):
    r"""MEMIT with history as the reference keeps it: the sum of :math:`K K^T` as a float32 matrix, and a dense solve.

    Rounding that matrix costs more digits than anything else in the method (a relative 1e-8 in the cache is 1e-4 in a
    delta where :math:`\lambda C` is ill-conditioned), so the recorded run can only be met closely through the same storage.

    Args:
        lam: weight of the second moment.
        file: recording whose ``batch{b}/layer{L}/cache_c`` are used where it has them.
    """

    def __init__(self, lam: float, file: TensorFile) -> None:
        super().__init__(lam=lam)
        self.file = file
        self.means: dict[int, Tensor] = {}
        self.caches: dict[int, Tensor] = {}
        self.batch: dict[int, int] = {}

    def prepare(self, layer: int, weight: Tensor, moment: SecondMoment | None) -> None:
        """See :meth:`lit_edit.editors.Editor.prepare`."""
        assert moment is not None
        self.means[layer] = moment.mean.double()
        self.caches[layer] = torch.zeros_like(moment.mean, dtype=torch.float32)
        self.batch[layer] = 0

    def metric(self, layer: int) -> Inverse:
        """See :meth:`lit_edit.editors.LeastSquaresEditor.metric`."""
        metric = self.lam * self.means[layer] + self.caches[layer].double()
        factors = torch.linalg.lu_factor(metric)
        return lambda columns: torch.linalg.lu_solve(*factors, columns.double())

    def remember(self, layer: int, keys: Tensor, weight: Tensor) -> None:
        """See :meth:`lit_edit.editors.LocateThenEdit.remember`."""
        stored = self.file.get(f"batch{self.batch[layer]}/layer{layer}/cache_c")
        columns = keys.float().T.contiguous()
        self.caches[layer] = self.caches[layer] + columns @ columns.T if stored is None else stored
        self.batch[layer] += 1


def exact(recording: Recording) -> Method | None:
    """The recorded sequence with the library's exact history, ``None`` where there is none."""
    return Method.of(recording, "MEMIT_seq", lambda said: MEMIT(lam=said["mom2_update_weight"], history=True))


def stored(recording: Recording) -> Method | None:
    """The recorded sequence with history stored as the reference stores it, ``None`` where there is none."""
    file = recording.tensors("MEMIT_seq")
    return (
        None if file is None else Method.of(recording, "MEMIT_seq", lambda said: StoredCache(said["mom2_update_weight"], file))
    )


def run(recording: Recording) -> list[Row]:
    """Rows of MEMIT with history: exact history and the reference's float32 cache from recorded inputs, then the model's part.

    The full replay keeps the library's exact history. From its second batch on it is held to what the reference's float32
    cache allows; the tight comparisons are those on recorded inputs and recorded weights.
    """
    tally = Tally(recording, "MEMIT_seq")
    ours, theirs = exact(recording), stored(recording)
    if ours is None or theirs is None:
        tally.note("all", "not recorded here")
        return tally.rows()
    family.residuals(ours, tally)
    family.closed_form(ours, tally, "[recorded K, R, C; exact history]", "delta")
    caches(ours, tally)
    family.closed_form(theirs, tally, "[recorded K, R, C; float32 cache]", "delta_given_recorded_float32_cache")
    walk.read(theirs, tally)
    limit = tolerance(recording, "MEMIT_seq", "delta", THROUGH_MODEL)
    walk.replay(ours, tally, limit if limit.value > THROUGH_MODEL else Tolerance(THROUGH_MODEL, "float32 model"))
    return tally.rows()


def caches(method: Method, tally: Tally) -> None:
    """Recorded caches, where there are any, against the exact sum of recorded keys."""
    allowed = tolerance(method.recording, method.name, "cache_c", CLOSED_FORM)
    for layer in method.layers:
        total: Tensor | None = None
        for batch in method.batches:
            keys = method.file.get(f"batch{batch}/layer{layer}/keys")
            if keys is None:
                break
            product = keys.double() @ keys.double().T
            total = product if total is None else total + product
            tally.tensor(method.file, f"batch{batch}/layer{layer}/cache_c", "cache [recorded K]", total, allowed)


CHECK = Check("MEMIT_seq", ("MEMIT_seq.safetensors",), run)
