"""Replays recorded DeltaEdit runs: one request after another, with the running statistics of their interference.

Recorded matrices have requests as columns, the library has them as rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lit_edit.algebra.second_moment import SecondMoment
from lit_edit.delta import Delta
from lit_edit.editors.deltaedit import DeltaEdit
from lit_edit.prompts import EditRows
from lit_edit.spectrum import Subspace
from lit_edit.targets import Targets
from lit_edit.verify.alphaedit import at_least, projector_file, projector_rounding, projectors, rounded_basis
from lit_edit.verify.recording import Check, Recording, TensorFile
from lit_edit.verify.sequence import Method
from lit_edit.verify.sight import Sight
from lit_edit.verify.table import CLOSED_FORM, THROUGH_MODEL, Row, Tally, Tolerance, tolerance
from lit_edit.verify.watched import Watched
from lit_edit.workbench import Workbench

_NAME = "DeltaEdit"
_CLOSED = Tolerance(CLOSED_FORM, "closed form")
_MODEL = Tolerance(THROUGH_MODEL, "float32 model")
_EXACT = Tolerance(0.0, "exact")


class RoundedProjector(DeltaEdit):
    """DeltaEdit with the projector as the reference takes it, see :class:`lit_edit.verify.alphaedit.RoundedProjector`.

    Args:
        file: the recording of AlphaEdit, whose projectors are the same.
        options: of the editor.
    """

    def __init__(self, file: TensorFile | None, **options: Any) -> None:
        super().__init__(**options)
        self.file = file

    def prepare(self, layer: int, weight: Tensor, moment: SecondMoment | None) -> None:
        """See :meth:`lit_edit.editors.Editor.prepare`."""
        assert moment is not None
        self._closed[layer] = rounded_basis(self.file, layer, moment, self.threshold)


def options(said: dict[str, Any]) -> dict[str, Any]:
    """The editor's options from recorded hyper-parameters."""
    return {"ridge": said["L2"], "var": said["var"], "space": said["space"]}


def method(recording: Recording, editor: Callable[..., DeltaEdit] = DeltaEdit) -> Method | None:
    """The recorded sequence, ``None`` where there is none. The released code has its threshold of 0.02 built in."""
    return Method.of(recording, _NAME, lambda said: editor(**options(said)))


def run(recording: Recording) -> list[Row]:
    """Rows of DeltaEdit: residuals, deltas and S from recorded inputs, then its own course through the model."""
    tally = Tally(recording, _NAME)
    file = projector_file(recording, DeltaEdit().threshold)
    ours, theirs = method(recording), method(recording, partial(RoundedProjector, file))
    if ours is None or theirs is None:
        tally.note("all", "not recorded here")
        return tally.rows()
    residuals(ours, tally)
    limit = tolerance(recording, _NAME, "delta", CLOSED_FORM)
    rounding = projector_rounding(ours, theirs, r"edit\d+/layer(\d+)/keys")
    stored = projectors(recording, ours.layers, DeltaEdit().threshold)
    closed_form(theirs, tally, "recorded projector", limit, stored)
    closed_form(theirs, tally, "float32 projector", at_least(limit, rounding), set(ours.layers) - stored)
    closed_form(ours, tally, "exact projector", rounding, ours.layers)
    if ours.obstacle is not None:
        tally.note("recorded weights, full replay", ours.obstacle)
        return tally.rows()
    course(theirs, tally, "[recorded weights]", dict(solved(theirs)))
    course(theirs, tally, "[full replay]", None)
    return tally.rows()


# ------------------------------------------------------------------------------------------------ from recorded inputs


def solved(method: Method) -> Iterator[tuple[str, Delta]]:
    """Names of edit and layer, and the closed form on recorded keys and residuals; ends where they end."""
    editor, _ = method.editor()
    o, i = method.recording.anatomy.d_model, method.recording.anatomy.d_inner
    for edit in range(sum(len(batch) for batch in method.recording.batches)):
        names = [f"edit{edit}/layer{layer}" for layer in method.layers]
        if any(f"{at}/{what}" not in method.file for at in names for what in ("keys", "resid")):
            return
        for layer, at in zip(method.layers, names, strict=True):
            keys, rest = method.file.matrix(f"{at}/keys", i, 1).T, method.file.matrix(f"{at}/resid", o, 1).T
            yield at, editor.solve(layer, keys, rest, method.recording.original[layer])
            editor.remember(layer, keys, method.recording.original[layer])


def residuals(method: Method, tally: Tally) -> None:
    """Recorded residuals against recorded targets and values: ``(z - z_cur) / layers left``."""
    for name, match in method.file.names(r"edit(\d+)/layer(\d+)/z_cur"):
        edit, layer = int(match[1]), int(match[2])
        z, now = method.file.get(f"edit{edit}/z"), method.file.tensors[name]
        if z is None or layer not in method.layers or now.shape != (len(z), 1):
            continue
        ours = (z[:, None] - now) / (len(method.layers) - method.layers.index(layer))
        tally.tensor(method.file, name.replace("z_cur", "resid"), "residuals [recorded z, z_cur]", ours, _CLOSED)


