"""Replays recorded LyapLock runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from lit_edit.editors.lyaplock import LyapLock
from lit_edit.errors import EditError
from lit_edit.verify import family, moments, sequence, walk
from lit_edit.verify.recording import Check, Recording
from lit_edit.verify.sequence import Method
from lit_edit.verify.table import CLOSED_FORM, THROUGH_MODEL, Row, Tally, Tolerance, tolerance


class Watched(LyapLock):
    """LyapLock that tells what its queue was after every batch.

    Args:
        tell: told ``(batch, layer, state)`` with the names of the recording.
        options: of :class:`lit_edit.editors.LyapLock`.
    """

    def __init__(self, tell: Callable[[int, int, dict[str, float]], None], **options: float) -> None:
        super().__init__(**options)
        self.tell = tell
        self.batch: dict[int, int] = {}

    def remember(self, layer: int, keys: Tensor, weight: Tensor) -> None:
        """See :meth:`lit_edit.editors.LocateThenEdit.remember`."""
        super().remember(layer, keys, weight)
        account = self.account(layer)
        base, batch = float(account.base), self.batch.get(layer, 0)
        self.batch[layer] = batch + 1
        start = math.sqrt(self.alpha * base)
        state = {"Z": float(account.queue), "D_base": base, "zmax": start, "a": 1 / start if start else math.inf}
        self.tell(batch, layer, {**state, "D": float(account.drift)})


def method(recording: Recording, tell: Callable[[int, int, dict[str, float]], None] = lambda *state: None) -> Method | None:
    """The recorded sequence, ``None`` where there is none.

    Args:
        recording: the folder.
        tell: see :class:`Watched`.
    """

    def make(said: dict[str, Any]) -> LyapLock:
        lyap = {name: recording.want(f"info/LyapLock/lyap/{name}", float) for name in ("V", "alpha", "b")}
        return Watched(tell, lam=said["mom2_update_weight"], alpha=lyap["alpha"], v=lyap["V"], b=lyap["b"])

    return Method.of(recording, "LyapLock", make)


def run(recording: Recording) -> list[Row]:
    r"""Rows of LyapLock: deltas, weights and queues from recorded inputs, then the model's part.

    The reference stores :math:`V_0 K_0^T` in float32, and its first batch writes that rounding ``E`` into directions which the
    layer hardly reads, as about :math:`E C^{-1}`; there it stays. So weights agree as well as that allows, and tightly where
    they are multiplied by ``C``; changes of later batches agree as well as the budget, which is computed with ``E``, does.
    """
    tally = Tally(recording, "LyapLock")
    budget = tolerance(recording, "LyapLock", "D_base_rel", THROUGH_MODEL)
    limit = max(
        (tolerance(recording, "LyapLock", "delta", THROUGH_MODEL), budget, Tolerance(THROUGH_MODEL, "float32 model")),
        key=lambda allowed: allowed.value,
    )
    replayed = method(recording, lambda *state: _queue(tally, "[full replay]", limit, *state))
    solved = method(recording, lambda *state: _queue(tally, "[recorded K, R, C]", budget, *state))
    plain = method(recording)
    if replayed is None or solved is None or plain is None:
        tally.note("all", "not recorded here")
        return tally.rows()
    family.residuals(plain, tally)
    family.closed_form(solved, tally, "[recorded K, R, C]", "delta")
    _tight(plain, tally, budget)
    walk.read(plain, tally, limit)
    walk.replay(replayed, tally, limit)
    return tally.rows()


def _tight(method: Method, tally: Tally, budget: Tolerance) -> None:
    """What the reference's rounding does not limit: changes of later batches, and weights as the usual inputs see them."""
    editor, exact = method.editor()
    means, _ = moments.recorded(method.recording, method.layers)
    rec, file = method.recording, method.file
    closed = Tolerance(CLOSED_FORM, "closed form") if exact else Tolerance(THROUGH_MODEL, "second moments collected anew")
    later = max(budget, closed, key=lambda allowed: allowed.value)
    for batch, layer, delta, weight in sequence.solved(method, editor):
        at, original = f"batch{batch}/layer{layer}", rec.original[layer]
        if batch > 0:
            tally.tensor(file, f"{at}/delta", "delta, later batches [recorded K, R, C]", delta.dense(), later)
            tally.tensor(file, f"{at}/delta_fro", "delta_fro, later batches [recorded K, R, C]", delta.norm(), later)
        recorded = file.get(f"{at}/W_after")
        if recorded is not None and recorded.shape == weight.shape:
            mean = means[layer].mean.double()
            error = float(((weight - recorded).double() @ mean).norm() / (original.double() @ mean).norm())
            tally.add("W_after C on the scale of W_0 C [recorded K, R, C]", error, closed, f"{at}/W_after")


def _queue(tally: Tally, label: str, allowed: Tolerance, batch: int, layer: int, ours: dict[str, float]) -> None:
    """The state of one layer's queue after one batch, where ``meta.json`` has it."""
    recording = tally.recording
    said = recording.meta.get("info", {}).get("LyapLock", {}).get("queue", [])
    known = said[batch].get(str(layer), {}) if batch < len(said) else {}
    for name, recorded in known.items():
        if name not in ours or not isinstance(recorded, int | float):
            raise EditError(
                f"{recording.folder / 'meta.json'} is damaged: info/LyapLock/queue[{batch}] holds {name!r}: {recorded!r}"
            )
        tally.scalar(f"queue, {name} {label}", ours[name], recorded, allowed, f"queue[{batch}], layer {layer}")
    other = (recording.json("float64_recomputation.json") or {}).get("LyapLock", {})
    drift = other.get(f"batch{batch}/layer{layer}/D_trace_form") if isinstance(other, dict) else None
    if isinstance(drift, int | float):
        tally.scalar(f"preservation loss {label}", ours["D"], drift, allowed, f"batch{batch}/layer{layer}/D_trace_form")


CHECK = Check("LyapLock", ("LyapLock.safetensors",), run)
