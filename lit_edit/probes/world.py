"""The skills of the embedded world as probes."""

from __future__ import annotations

from lit_edit.errors import EditError
from lit_edit.probes.base import AnswerProbe
from lit_edit.world.facts import World
from lit_edit.world.skills import SKILLS, held_out


class WorldSkill(AnswerProbe):
    """One skill of the embedded world, as general ability.

    Args:
        skill: name of the skill.
        items: how many questions, none of them seen in training where the skill can be split.
        seed: of the questions.

    Raises:
        EditError: if the world has no such skill.
    """

    def __init__(self, skill: str, items: int = 100, seed: int = 0) -> None:
        if skill not in SKILLS:
            raise EditError(f"the embedded world has no skill {skill!r}; it has {', '.join(SKILLS)}")
        super().__init__(skill, held_out(skill, items, seed))


class WorldUnrelated(AnswerProbe):
    """Facts about people of the embedded world that no edit ever touches.

    Args:
        items: how many facts at most.
        world_seed: of the world.
    """

    def __init__(self, items: int = 200, world_seed: int = 0) -> None:
        super().__init__("unrelated_facts", World(seed=world_seed).unrelated_facts()[:items])
