"""The page itself: head, verdicts, contents and sections."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from xml.etree.ElementTree import Element

from lit_edit.report.account import counts, refused, timing
from lit_edit.report.charts import legend
from lit_edit.report.curves import collapse, solving
from lit_edit.report.markup import node, note, write
from lit_edit.report.numbers import count
from lit_edit.report.results import results, verdict
from lit_edit.report.run import Run
from lit_edit.report.samples import retention, samples
from lit_edit.report.setup import commands, configuration, environment, glance, protocol
from lit_edit.report.weights import drift

_ABSENT = {
    "stream": "curves along the stream (there was no second validation)",
    "weights": "drift of the weights (--drift.every_n_batches 1)",
    "retention": "retention of earlier edits (--trainer.callbacks+=RetentionScores)",
    "samples": "answers in the model's own words (--trainer.callbacks+=Generations)",
}


def page(runs: Sequence[Run]) -> str:
    """Everything about some runs as one HTML document that loads nothing; the same runs give the same text.

    Args:
        runs: at least one.
    """
    sections = [
        glance(runs),
        results(runs),
        collapse(runs),
        drift(runs),
        solving(runs),
        retention(runs),
        samples(runs),
        refused(runs),
        timing(runs),
        protocol(runs),
        configuration(runs),
        environment(runs),
        commands(runs),
    ]
    made = [one for one in sections if one is not None]
    there = {one.get("id") for one in made}
    absent = "; ".join(told for anchor, told in _ABSENT.items() if anchor not in there)
    missing = note(f"Not in {'this run' if len(runs) == 1 else 'these runs'}: {absent}.") if absent else None
    name = runs[0].label if len(runs) == 1 else f"{len(runs)} runs"
    body = node("main", _head(runs, name), _contents(made), *made, missing)
    head = node(
        "head",
        node("meta", charset="utf-8"),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("meta", name="color-scheme", content="light dark"),
        node("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        node("title", f"{name} - lit_edit report"),
        _style(),
    )
    return f"<!DOCTYPE html>\n{write(node('html', head, node('body', body), lang='en'))}\n"


def _style() -> Element:
    """The style sheet; it is the program's own and the only text that is written as it is."""
    made = node("style")
    made.text = files("lit_edit.report").joinpath("style.css").read_text(encoding="utf-8")
    return made


def _head(runs: Sequence[Run], name: str) -> Element:
    cards = []
    for at, run in enumerate(runs):
        summary, found = run.summary, counts(run)
        state = "finished" if summary["finished"] else "unfinished"
        rejected = f", {found['batches rejected']:,} of them rejected" if found["batches rejected"] else ""
        what = f"{run.method}: {count(found['requests written'], 'edit')} in "
        what += f"{count(found['batches'], 'batch', 'batches')}{rejected}."
        title = legend([(run.label, at)]) if len(runs) > 1 else None
        cards.append(
            node("li", title, node("p", node("span", state, class_=f"state {state}"), " ", what), node("p", verdict(run)))
        )
    return node("header", node("h1", name), node("ul", *cards, class_="verdicts"))


def _contents(sections: Sequence[Element]) -> Element:
    links = [node("li", node("a", one[0].text or "", href=f"#{one.get('id')}")) for one in sections]
    return node("nav", node("ul", *links), aria_label="Contents")
