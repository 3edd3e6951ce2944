"""How long edits last, and what the edited model says in its own words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from lit_edit.metrics.answers import containment
from lit_edit.report.account import short
from lit_edit.report.charts import Series, legend, line_chart
from lit_edit.report.heat import heat_map
from lit_edit.report.markup import Child, node, note, section, table
from lit_edit.report.numbers import number, plain
from lit_edit.report.run import Run

_MOST = 15


def retention(runs: Sequence[Run]) -> Element | None:
    """Cohorts of earlier edits, re-scored along the stream; ``None`` if no run followed any."""
    followed = [(at, run, run.retention) for at, run in enumerate(runs) if run.retention and run.retention["cohorts"]]
    if not followed:
        return None
    charts, lines, rows = [], [], []
    for at, run, found in followed:
        what = f"{plain(found['metric'])}, {plain(found['scoring'])}"
        names = [_batches(cohort["first_batch"], cohort["last_batch"]) for cohort in found["cohorts"]]
        written = [f"{check['edits']:,}" for check in found["checkpoints"]][: len(found["matrix"])]
        low = -1.0 if found["scoring"] == "difference" else 0.0
        title = f"{run.label}: {what}" if len(runs) > 1 else f"By cohort: {what}"
        charts.append(heat_map(title, found["matrix"], written, names, "looked at after edits", "written in batch", low))
        curve = [(age, value) for age, value in found["curve"] if age is not None and value is not None]
        lines.append(Series(run.label, curve, at))
        rows.append([run.label, what, *(number(found.get(name)) for name in ("first", "latest", "mean", "auc"))])
    unit = "mean score of edits of that age"
    charts.append(line_chart("Retention by age", lines, "batches since the edit", unit, y_range=(0.0, 1.0)))
    head = ["run", "score", "oldest cohort now", "newest cohort now", "all cohorts now", "area under the curve by age"]
    numbers = table("Retention at the last look", head, rows, range(2, len(head)))
    key = legend([(run.label, at) for at, run, _ in followed]) if len(followed) > 1 else None
    drawn = node("div", *charts, class_="grid-of-charts")
    said = note("Each cell: the mean score of the edits of one cohort (a column) on the weights of one moment (a row).")
    return section("Retention", "retention", numbers, key, drawn, said)


def samples(runs: Sequence[Run]) -> Element | None:
    """What the model said freely, first and last; ``None`` if no run asked it."""
    made: list[Child] = []
    for run in runs:
        chosen = _chosen(run.said)
        if chosen:
            again = any(len(looks) > 1 for looks in chosen)
            head = ["prompt", "kind", "new answer", "said", "after edits", "holds it"]
            if again:
                head[3:5] = ["said first", "after edits", "said last", "after edits"]
            rows = [_row(looks, again) for looks in chosen]
            made.append(table(f"Answers of {run.label}", head, rows, (4, 6) if again else (4,)))
    if not made:
        return None
    said = note(
        f"Greedy answers, at most {_MOST} prompts a run, those first that were asked at several moments. After a negated "
        "prompt the new answer is wrong. generations.jsonl in the run folder has all of them."
    )
    return section("In its own words", "samples", *made, said)


def _chosen(said: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Looks at the same prompt together: those asked most often first; the first prompts of all edits, then the second ones."""
    looks: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for line in said:
        looks.setdefault((str(line["case_id"]), line["kind"], line["prompt"]), []).append(line)
    places: Counter[str] = Counter()
    ordered: list[tuple[int, int, int, int]] = []
    for (case, *_), found in looks.items():
        ordered.append((-len(found), places[case], -found[-1]["edits"], len(ordered)))
        places[case] += 1
    found_at = list(looks.values())
    return [found_at[at] for *_, at in sorted(ordered)[:_MOST]]


def _row(looks: Sequence[dict[str, Any]], again: bool) -> list[Child]:
    first, last = looks[0], looks[-1]
    earlier: list[Child] = [_said(first), f"{first['edits']:,}"] if len(looks) > 1 else ["", ""] if again else []
    wanted = last["wanted"]
    holds = "" if wanted is None else "yes" if containment(last["said"], [wanted]) else "no"
    prompt = node("span", short(last["prompt"]), class_="said")
    return [prompt, plain(last["kind"]), short(wanted or "", 80), *earlier, _said(last), f"{last['edits']:,}", holds]


def _said(line: dict[str, Any]) -> Element:
    return node("span", short(line["said"].strip()), class_="said")


def _batches(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
