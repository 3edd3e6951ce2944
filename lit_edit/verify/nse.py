"""Replays recorded NSE runs: targets on the original weights, then passes over the layers for the active requests.

Recorded matrices have requests as columns, the library has them as rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lit_edit.algebra.inverses import FactoredInverse, Inverse
from lit_edit.algebra.second_moment import SecondMoment
from lit_edit.delta import Delta
from lit_edit.editors import LocateThenEdit
from lit_edit.editors.nse import NSE, Block
from lit_edit.prompts import EditRows
from lit_edit.spectrum import Subspace
from lit_edit.targets import Targets
from lit_edit.verify.blank import without_blank
from lit_edit.verify.recording import Check, Recording
from lit_edit.verify.sequence import Method
from lit_edit.verify.table import CLOSED_FORM, THROUGH_MODEL, Row, Tally, Tolerance, tolerance
from lit_edit.verify.trajectory import trajectory
from lit_edit.verify.watched import Watched
from lit_edit.workbench import Workbench

_NAME = "NSE"
_CLOSED = Tolerance(CLOSED_FORM, "closed form")
_MODEL = Tolerance(THROUGH_MODEL, "float32 model")
_EXACT = Tolerance(0.0, "exact")


class StoredCache(NSE):
    r"""NSE with history as the reference keeps it: the sum of :math:`K K^T` as a float32 matrix, see ``memit_seq``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.means: dict[int, Tensor] = {}
        self.caches: dict[int, Tensor] = {}

    def prepare(self, layer: int, weight: Tensor, moment: SecondMoment | None) -> None:
        """See :meth:`lit_edit.editors.Editor.prepare`."""
        assert moment is not None
        self.means[layer] = moment.mean.double()
        self.caches[layer] = torch.zeros_like(moment.mean, dtype=torch.float32)

    def within(self, layer: int, mask_I: Tensor) -> Inverse:
        """See :meth:`lit_edit.editors.nse.NSE.within`."""
        chosen = torch.nonzero(mask_I)[:, 0]
        matrix = self.lam * self.means[layer] + self.caches[layer].double()
        return Block(FactoredInverse(matrix[chosen[:, None], chosen]), chosen)

    def remember(self, layer: int, keys: Tensor, weight: Tensor) -> None:
        """See :meth:`lit_edit.editors.LocateThenEdit.remember`."""
        columns = keys.float().T.contiguous()
        self.caches[layer] = self.caches[layer] + columns @ columns.T


def options(said: dict[str, Any]) -> dict[str, Any]:
    """The editor's options from recorded hyper-parameters."""
    same = {name: said[name] for name in ("alpha", "upper_bound", "neuron_threshold")}
    return {**same, "lam": said["mom2_update_weight"], "passes": said["max_iterations"] - 1}


def method(recording: Recording, editor: Callable[..., NSE] = NSE) -> Method | None:
    """The recorded sequence, ``None`` where there is none."""
    return Method.of(recording, _NAME, lambda said: editor(**options(said)))


def run(recording: Recording) -> list[Row]:
    """Rows of NSE: residuals, deltas with exact and with float32 history, then its own passes through the model."""
    tally = Tally(recording, _NAME)
    ours, theirs = method(recording), method(recording, StoredCache)
    if ours is None or theirs is None:
        tally.note("all", "not recorded here")
        return tally.rows()
    limit = tolerance(recording, _NAME, "delta", CLOSED_FORM)
    residuals(ours, tally)
    closed_form(ours, tally, "exact history", limit)
    closed_form(theirs, tally, "float32 cache", _CLOSED)
    if ours.obstacle is not None:
        tally.note("recorded weights, full replay", ours.obstacle)
        return tally.rows()
    passes(ours, tally, theirs, "[recorded weights]", _MODEL)
    # From the second batch on, the reference's float32 cache bounds what an exact history can agree to.
    passes(ours, tally, None, "[full replay]", limit if limit.value > THROUGH_MODEL else _MODEL)
    without_blank(ours, tally)
    return tally.rows()


def active(method: Method, batch: int, index: int) -> list[int] | None:
    """The requests that took part in a pass as ``meta.json`` tells them, ``None`` where it says nothing of the batch."""
    told = method.recording.meta.get("info", {}).get(_NAME, {}).get("active_requests_per_pass", {}).get(str(batch))
    return None if told is None else [] if index >= len(told) else list(told[index])


