"""What an examination found: one finding per check, and what they come to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

FORMAT = "lit_edit-doctor/1"
"""Name and version of the JSON form."""


class Verdict(StrEnum):
    """How a check ended, from best to worst."""

    OK = "ok"
    """As it should be."""
    NOTE = "note"
    """Fine, and worth knowing."""
    OFF = "off"
    """Wrong: results will suffer until it is set right."""
    CANNOT = "cannot"
    """The model cannot be edited as it is."""

    @property
    def rank(self) -> int:
        """0 for the best."""
        return list(Verdict).index(self)


@dataclass(frozen=True)
class Outcome:
    """What one check returns. Build it with :func:`ok`, :func:`note`, :func:`off` or :func:`cannot`."""

    verdict: Verdict
    found: str
    """What was found, in a few words."""
    advice: str = ""
    """One sentence: what to do about it."""
    values: dict[str, Any] = field(default_factory=dict)
    """The same as numbers and names, for programs."""


@dataclass(frozen=True)
class Finding(Outcome):
    """An outcome and the check it belongs to."""

    group: str = ""
    """Group of checks, e.g. ``"tokenizer"``."""
    name: str = ""
    """Name of the check within its group, e.g. ``"BOS"``."""


def ok(found: str, **values: Any) -> Outcome:
    """As it should be."""
    return Outcome(Verdict.OK, found, values=values)


def note(found: str, advice: str = "", **values: Any) -> Outcome:
    """Fine, and worth knowing."""
    return Outcome(Verdict.NOTE, found, advice, values)


def off(found: str, advice: str, **values: Any) -> Outcome:
    """Wrong, with what to do about it."""
    return Outcome(Verdict.OFF, found, advice, values)


def cannot(found: str, advice: str, **values: Any) -> Outcome:
    """Cannot be edited, with the way out."""
    return Outcome(Verdict.CANNOT, found, advice, values)


@dataclass(frozen=True)
class Examination:
    """Everything that was found about one model, in the order of the table.

    Args:
        model: how the model is called.
        findings: one per check.
        setting: what it was examined under: dtype, device, versions.
    """

    model: str
    findings: tuple[Finding, ...]
    setting: dict[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The worst verdict among the findings."""
        return max((finding.verdict for finding in self.findings), key=lambda verdict: verdict.rank, default=Verdict.OK)

    @property
    def exit_code(self) -> int:
        """0 if the model can be edited as it is, 1 if something is off, 2 if it cannot be edited."""
        return {Verdict.OFF: 1, Verdict.CANNOT: 2}.get(self.verdict, 0)

    def of(self, *verdicts: Verdict) -> list[Finding]:
        """The findings with one of some verdicts."""
        return [finding for finding in self.findings if finding.verdict in verdicts]

    def find(self, group: str, name: str) -> Finding:
        """One finding.

        Raises:
            KeyError: if that check was not made.
        """
        for finding in self.findings:
            if (finding.group, finding.name) == (group, name):
                return finding
        raise KeyError(f"{group}/{name}")

    def groups(self) -> Iterator[tuple[str, list[Finding]]]:
        """Findings by group, in order."""
        for group in dict.fromkeys(finding.group for finding in self.findings):
            yield group, [finding for finding in self.findings if finding.group == group]

    def summary(self) -> str:
        """One sentence: how many checks ended how, and what that means."""
        counts = [f"{len(self.of(verdict))} {verdict}" for verdict in Verdict if self.of(verdict)]
        meaning = {0: "the model can be edited", 1: "something is off", 2: "the model cannot be edited as it is"}
        return f"{', '.join(counts)}: {meaning[self.exit_code]}"

    def as_json(self) -> str:
        """The examination as a JSON object, numbers that JSON does not know (NaN, infinity) as text."""
        findings = [
            {
                "group": finding.group,
                "name": finding.name,
                "verdict": str(finding.verdict),
                "found": finding.found,
                "advice": finding.advice,
                "values": _plain(finding.values),
            }
            for finding in self.findings
        ]
        whole = {
            "format": FORMAT,
            "model": self.model,
            "verdict": str(self.verdict),
            "exit_code": self.exit_code,
            "setting": self.setting,
            "findings": findings,
        }
        return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
