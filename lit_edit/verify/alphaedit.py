"""Replays recorded AlphaEdit runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lit_edit.algebra.second_moment import SecondMoment
from lit_edit.delta import remove_columns
from lit_edit.editors import AlphaEdit
from lit_edit.verify import family, walk
from lit_edit.verify.memit_seq import caches
from lit_edit.verify.recording import Check, Recording, TensorFile
from lit_edit.verify.sequence import Method
from lit_edit.verify.table import CLOSED_FORM, Row, Tally, Tolerance, relative, tolerance


class RoundedProjector(AlphaEdit):
    """AlphaEdit with the projector as the reference takes it: from a singular value decomposition of ``C`` in float32.

    Directions on the two sides of the threshold mix by about ``eps sigma_1 / gap`` there. That is far more than the rounding of
    anything else, so the recorded run can only be met closely through the same decomposition, or through a recorded projector.

    Args:
        threshold: see :class:`lit_edit.editors.AlphaEdit`.
        ridge: see there.
        file: recorded projectors ``P/layer{L}``, where there are any.
    """

    def __init__(self, threshold: float, ridge: float, file: TensorFile | None) -> None:
        super().__init__(threshold, ridge)
        self.file = file

    def prepare(self, layer: int, weight: Tensor, moment: SecondMoment | None) -> None:
        """See :meth:`lit_edit.editors.Editor.prepare`."""
        assert moment is not None
        self._closed[layer] = rounded_basis(self.file, layer, moment, self.threshold)


def rounded_basis(file: TensorFile | None, layer: int, moment: SecondMoment, threshold: float) -> Tensor:
    """Protected directions ``[d_in, r]`` of the reference: of a recorded projector, else by the decomposition it used.

    Args:
        file: the recording of AlphaEdit, if there is one.
        layer: index of the block.
        moment: second moment of its keys.
        threshold: singular values from here on are protected.
    """
    recorded = None if file is None else file.get(f"P/layer{layer}")
    if recorded is not None:
        values, vectors = torch.linalg.eigh(recorded.double())  # 1 inside, 0 outside
        outside: Tensor = vectors[:, values < 0.5]
        return outside
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as recorded: another number of threads rounds another way
    try:
        left, values, _ = torch.linalg.svd(moment.mean.float(), full_matrices=False)
    finally:
        torch.set_num_threads(threads)
    basis: Tensor = torch.linalg.qr(left[:, values >= threshold].double()).Q
    return basis


def exact(recording: Recording, name: str = "AlphaEdit", **extra: Any) -> Method | None:
    """The recorded sequence with the library's own projector, ``None`` where there is none."""
    return Method.of(recording, name, lambda said: AlphaEdit(said["nullspace_threshold"], said["L2"]), **extra)


def rounded(recording: Recording, name: str = "AlphaEdit", **extra: Any) -> Method | None:
    """The recorded sequence with the reference's float32 projector, ``None`` where there is none."""
    file = recording.tensors("AlphaEdit")
    return Method.of(recording, name, lambda said: RoundedProjector(said["nullspace_threshold"], said["L2"], file), **extra)


def run(recording: Recording) -> list[Row]:
    """Rows of AlphaEdit: the projector, deltas with the exact and with the reference's projector, then the model's part."""
    tally = Tally(recording, "AlphaEdit")
    ours, theirs = exact(recording), rounded(recording)
    if ours is None or theirs is None:
        tally.note("all", "not recorded here")
        return tally.rows()
    _projectors(ours, tally)
    family.residuals(ours, tally)
    rounding = projector_rounding(ours, theirs)
    stored = projectors(recording, ours.layers, recording.options("AlphaEdit")["nullspace_threshold"])
    family.closed_form(theirs, tally, "[recorded K, R, C, P]", "delta", only=stored)
    rest = set(ours.layers) - stored
    loose = at_least(tolerance(recording, "AlphaEdit", "delta", CLOSED_FORM), rounding)
    family.closed_form(theirs, tally, "[recorded K, R, C; float32 projector]", "delta", loose, rest)
    family.closed_form(ours, tally, "[recorded K, R, C; exact projector]", "delta", rounding)
    caches(ours, tally)
    walk.read(theirs, tally)
    walk.replay(theirs, tally)
    return tally.rows()


def projector_file(recording: Recording, threshold: float) -> TensorFile | None:
    """The file with projectors at this threshold, ``None`` if there is none."""
    file = recording.tensors("AlphaEdit")
    return file if file is not None and recording.options("AlphaEdit").get("nullspace_threshold") == threshold else None


def projectors(recording: Recording, layers: Iterable[int], threshold: float) -> set[int]:
    """Layers whose projector was recorded; that of the others is recomputed, on a machine that may round otherwise."""
    file = projector_file(recording, threshold)
    return {layer for layer in layers if file is not None and f"P/layer{layer}" in file}


def at_least(tight: Tolerance, loose: Tolerance) -> Tolerance:
    """The larger of two tolerances."""
    return tight if tight.value >= loose.value else loose


def projector_rounding(ours: Method, theirs: Method, keys: str = r"batch\d+/layer(\d+)/keys") -> Tolerance:
    """Five times what a float32 projector changes in the projected keys, at worst: no delta can agree better.

    Args:
        ours: the method with the exact projector.
        theirs: the same with the reference's.
        keys: names of the recorded keys, the layer as a group.
    """
    editors = [method.editor()[0] for method in (ours, theirs)]
    worst = 0.0
    for name, match in ours.file.names(keys):
        bases = [editor.forbidden(int(match[1])) for editor in editors if isinstance(editor, AlphaEdit)]
        mine, other = (remove_columns(ours.file.tensors[name].double(), basis) for basis in bases)
        worst = max(worst, relative(other, mine))
    return Tolerance(max(5 * worst, CLOSED_FORM), "5 x float32 projector on keys")


def _projectors(method: Method, tally: Tally) -> None:
    r"""Recorded projectors and their ranks against :math:`I - U U^T`."""
    editor, _ = method.editor()
    assert isinstance(editor, AlphaEdit)
    for layer in method.layers:
        closed = editor.forbidden(layer)
        name = f"P/layer{layer}"
        ranks = method.file.get(f"{name}/removed_rank")
        if ranks is not None:
            removed = torch.tensor(closed.shape[1])
            tally.tensor(method.file, f"{name}/removed_rank", "removed directions [recorded C]", removed, Tolerance(0, "exact"))
        # The reference takes the projector from a float32 SVD of C: eigenvectors on its two sides mix by eps / gap.
        projector = torch.eye(len(closed), dtype=torch.float64) - closed.double() @ closed.double().T
        tally.tensor(method.file, name, "projector [recorded C]", projector, Tolerance(1e-4, "float32 SVD"))


CHECK = Check("AlphaEdit", ("AlphaEdit.safetensors",), run)