def solved(method: Method, editor: LocateThenEdit) -> Iterator[tuple[int, int, int, Tensor, Delta]]:
    """``(batch, pass, layer, keys, delta)`` of the closed form on recorded keys and residuals; ends where they end."""
    o, i = method.recording.anatomy.d_model, method.recording.anatomy.d_inner
    for batch in method.batches:
        if any(f"batch{batch}/layer{layer}/keys_cache" not in method.file for layer in method.layers):
            return
        index = 0
        while f"batch{batch}/pass{index}/layer{method.layers[0]}/keys" in method.file:
            for layer in method.layers:
                at = f"batch{batch}/pass{index}/layer{layer}"
                keys = method.file.matrix(f"{at}/keys", i).T
                rest = method.file.matrix(f"{at}/resid", o, len(keys)).T
                yield batch, index, layer, keys, editor.solve(layer, keys, rest, method.recording.original[layer])
            index += 1
        for layer in method.layers:
            every = method.file.matrix(f"batch{batch}/layer{layer}/keys_cache", i, len(method.recording.batches[batch]))
            editor.remember(layer, every.T, method.recording.original[layer])


def residuals(method: Method, tally: Tally) -> None:
    """Recorded residuals against recorded targets and values of the active requests: ``(z - z_cur) / layers left``."""
    for name, match in method.file.names(r"batch(\d+)/pass(\d+)/layer(\d+)/z_cur"):
        batch, index, layer = (int(part) for part in match.groups())
        z, chosen = method.file.get(f"batch{batch}/z"), active(method, batch, index)
        if z is None or chosen is None or layer not in method.layers:
            continue
        now, left = method.file.tensors[name], len(method.layers) - method.layers.index(layer)
        if z[chosen].T.shape == now.shape:
            resid = name.replace("z_cur", "resid")
            tally.tensor(method.file, resid, "residuals [recorded z, z_cur]", (z[chosen].T - now) / left, _CLOSED)


@torch.no_grad()
def closed_form(method: Method, tally: Tally, history: str, later: Tolerance) -> None:
    """Deltas, their norms and the weights they lead to, recomputed from recorded keys, residuals and second moments.

    Args:
        method: the recorded sequence.
        tally: where comparisons go.
        history: how earlier keys are kept, for the table.
        later: what deltas are held to once there are any; before that it is a plain closed form.
    """
    file = method.file
    editor, exact_moments = method.editor()
    assert isinstance(editor, NSE)
    counts = (method.recording.json("float64_recomputation.json") or {}).get(_NAME, {})
    weights = {layer: method.recording.original[layer] for layer in method.layers}
    for batch, index, layer, keys, delta in solved(method, editor):
        label = f"[recorded K, R, C; {history}]" if batch else "[recorded K, R, C; no history yet]"
        allowed = later if batch else _CLOSED
        if not exact_moments:
            allowed = Tolerance(THROUGH_MODEL, "second moments collected anew")
        weights[layer] = weights[layer] + delta.dense().float()
        at = f"batch{batch}/pass{index}/layer{layer}"
        tally.tensor(file, f"{at}/delta", f"delta {label}", delta.dense(), allowed)
        tally.tensor(file, f"{at}/delta_fro", f"delta_fro {label}", delta.norm(), allowed)
        if f"{at}/n_neurons" in counts:
            chosen = float(editor.selected(keys).sum())
            tally.scalar("selected neurons [recorded K]", chosen, counts[f"{at}/n_neurons"][0], _EXACT, at)
        if f"batch{batch}/pass{index + 1}/layer{layer}/keys" not in file:
            after = f"batch{batch}/layer{layer}/W_after"
            tally.tensor(file, after, f"W_after {label}", weights[layer], allowed)
            tally.tensor(file, f"{after}_fro", f"W_after_fro {label}", weights[layer].double().norm(), allowed)


