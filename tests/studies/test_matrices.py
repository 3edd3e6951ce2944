"""The matrices that studies of weights change: which ones, and that they are put back."""

import pytest
import torch
from tiny import normal, tiny_model

from lit_edit.anatomy import Anatomy
from lit_edit.studies.matrices import Matrix, matrices_of, replaced


def test_a_failure_in_between_puts_the_weights_back():
    matrices = [Matrix(str(number), normal(4, 6, seed=number)) for number in range(3)]
    before = [matrix.weight_OI.clone() for matrix in matrices]
    with pytest.raises(RuntimeError, match="scoring"), replaced(matrices, lambda matrix: matrix.weight_OI * 2):
        assert torch.equal(matrices[2].weight_OI, 2 * before[2])
        raise RuntimeError("scoring")

    def third_fails(matrix):
        if matrix is matrices[2]:
            raise RuntimeError("decomposing")
        return -matrix.weight_OI

    with pytest.raises(RuntimeError, match="decomposing"), replaced(matrices, third_fails):
        raise AssertionError("never inside")
    assert all(torch.equal(matrix.weight_OI, old) for matrix, old in zip(matrices, before, strict=True))


def test_which_matrices(models):
    for family, attention, mlp in (("gpt2", 2, 2), ("llama", 4, 3)):
        anatomy = Anatomy.of(tiny_model(family))
        down = matrices_of(anatomy, None, "down")
        assert [matrix.name for matrix in down] == [anatomy.weight_name(layer) for layer in range(3)]
        assert all(torch.equal(matrix.weight_OI, anatomy.weight(layer)) for layer, matrix in enumerate(down)), "[d_out, d_in]"
        assert len(matrices_of(anatomy, [2, 0], "mlp")) == 2 * mlp and len(matrices_of(anatomy, None, "all")) == 3 * (
            mlp + attention
        )
        assert not any("att" in matrix.name for matrix in matrices_of(anatomy, None, "mlp"))
        down[1].weight_OI[0, 3] = 7.0
        assert float(anatomy.weight(1)[0, 3]) == 7.0, "a view"
    assert {tuple(m.weight_OI.shape) for m in matrices_of(Anatomy.of(tiny_model("gpt2")), [0], "all")} == {
        (96, 32),
        (32, 32),
        (128, 32),
        (32, 128),
    }
