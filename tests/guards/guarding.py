"""A weight, and changes of it for the guards to cut."""

import torch

from lit_edit.delta import Delta
from tests.tiny import normal

M, D = 10, 24
WEIGHT = normal(M, D)


def thin(seed, rank=4, scale=1.0):
    return Delta.low_rank(scale * normal(M, rank, seed=seed), normal(rank, D, seed=seed + 1000))


def dense(seed, scale=1.0):
    return Delta.from_dense(thin(seed, scale=scale).dense())


def ready(guard, weight=WEIGHT, spectrum=None):
    guard.prepare(0, weight, spectrum)
    return guard


def close(a, b, atol=1e-11):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)