@torch.no_grad()
def closed_form(method: Method, tally: Tally, projector: str, allowed: Tolerance, only: Collection[int]) -> None:
    """Deltas, their norms, their sum ``S`` and the weights they lead to, from recorded keys, residuals and second moments."""
    file, last = method.file, method.layers[-1]
    label = f"[recorded K, R, C; {projector}]"
    weights = {layer: method.recording.original[layer] for layer in method.layers}
    total = torch.zeros_like(weights[last], dtype=torch.float64)
    for at, delta in solved(method):
        layer = int(at.rpartition("layer")[2])
        weights[layer] = weights[layer] + delta.dense().float()
        total = total + delta.dense() if layer == last else total
        if layer not in only:
            continue
        tally.tensor(file, f"{at}/delta", f"delta {label}", delta.dense(), allowed)
        tally.tensor(file, f"{at}/delta_fro", f"delta_fro {label}", delta.norm(), allowed)
        tally.tensor(file, f"{at}/W_after", f"W_after {label}", weights[layer], allowed)
        tally.tensor(file, f"{at}/W_after_fro", f"W_after_fro {label}", weights[layer].double().norm(), allowed)
    if last in only:
        tally.tensor(file, f"S/layer{last}", f"S {label}", total, allowed)


# ------------------------------------------------------------------------------------------------ through the model


class Compared(RoundedProjector):
    """DeltaEdit on its own course, everything it meets compared with what was recorded.

    Args:
        sight: what compares, see there.
        instead: deltas to write instead of its own, by the names of edit and layer; ``None`` to go its own way.
        file: recorded projectors.
        options: of the editor.
    """

    def __init__(self, sight: Sight, instead: dict[str, Delta] | None, file: TensorFile | None, **options: Any) -> None:
        super().__init__(file, **options)
        self.sight, self.instead = sight, instead
        self.edit, self.left = -1, 0
        self.aimed = torch.zeros(0)

    def targets(self, bench: Workbench, rows: Sequence[EditRows]) -> Targets:
        """See :meth:`lit_edit.editors.deltaedit.DeltaEdit.targets`."""
        assert isinstance(bench, Watched)
        self.edit, self.left = self.edit + 1, len(bench.layers)
        self.sight.next(own=self.instead is None)
        found = super().targets(bench, rows)
        self.aimed = found.values_ND
        self.sight.targets(self.edit, found, bench, float(self.mean), float(self.variance))
        return found

    def occupied(self, used_OB: Tensor) -> Tensor:
        """See :meth:`lit_edit.editors.deltaedit.DeltaEdit.occupied`; as the reference draws them, where that is known."""
        self.sight.orthogonal = True
        self.sight.values(self.edit, torch.linalg.eigvalsh(used_OB @ used_OB.T).flip(0))
        exact = super().occupied(used_OB)
        return exact if self.sight.draws is None else self.sight.drawn(self.edit, used_OB, exact, self)

    def solve(self, layer: int, keys: Tensor, residuals: Tensor, weight: Tensor, avoid: Subspace | None = None) -> Delta:
        """See :meth:`lit_edit.editors.LocateThenEdit.solve`."""
        at = f"edit{self.edit}/layer{layer}"
        self.sight.tensor(f"{at}/keys", "keys", keys.T)
        self.sight.tensor(f"{at}/resid", "residuals", residuals.T)
        self.sight.tensor(f"{at}/z_cur", "z_cur", (self.aimed - residuals * self.left).T)
        self.left -= 1
        if self.instead is not None and at in self.instead:
            return self.instead[at]
        delta = super().solve(layer, keys, residuals, weight, avoid)
        self.sight.tensor(f"{at}/delta", "delta", delta.dense())
        self.sight.tensor(f"{at}/delta_fro", "delta_fro", delta.norm())
        return delta

    def remember(self, layer: int, keys: Tensor, weight: Tensor) -> None:
        """See :meth:`lit_edit.editors.LocateThenEdit.remember`."""
        super().remember(layer, keys, weight)
        if self.instead is None:
            at = f"edit{self.edit}/layer{layer}/W_after"
            self.sight.tensor(at, "W_after", weight)
            self.sight.tensor(f"{at}_fro", "W_after_fro", weight.double().norm())


def course(method: Method, tally: Tally, label: str, instead: dict[str, Delta] | None) -> None:
    """The editor's own course through the model, from the original weights.

    Args:
        method: the recorded sequence.
        tally: where comparisons go.
        label: for the table.
        instead: deltas of recorded keys and residuals, so that every edit starts on the recorded weights; ``None`` to go on
            with the editor's own.
    """
    recording, last = method.recording, method.layers[-1]
    sight = Sight(method, tally, label)
    file = projector_file(recording, DeltaEdit().threshold)
    editor, _ = replace(method, make=lambda said: Compared(sight, instead, file, **options(said))).editor()
    weights = {layer: recording.original[layer].clone() for layer in method.layers}
    done = 0
    for rows in recording.batches:
        names = [f"edit{done + index}/layer{last}" for index in range(len(rows))]
        if any(f"{at}/keys" not in method.file or (instead is not None and at not in instead) for at in names):
            break
        bench = Watched.of(method, weights, [editor])
        editor.change(bench, rows, editor.aim(bench, rows))
        bench.commit()
        done += len(rows)
    recording.restore()
    if instead is None:
        sight.tensor(f"S/layer{last}", "S", weights[last] - recording.original[last])


CHECK = Check(_NAME, (f"{_NAME}.safetensors",), run)
