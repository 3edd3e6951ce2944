"""ROME and its variants, prepared and spoilt."""

import torch

from lit_edit.editors.rome import ROME
from lit_edit.moments import SecondMoment
from tests.tiny import normal

D, M = 24, 10
VARIANTS = {"rome": {}, "rrome": {"same_key": True}, "prome": {"prompt_key": True}}


def moment(d=D, seed=0):
    """A second moment with eigenvalues over three decades."""
    basis = torch.linalg.qr(normal(d, d, seed=seed)).Q
    return SecondMoment(((basis * torch.logspace(-2, 1, d, dtype=torch.float64)) @ basis.T).float(), 1)


def prepared(d=D, m=M, layer=0, **options):
    rome = ROME(**options)
    rome.allocate(layer, m, d)
    rome.prepare(layer, torch.zeros(m, d), moment(d) if rome.adjust else None)
    return rome


class Spoil(ROME):
    """Gives NaN for some requests, by their turn."""

    bad: tuple[int, ...] = ()
    turn = -1

    def solve(self, *args, **kwargs):
        delta = super().solve(*args, **kwargs)
        self.turn += 1
        if self.turn in self.bad:
            delta.left.mul_(float("nan"))
        return delta
