"""What became of every row: written, rejected with its batch, set aside; and how long it took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any
from xml.etree.ElementTree import Element

from lit_edit.report.charts import Series, legend, line_chart
from lit_edit.report.curves import X, span
from lit_edit.report.markup import Child, node, note, section, table
from lit_edit.report.numbers import NOTHING, count, number
from lit_edit.report.run import Run

_MOST = 12
_LONG = 300
_TWICE = "records written more than once"


def short(text: str, most: int = _LONG) -> str:
    """The beginning of a long text.

    Example:
        >>> short("abcdef", 4), short("abcd", 4)
        ('abc\u2026', 'abcd')
    """
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def counts(run: Run) -> dict[str, int]:
    """Requests and batches of a run by what became of them; the requests add up to those that were read."""
    rejected = [record for record in run.journal if record["rejected"] is not None]
    return {
        "batches": len(run.journal),
        "batches rejected": len(rejected),
        "requests read": sum(_size(record) for record in run.journal),
        "requests written": sum(len(record["cases"]) for record in run.journal),
        "requests rejected with their batch": sum(_size(record) - len(record["set_aside"]) for record in rejected),
        "requests set aside in their batch": sum(len(record["set_aside"]) for record in run.journal),
        _TWICE: sum(1 for times in _cases(run).values() if times > 1),
        "rows of the edit set that could not be read": run.summary["rows_set_aside"],
    }


def refused(runs: Sequence[Run]) -> Element:
    """The section of counts and reasons."""
    found = [counts(run) for run in runs]
    names = [name for name in found[0] if name != _TWICE or any(one[name] for one in found)]
    rows = [[name, *(f"{one[name]:,}" for one in found)] for name in names]
    told = table("What became of batches, requests and rows", ["", *(run.label for run in runs)], rows, range(1, len(runs) + 1))
    reasons: list[Child] = []
    for run in runs:
        rejected = [(f"batch {r['batch'] + 1}", r["rejected"]) for r in run.journal if r["rejected"] is not None]
        aside = [(s["source"], f"{s['field']}: {s['reason']}") for r in run.journal for s in r["set_aside"]]
        unread = [(_place(row), f"{row['field']}: {row['reason']}") for row in run.set_aside]
        for what, where in (("batches rejected", rejected), ("requests set aside", aside), ("rows set aside", unread)):
            if where:
                reasons.append(_reasons(f"{run.label}: {what}", where))
    return section("Refused and set aside", "refused", told, *reasons)


def timing(runs: Sequence[Run]) -> Element | None:
    """The section of times, as the journal has them; ``None`` if it has none."""
    rows, targets, walks = [], [], []
    for at, run in enumerate(runs):
        found = [(_seconds(r, "targets"), _seconds(r, "walk"), _size(r), r["edits"]) for r in run.journal]
        timed = [(aim, walk, size, edits) for aim, walk, size, edits in found if aim is not None and walk is not None and size]
        if not timed:
            rows.append([run.label, *[NOTHING] * 5])
            continue
        aim, walk, size = (sum(one[part] for one in timed) for part in range(3))
        middle = median(one[0] + one[1] for one in timed)
        rows.append([run.label, _clock(aim + walk), _clock(aim), _clock(walk), number((aim + walk) / size), number(middle)])
        targets.append(Series(run.label, [(edits, aim / size) for aim, _, size, edits in timed], at))
        walks.append(Series(run.label, [(edits, walk / size) for _, walk, size, edits in timed], at))
    if not targets:
        return None
    head = ["run", "editing in all", "targets", "layer walk", "seconds per request", "median batch (s)"]
    what = "Time spent editing, without measuring"
    charts = [
        line_chart("Optimising the targets", targets, X, "seconds per request", span(runs)),
        line_chart("Walking the layers", walks, X, "seconds per request", span(runs)),
    ]
    key = legend([(run.label, at) for at, run in enumerate(runs)]) if len(runs) > 1 else None
    drawn = node("div", *charts, class_="grid-of-charts")
    return section("Time", "time", table(what, head, rows, range(1, len(head))), key, drawn)


def _reasons(caption: str, where: Iterable[tuple[str, str]]) -> Element:
    """Reasons, the most frequent first, with the first place of each."""
    first: dict[str, str] = {}
    times: Counter[str] = Counter()
    for place, reason in where:
        first.setdefault(reason, place)
        times[reason] += 1
    shown = times.most_common(_MOST)
    rows = [[short(reason), f"{amount:,}", short(first[reason], 120)] for reason, amount in shown]
    left = len(times) - len(shown)
    more = note(f"The run folder has {count(left, 'more reason')}.") if left else None
    return node("div", table(caption, ["reason", "times", "first at"], rows, [1]), more, class_="reasons")


def _size(record: dict[str, Any]) -> int:
    return int(record["position"] - record["start"])


def _cases(run: Run) -> Counter[str]:
    return Counter(str(case) for record in run.journal for case in record["cases"])


def _place(row: dict[str, Any]) -> str:
    return f"{row['file'] or 'edit set'}, row {row['row']}"


def _seconds(record: dict[str, Any], part: str) -> float | None:
    value = record["scalars"].get(f"time/{part}_seconds")
    return None if value is None else float(value)


def _clock(seconds: float) -> str:
    """Seconds as people say them.

    >>> _clock(7.25), _clock(3725)
    ('7.2 s', '1 h 2 min')
    """
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
