r"""Second moments from the ``.npz`` files that ROME, MEMIT, AlphaEdit and their descendants keep.

Their ``layer_stats`` writes one file per layer, ``{module}_{dtype}_mom2_{documents}.npz`` (e.g.
``transformer.h.5.mlp.c_proj_float32_mom2_100000.npz``), with ``mom2.mom2``, ``mom2.count`` and ``sample_size``. The matrix in
it is the *sum* :math:`\sum_i x_i x_i^T`; other files hold the mean under the same name. Which one it is, is read off the model:
the trace of the mean is the mean of :math:`\|x\|^2`, which a few sampled tokens tell to far better than the factor between
the two.

Legend: I = d_in.
"""

from __future__ import annotations

import glob
import math
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_edit.algebra.second_moment import SecondMoment
from lit_edit.anatomy import Anatomy
from lit_edit.corpus import SampledCorpus
from lit_edit.errors import EditError
from lit_edit.moments import collect
from lit_edit.prompts import Encoder

_FIELDS = (("mom2.mom2", "mom2.count"), ("mom2", "count"))
"""Names of matrix and count: of combined statistics, which all released files are, and of a single one."""

_ROWS = 8
"""Rows the model writes to see how large its keys are."""

_FAR = 1000.0
"""Factor by which a trace may miss what the model's own keys say; text and massive activations explain one or two decades."""

_LOPSIDED = 1e-3
"""Relative asymmetry of a moment that sums in float16 or float32 do not explain."""


@dataclass(frozen=True)
class Found:
    """What a file holds."""

    matrix_II: Tensor
    """Sum or mean, float64."""
    count: int | None
    """Tokens, ``None`` where the file does not say."""
    field: str
    """Name of the matrix in the file."""


def imported(
    where: str, anatomy: Anatomy, encoder: Encoder, layers: Sequence[int], say: Callable[[str], None]
) -> dict[int, SecondMoment]:
    """Second moments of several layers from files, checked against the model.

    Args:
        where: folder that is searched with everything below it, or a pattern with ``{}`` for the layer's number (``*`` and
            ``**`` stand for anything).
        anatomy: the unedited model.
        encoder: its tokenizer.
        layers: edited blocks.
        say: told which file is used for which layer, and whether it was divided by its count.

    Raises:
        EditError: if a layer has no file or several, or a file holds no second moment of this model.
    """
    paths = {layer: _path(where, anatomy, layer) for layer in layers}
    files = {layer: read(path, anatomy.d_inner) for layer, path in paths.items()}
    rows = list(islice(SampledCorpus().token_rows(anatomy, encoder), _ROWS))
    seen = collect(anatomy, rows, layers, sum(map(len, rows)), encoder.pad)
    moments = {}
    for layer, found in files.items():
        moment, how = normalised(found, float(seen[layer].mean.diagonal().double().sum()), paths[layer])
        say(f"Second moment of layer {layer}: {paths[layer]}, {how}")
        moments[layer] = SecondMoment(moment.mean.to(anatomy.device), moment.count)
    return moments


def _path(where: str, anatomy: Anatomy, layer: int) -> Path:
    """The one file for a layer."""
    if "{}" in where:
        pattern = where.replace("{}", str(layer))
        found = [Path(name) for name in glob.glob(pattern, recursive=True)]
        what = f"no file matches {pattern}"
    else:
        if not Path(where).is_dir():
            raise EditError(
                f"--model.moments_from is {where!r}, which is no folder; name one, or a pattern with {{}} for the layer"
            )
        # The layer's number in front of the name of the projection; 4 is not 14, and c_proj of the attention is not the MLP's.
        name = re.compile(rf"(?<!\d){layer}\.{re.escape(anatomy.down_name)}(?![A-Za-z0-9])")
        found = [path for path in Path(where).rglob("*.npz") if name.search(path.name)]
        what = f"no .npz file in {where} is named after {anatomy.blocks_name}.{layer}.{anatomy.down_name}"
    if not found:
        raise EditError(f"layer {layer} has no second moment to import: {what}")
    if len(found) > 1:
        names = ", ".join(sorted(map(str, found))[:3])
        raise EditError(
            f"layer {layer} has {len(found)} files to import ({names}{', ...' if len(found) > 3 else ''}); name one with a "
            "pattern as --model.moments_from, {} for the layer's number"
        )
    return found[0]


