"""Facts of the embedded world as a stream of edits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lit_edit.data.source import FactSource
from lit_edit.request import EditRequest


@dataclass(frozen=True)
class WorldFacts(FactSource):
    """Counterfactual edits about people of the embedded world.

    Args:
        n: number of edits.
        seed: seed of the draw of people, relations and new answers.
        world_seed: seed of the world itself; the embedded model knows the world of seed 0.
        one_per_subject: edit each person at most once. Two edits of one person share their key exactly, which no
            linear memory can tell apart.
    """

    n: int = 500
    seed: int = 0
    world_seed: int = 0
    one_per_subject: bool = True

    def requests(self) -> Iterator[EditRequest]:
        """The edits, the same at every call.

        Raises:
            EditError: if the world does not hold that many.
        """
        from lit_edit.world import World

        records = World(seed=self.world_seed).edits(self.n, seed=self.seed, one_per_subject=self.one_per_subject)
        for index, record in enumerate(records, start=1):
            yield _request(record, f"world {self.world_seed}, edit {index}")


def _request(record: Mapping[str, Any], source: str) -> EditRequest:
    """A record of the world as a request."""
    return EditRequest(
        prompt=record["prompt"],
        subject=record["subject"],
        target_new=record["target_new"],
        target_true=record["target_true"],
        paraphrases=tuple(record["paraphrases"]),
        neighbourhood=tuple((prompt, answer) for prompt, answer in record["neighbourhood"]),
        case_id=str(record["case_id"]),
        relation=record["relation"],
        source=source,
    )
