"""The matrices of a model that a study of weights changes, and puts back.

Legend: O = d_out, I = d_in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError
from lit_edit.models.decoder import is_transposed
from lit_edit.spectrum import Spectrum, decompose

Which = Literal["down", "mlp", "all"]


class Matrix:
    """One weight matrix of a model.

    Args:
        name: of its parameter.
        weight_OI: view ``[d_out, d_in]`` into the model.
    """

    def __init__(self, name: str, weight_OI: Tensor) -> None:
        self.name, self.weight_OI = name, weight_OI

    @cached_property
    def spectrum(self) -> Spectrum:
        """Singular value decomposition of the unedited weight, kept on the CPU; asked for before the weight is changed."""
        found = decompose(self.weight_OI)
        return Spectrum(found.left.cpu(), found.sigma.cpu(), found.right.cpu())

    @cached_property
    def rank(self) -> int:
        """Number of singular values that are not zero."""
        return int((self.spectrum.sigma > 0).sum())

    @cached_property
    def norm(self) -> float:
        """Frobenius norm of the unedited weight."""
        return float(self.weight_OI.double().norm())

    def generator(self, *what: Any) -> torch.Generator:
        """Random numbers that hang on this matrix's name and ``what`` alone: the same on every device, in every process."""
        digest = hashlib.sha256("|".join(map(str, (self.name, *what))).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def matrices_of(anatomy: Anatomy, layers: Sequence[int] | None, which: Which) -> list[Matrix]:
    """The matrices of a choice, block by block.

    Args:
        anatomy: the model.
        layers: indices of blocks; ``None`` for all.
        which: ``down`` (what editors write into), ``mlp`` (every ``Linear`` or ``Conv1D`` of a block outside attention) or
            ``all`` (those of attention, too).

    Raises:
        EditError: if a block is not there or named twice, or none is named.
    """
    count = len(anatomy.blocks)
    wanted = list(range(count)) if layers is None else sorted(layers)
    if not wanted:
        raise EditError("--layers is empty; name at least one block, or null for all")
    if len(set(wanted)) != len(wanted):
        raise EditError(f"--layers names a block twice: {wanted}")
    if bad := [layer for layer in wanted if not 0 <= layer < count]:
        raise EditError(f"--layers names block {bad[0]}, but the model has blocks 0 to {count - 1}")
    found: dict[int, Matrix] = {}  # by parameter: a weight that two places share is one matrix
    for layer in wanted:
        for path, module in anatomy.blocks[layer].named_modules():
            if not (isinstance(module, nn.Linear) or is_transposed(module)):
                continue
            if path != anatomy.down_name and (which == "down" or (which == "mlp" and "att" in path.lower())):
                continue
            weight = module.weight
            assert isinstance(weight, Tensor)
            view = weight.data.T if is_transposed(module) else weight.data
            found.setdefault(id(weight), Matrix(f"{anatomy.blocks_name}.{layer}.{path}.weight", view))
    return list(found.values())


@contextmanager
def replaced(matrices: Sequence[Matrix], new: Callable[[Matrix], Tensor | None]) -> Iterator[None]:
    """The model with other weights inside the block; afterwards every byte of them is what it was.

    Args:
        matrices: to be replaced, in this order.
        new: the new weight ``[d_out, d_in]``, ``None`` to leave it as it is.
    """
    kept: list[tuple[Matrix, Tensor]] = []
    try:
        for matrix in matrices:
            weight_OI = new(matrix)
            if weight_OI is not None:
                kept.append((matrix, matrix.weight_OI.to("cpu", copy=True)))
                matrix.weight_OI.copy_(weight_OI)
        yield
    finally:
        for matrix, weight_OI in kept:
            matrix.weight_OI.copy_(weight_OI)