def read(path: Path, d_in: int) -> Found:
    """What one file holds, as it stands. Nothing in it is ever run: arrays of Python objects are refused.

    Args:
        path: the file.
        d_in: width of the keys.

    Raises:
        EditError: if it is no ``.npz`` file with a finite symmetric matrix of that width.
    """
    try:
        with path.open("rb") as handle:  # numpy leaves a file open that turns out to be damaged
            return _found(np.load(handle, allow_pickle=False), path, d_in)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise EditError(f"{path} cannot be read as an .npz file of plain arrays: {reason}") from error


def _found(file: Any, path: Path, d_in: int) -> Found:
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise EditError(f"{path} holds one array without a name, and fields named mom2.mom2 and mom2.count are wanted")
    names = next(((matrix, count) for matrix, count in _FIELDS if matrix in file.files), None)
    if names is None:
        held = ", ".join(file.files[:6]) or "nothing"
        raise EditError(f"{path} has no field mom2.mom2 or mom2 with a second moment; it holds {held}")
    array = file[names[0]]
    count = _count(file[names[1]], path, names[1]) if names[1] in file.files else None
    return Found(_checked(array, d_in, path, names[0]), count, names[0])


def _count(value: Any, path: Path, field: str) -> int | None:
    """The number of tokens; the format writes NaN for "not known"."""
    number = float(value) if value.ndim == 0 and value.dtype.kind in "iuf" else -1.0
    if math.isnan(number):
        return None
    if number < 1 or number != round(number):
        raise EditError(f"{field} in {path} is {value!s:.40}, and a number of tokens is wanted")
    return round(number)


def _checked(array: Any, d_in: int, path: Path, field: str) -> Tensor:
    """The matrix in float64, symmetric to the last bit."""
    if array.dtype.kind != "f":
        raise EditError(f"{field} in {path} holds {array.dtype}, and a matrix of floating-point numbers is wanted")
    if array.shape != (d_in, d_in):
        raise EditError(
            f"{field} in {path} has shape {tuple(array.shape)}, but the edited weights read {d_in} inputs; the file belongs to "
            "another model"
        )
    matrix_II = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))  # any byte order, any precision
    if not bool(torch.isfinite(matrix_II).all()):
        raise EditError(f"{field} in {path} holds numbers that are not finite")
    size = float(torch.linalg.norm(matrix_II))
    if not size or float(matrix_II.diagonal().min()) < 0:
        raise EditError(f"{field} in {path} is no second moment: its diagonal, means of squares, is negative or all zero")
    if float(torch.linalg.norm(matrix_II - matrix_II.T)) > _LOPSIDED * size:
        raise EditError(f"{field} in {path} is not symmetric, so it is no second moment")
    return (matrix_II + matrix_II.T) / 2


def normalised(found: Found, trace: float, path: Path) -> tuple[SecondMoment, str]:
    """The mean, whether the file holds a sum or a mean, and a few words on which it was.

    Args:
        found: what the file holds.
        trace: what the trace of the mean should be about, from the model's own keys.
        path: the file, for what is said.

    Raises:
        EditError: if the trace is far from ``trace`` either way.
    """
    own = float(found.matrix_II.trace())
    ways = {1: own / trace}
    if found.count is not None:
        ways[found.count] = own / found.count / trace
    divisor, ratio = min(ways.items(), key=lambda item: abs(math.log(item[1])))
    if not 1 / _FAR < ratio < _FAR:
        without = "" if found.count is not None else " (a sum without a count cannot be used)"
        raise EditError(
            f"{found.field} in {path} does not fit this model: its trace is {ratio:.2g} times what the layer reads{without}; "
            "it may belong to another model or layer"
        )
    mean = SecondMoment((found.matrix_II / divisor).float(), found.count or 0)
    if found.count is None:
        return mean, "a mean over an unknown number of tokens"
    if divisor == 1:
        return mean, f"a mean over {found.count:,} tokens, used as it is"
    return mean, f"a sum over {found.count:,} tokens, divided by them"
