"""The tests' end of ``serving.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rig import Server


class Forks(Server):
    """Runs functions and command lines on several ranks."""

    script = Path(__file__).with_name("serving.py")

    def call(self, function: str, ranks: int, given: Any = None, **how: Any) -> list[Any]:
        """What ``rank_cases:function`` returned on every rank."""
        answer = self.run(call=f"rank_cases:{function}", ranks=ranks, given=given, **how)
        assert answer["codes"] == [0] * ranks, answer
        return answer["found"]
