"""A small synthetic world of facts and skills, and the model that ships with the project.

The names below are resolved on first use, so importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_edit.world.facts import Relation, World
    from lit_edit.world.skills import SKILLS, held_out
    from lit_edit.world.text import general_text
    from lit_edit.world.tokenizer import build_tokenizer

_HOME = {
    "Relation": "facts",
    "World": "facts",
    "SKILLS": "skills",
    "held_out": "skills",
    "general_text": "text",
    "build_tokenizer": "tokenizer",
}

__all__ = ["SKILLS", "Relation", "World", "build_tokenizer", "general_text", "held_out"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
