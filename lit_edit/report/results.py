"""Tables of what was measured: before, after, change, and how sure each number is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from lit_edit.report.markup import Child, details, node, note, section, table
from lit_edit.report.numbers import NOTHING, between, number, plain, title
from lit_edit.report.run import Run

_METRICS = ("efficacy", "paraphrase", "neighbourhood", "portability", "locality", "score")
_SCORINGS = ("accuracy", "success", "agreement", "exact", "contains", "any_wording")

_COHORTS = {"first": "oldest cohort", "latest": "newest cohort", "mean": "all cohorts", "auc": "area under the curve by age"}

Bounds = Sequence[float | None] | None


@dataclass(frozen=True)
class Key:
    """Which number: what every row of a table is about."""

    group: str
    measure: str
    protocol: str
    scoring: str
    common: bool
    """Whether it is one of those that are usually told."""


@dataclass(frozen=True)
class Measured:
    """One number of one run, with 95 % intervals where there are any."""

    before: float | None
    after: float | None
    sure_before: Bounds = None
    sure_after: Bounds = None
    sure_change: Bounds = None
    """Of the difference, both sides paired item by item."""

    @property
    def change(self) -> float | None:
        """After less before."""
        return None if self.before is None or self.after is None else self.after - self.before


EDITS, EARLY, PROBES, SAMPLES = "Edits on the last weights", "Edits right after their batch", "General abilities", "Samples"
_NOTES = {
    EDITS: "Before: a sample of the same edits on the unedited model. Beneath a number stands its 95 % interval over records; "
    "a change has none, since the samples before and after may differ.",
    EARLY: "Each batch on the weights it had just been written into, mean over the stream, with 95 % intervals over records.",
    PROBES: "The 95 % interval beneath a change is paired: the same items before and after.",
    SAMPLES: "What callbacks follow on a sample of the edits: retention, and what the model says freely.",
}


def measured(run: Run) -> dict[Key, Measured]:
    """All numbers of a run, in the order of its tables."""
    return dict(sorted(_measured(run), key=lambda item: _place(item[0])))


def _place(key: Key) -> tuple[int, int, int]:
    """Groups, metrics and scorings in the order in which people ask for them; what is not named comes last, as it was found."""
    metric = key.measure.split("_")[0]
    scoring = key.scoring.split("/")[0]
    return (
        list(_NOTES).index(key.group),
        0 if key.group == PROBES else _METRICS.index(metric) if metric in _METRICS else len(_METRICS),
        _SCORINGS.index(scoring) if scoring in _SCORINGS else len(_SCORINGS),
    )


def _measured(run: Run) -> Iterator[tuple[Key, Measured]]:
    summary = run.summary
    sure = summary["intervals"]
    start = summary["validations"][0]["intervals"] if summary["validations"] else {}
    for name, after in summary["after"].items():
        kind, *rest = name.split("/")
        if kind == "edit" and len(rest) >= 3:
            protocol, metric, *how = rest
            earlier = "/".join(("edit", "before", metric, *how))
            key = Key(EDITS, metric, protocol, "/".join(how), metric in _METRICS and how[0] in _SCORINGS)
            # An unedited model's number is its own "after" where nothing was written yet.
            before = summary["before"].get(earlier) if protocol != "before" else None
            yield key, Measured(before, after, start.get(earlier), sure.get(name))
        elif kind == "probe" and rest:
            key = Key(PROBES, rest[0], "", "/".join(rest[1:]), True)
            yield key, Measured(summary["before"].get(name), after, sure_change=summary["changes"].get(name))
    for group, numbers in ((EARLY, summary["immediate"]), (SAMPLES, summary["sampled"])):
        for name, after in numbers.items():
            _, protocol, metric, *how = [*name.split("/"), "", ""][: max(3, len(name.split("/")))]
            common = group == SAMPLES or (metric in _METRICS and bool(how) and how[0] in _SCORINGS)
            yield Key(group, metric, protocol, "/".join(how), common), Measured(None, after, sure_after=sure.get(name))


def results(runs: Sequence[Run]) -> Element | None:
    """The section of the tables; ``None`` if nothing was measured."""
    found = {run.label: measured(run) for run in runs}
    keys = sorted(dict.fromkeys(key for numbers in found.values() for key in numbers), key=_place)
    made: list[Child] = []
    for group, told in _NOTES.items():
        here = [key for key in keys if key.group == group]
        common, rest = [key for key in here if key.common], [key for key in here if not key.common]
        if common:
            made += [_table(group, common, found), note(told)]
        if rest:
            made.append(details(f"{group}: all other scorings", _table(f"{group}: all other scorings", rest, found)))
    return section("Results", "results", *made) if made else None


def _table(caption: str, keys: Sequence[Key], found: Mapping[str, Mapping[Key, Measured]]) -> Element:
    if len(found) == 1:
        return _one(caption, keys, next(iter(found.values())))
    rows = [[_name(key), *(_cell(numbers.get(key)) for numbers in found.values())] for key in keys]
    return table(caption, ["measure", *found], rows, range(1, len(found) + 1))


def _one(caption: str, keys: Sequence[Key], numbers: Mapping[Key, Measured]) -> Element:
    """One run: before, after and change have a column each; what no row has is left out."""
    found = [numbers[key] for key in keys]
    columns = {
        "before": [_sure(one.before, one.sure_before) for one in found],
        "after": [_sure(one.after, one.sure_after) for one in found],
        "change": [_sure(one.change, one.sure_change, signed=True) for one in found],
    }
    if all(one.before is None for one in found):
        columns = {"value": columns["after"]}
    rows = [[_name(key), *(cells[at] for cells in columns.values())] for at, key in enumerate(keys)]
    return table(caption, ["measure", *columns], rows, range(1, len(columns) + 1))


def _sure(value: float | None, bounds: Bounds, signed: bool = False) -> Element:
    """A number with its interval beneath."""
    beneath = between(bounds, signed)
    return node("span", number(value, signed), node("small", beneath) if beneath else None, class_="pair")


def _name(key: Key) -> Element:
    how = ", ".join(part for part in (plain(key.protocol), _scoring(key)) if part)
    return node("span", title(key.measure), node("small", how), class_="pair")


def _scoring(key: Key) -> str:
    parts = key.scoring.split("/")
    which = _COHORTS.get(parts[-1]) if key.protocol == "retention" else None
    return ", ".join([*(plain(part) for part in parts[: -1 if which else None] if part), *([which] if which else [])])


def _cell(one: Measured | None) -> Child:
    """A number with its interval, where it began and how far it came beneath."""
    if one is None:
        return NOTHING
    beneath = [between(one.sure_after)] if between(one.sure_after) else []
    if one.before is not None:
        beneath.append(f"{number(one.change, signed=True)} from {number(one.before)}")
    if between(one.sure_change):
        beneath.append(f"change {between(one.sure_change, signed=True)}")
    return node("span", number(one.after), *(node("small", text) for text in beneath), class_="pair")


def verdict(run: Run) -> str:
    """What became of a run, in a line or two; every word follows from a number in the tables."""
    found = measured(run)
    rates = {
        key.measure: one.after
        for key, one in found.items()
        if key.group == EDITS and key.scoring == "accuracy/teacher_forced" and key.measure in _METRICS[:3]
    }
    told = [f"{name} {100 * value:.1f}\N{NO-BREAK SPACE}%" for name in _METRICS[:3] if (value := rates.get(name)) is not None]
    protocol = next((key.protocol for key in found if key.group == EDITS), "")
    edits = f"Edits ({plain(protocol)}, accuracy): {', '.join(told)}. " if told else "No accuracy of the edits was measured. "
    probes = [(key, one) for key, one in found.items() if key.group == PROBES]
    moved = [(key, one) for key, one in probes if _moved(one)]
    if not probes:
        abilities = "No general ability was probed."
    elif not any(one.sure_change for _, one in probes):
        abilities = "What editing did to general abilities is not known: there is no score of the unedited model."
    elif not moved:
        abilities = f"General abilities: none of {len(probes)} numbers changed beyond its 95 % interval."
    else:
        most = sorted(moved, key=lambda item: -abs(item[1].change or 0))[:3]
        names = ", ".join(f"{plain(key.measure)} {number(one.change, signed=True)}{_good(run, key, one)}" for key, one in most)
        abilities = f"General abilities: {len(moved)} of {len(probes)} numbers changed beyond the 95 % interval ({names})."
    return edits + abilities


def _good(run: Run, key: Key, one: Measured) -> str:
    """Whether a change of a probe is for the better, where the run recorded what better is."""
    known = (run.summary.get("probes") or {}).get(key.measure)
    if known is None or not key.scoring or known["shown"] != f"probe/{key.measure}/{key.scoring}" or not one.change:
        return ""
    return ", better" if (one.change > 0) == known["higher_is_better"] else ", worse"


def _moved(one: Measured) -> bool:
    """Whether the interval of the change leaves out 0."""
    if one.sure_change is None:
        return False
    low, high = one.sure_change
    return low is not None and high is not None and (low > 0 or high < 0)
