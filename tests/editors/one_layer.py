"""One layer in float64: its second moment, and a stream of batches that an editor writes into it."""

import torch
from tiny import normal

from lit_edit.moments import SecondMoment

D, M, N = 24, 10, 3
EYE = torch.eye(D, dtype=torch.float64)


def mean(seed=0):
    basis = torch.linalg.qr(normal(D, D, seed=seed)).Q
    found = (basis * torch.logspace(-4, 1, D, dtype=torch.float64)) @ basis.T
    return ((found + found.T) / 2).float().double()


def batches(count, seed=0, n=N):
    keys = normal(count, n, D, seed=seed + 100).float().double()
    return list(zip(keys, normal(count, n, M, seed=seed + 200), strict=True))


def ready(editor, seed=0, layers=(0,)):
    for layer in layers:
        editor.allocate(layer, M, D)
        editor.prepare(layer, torch.zeros(M, D), SecondMoment(mean(seed).float(), 1))
    return editor


def run(editor, stream, weight=None):
    weight = torch.zeros(M, D, dtype=torch.float64) if weight is None else weight
    for keys, residuals in stream:
        weight = weight + editor.solve(0, keys, residuals, weight).dense()
        editor.remember(0, keys, weight)
    return weight