class Compared(NSE):
    """NSE on its own course, everything it meets compared with what was recorded.

    Args:
        compare: takes the name of a recorded tensor, a quantity and what it is here.
        told: requests of a pass, where they were recorded.
        instead: deltas to write instead of its own, by the names of pass and layer; ``None`` to go its own way.
        options: of the editor.
    """

    def __init__(
        self,
        compare: Callable[[str, str, Tensor], None],
        told: Callable[[int, int], list[int] | None],
        instead: dict[str, Delta] | None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.compare, self.told, self.instead = compare, told, instead
        self.batch, self.index, self.layers = -1, -1, 0
        self.aimed = torch.zeros(0)
        self.wrong = 0
        """Passes with other active requests than recorded."""

    def targets(self, bench: Workbench, rows: Sequence[EditRows]) -> Targets:
        """See :meth:`lit_edit.editors.NSE.targets`."""
        self.batch, self.index = self.batch + 1, -1
        found = super().targets(bench, rows)
        self.compare(f"batch{self.batch}/z", "z", found.values_ND)
        return found

    def active(self, bench: Workbench, rows: Sequence[EditRows], aimed: Targets) -> list[int]:
        """See :meth:`lit_edit.editors.NSE.active`."""
        found = super().active(bench, rows, aimed)
        self.index += 1
        told = self.told(self.batch, self.index)
        self.wrong += told is not None and found != told
        return found

    def walk(self, bench: Workbench, rows: Sequence[EditRows], targets_ND: Tensor) -> dict[int, Tensor]:
        """See :meth:`lit_edit.editors.LocateThenEdit.walk`."""
        self.aimed, self.layers = targets_ND, len(bench.layers)
        return super().walk(bench, rows, targets_ND)

    def solve(self, layer: int, keys: Tensor, residuals: Tensor, weight: Tensor, avoid: Subspace | None = None) -> Delta:
        """See :meth:`lit_edit.editors.NSE.solve`."""
        at = f"batch{self.batch}/pass{self.index}/layer{layer}"
        self.compare(f"{at}/keys", "keys", keys.T)
        self.compare(f"{at}/resid", "residuals", residuals.T)
        self.compare(f"{at}/z_cur", "z_cur", (self.aimed - residuals * self.layers).T)
        self.layers -= 1
        if self.instead is not None and at in self.instead:
            return self.instead[at]
        delta = super().solve(layer, keys, residuals, weight, avoid)
        self.compare(f"{at}/delta", "delta", delta.dense())
        self.compare(f"{at}/delta_fro", "delta_fro", delta.norm())
        return delta

    def remember(self, layer: int, keys: Tensor, weight: Tensor) -> None:
        """See :meth:`lit_edit.editors.LocateThenEdit.remember`."""
        at = f"batch{self.batch}/layer{layer}"
        self.compare(f"{at}/keys_cache", "keys remembered", keys.T)
        if self.instead is None:
            self.compare(f"{at}/W_after", "W_after", weight)
            self.compare(f"{at}/W_after_fro", "W_after_fro", weight.double().norm())
        super().remember(layer, keys, weight)


def passes(method: Method, tally: Tally, stored: Method | None, label: str, later: Tolerance) -> None:
    """The editor's own passes through the model, from the original weights.

    Args:
        method: the recorded sequence.
        tally: where comparisons go.
        stored: where deltas of recorded keys and residuals are taken from, so that every pass starts on the recorded weights;
            ``None`` to go on with the editor's own.
        label: for the table.
        later: what is allowed from the second batch on.
    """
    recording = method.recording
    given = None
    if stored is not None:
        found = solved(stored, stored.editor()[0])
        given = {f"batch{batch}/pass{index}/layer{layer}": delta for batch, index, layer, _, delta in found}
    split = given is None and later.value > THROUGH_MODEL

    def compare(name: str, quantity: str, ours: Tensor) -> None:
        first = name.startswith("batch0/")
        # Targets are those of the original weights in every batch: nothing of the history is in them.
        history = split and quantity != "z"
        mode = label.replace("replay", "replay, batch 0") if history and first else label
        tally.tensor(method.file, name, f"{quantity} {mode}", ours, later if history and not first else _MODEL)

    editor, _ = replace(method, make=lambda said: Compared(compare, partial(active, method), given, **options(said))).editor()
    assert isinstance(editor, Compared)
    weights = {layer: recording.original[layer].clone() for layer in method.layers}
    for batch, rows in enumerate(recording.batches):
        if not any(name.startswith(f"batch{batch}/") for name in (method.file.tensors if given is None else given)):
            break
        bench = Watched.of(method, weights)
        aimed = editor.aim(bench, rows)
        for request in range(len(rows)):
            at = f"batch{batch}/req{request}"
            trajectory(tally, method.file, at, label, *bench.trajectory(request), lambda key: _MODEL)
        editor.change(bench, rows, aimed)
        bench.commit()
    recording.restore()
    tally.add(f"passes with other active requests {label}", float(editor.wrong), _EXACT)


CHECK = Check(_NAME, (f"{_NAME}.safetensors",), run)
