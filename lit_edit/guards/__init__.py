"""Guards: what a change must not touch."""

from lit_edit.guards.base import Guard
from lit_edit.guards.revive import REVIVE

__all__ = ["REVIVE", "Guard"]
