"""A change as thin factors and as a dense matrix is the same change."""

import pytest
import torch

from lit_edit.delta import Delta, is_finite, remove_columns
from tests.tiny import normal

LEFT, RIGHT = normal(7, 3), normal(3, 11, seed=1)
THIN, FULL = Delta.low_rank(LEFT, RIGHT), Delta.from_dense(LEFT @ RIGHT)


def basis(d, k):
    return torch.linalg.qr(normal(d, k, seed=d)).Q


def test_both_forms_agree():
    assert THIN.is_low_rank and not FULL.is_low_rank
    assert THIN.shape == FULL.shape == (7, 11)
    torch.testing.assert_close(THIN.dense(), FULL.dense())
    torch.testing.assert_close(THIN.norm(), FULL.norm(), rtol=1e-13, atol=0)
    assert THIN.norm().dtype == torch.float64


@pytest.mark.parametrize("delta", [THIN, FULL], ids=["thin", "dense"])
def test_projections(delta):
    u, v = basis(7, 2), basis(11, 4)
    left, right = delta.without_left(u), delta.without_right(v)
    torch.testing.assert_close(left.dense(), (torch.eye(7, dtype=torch.float64) - u @ u.T) @ FULL.dense())
    torch.testing.assert_close(right.dense(), FULL.dense() @ (torch.eye(11, dtype=torch.float64) - v @ v.T))
    assert left.is_low_rank == right.is_low_rank == delta.is_low_rank
    torch.testing.assert_close(delta.without_left(u[:, :0]).dense(), FULL.dense(), rtol=0, atol=1e-15)


def test_norm_of_factors_that_cancel():
    """Two factors of norm 1e8 whose product is small: Gram matrices would lose it."""
    left = torch.tensor([[1e8, 1e8]], dtype=torch.float64)
    right = torch.tensor([[1.0], [-1.0 + 1e-12]], dtype=torch.float64)
    delta = Delta.low_rank(left, right)
    torch.testing.assert_close(delta.norm(), delta.dense().norm(), rtol=1e-3, atol=0)


def test_finite_and_dtype():
    assert THIN.is_finite() and FULL.is_finite()
    assert not Delta.low_rank(LEFT * float("nan"), RIGHT).is_finite()
    assert not Delta.from_dense(torch.tensor([[float("inf")]])).is_finite()
    assert THIN.to(torch.float32).dense().dtype == FULL.to(torch.float32).dense().dtype == torch.float32


def test_malformed_deltas_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        Delta.low_rank(LEFT, RIGHT.T)
    with pytest.raises(ValueError, match="either"):
        Delta(LEFT, RIGHT, LEFT @ RIGHT)
    with pytest.raises(ValueError, match="either"):
        Delta(LEFT, None)


def test_remove_columns_takes_the_basis_dtype_of_the_matrix():
    u = basis(7, 2).float()
    assert remove_columns(LEFT, u).dtype == torch.float64
    assert float((u.double().T @ remove_columns(LEFT, u)).abs().max()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_found(dtype, bad):
    value = torch.arange(12.0).view(3, 4).to(dtype)
    for good in (value, value.T, value[:, ::2], value[:0], value[0, 0]):
        assert is_finite(good)
    value[1, 2] = bad
    for spoilt in (value, value.T, value[:, ::2], value[1, 2]):
        assert not is_finite(spoilt)
    assert not Delta.low_rank(value, value.T).is_finite() and not Delta.from_dense(value).is_finite()
