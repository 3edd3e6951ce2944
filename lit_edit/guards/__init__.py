"""Guards: what a change must not touch."""

from lit_edit.guards.base import Guard
from lit_edit.guards.l2sp import L2SP
from lit_edit.guards.normcap import NormCap
from lit_edit.guards.prune import PRUNE
from lit_edit.guards.random_subspace import RandomSubspace
from lit_edit.guards.rect import RECT
from lit_edit.guards.revive import REVIVE
from lit_edit.guards.sphere import SPHERE

__all__ = ["L2SP", "PRUNE", "RECT", "REVIVE", "SPHERE", "Guard", "NormCap", "RandomSubspace"]
