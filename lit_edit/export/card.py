"""The model card: ``README.md`` of an exported folder, with the front matter that hubs read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from lit_edit import __version__
from lit_edit.export.about import Content, configuration, group, options, scores
from lit_edit.export.markdown import escape, fenced, table
from lit_edit.report.account import short
from lit_edit.report.numbers import NOTHING, between, count, number, plain
from lit_edit.report.setup import TERMS

_LIMITS = """
The scores above are about these edits, under these protocols, and the abilities that were probed; what editing did to
everything else was not measured. Edited facts are as true as the edit set says. The licence of the base model holds for this
one, too.
"""


@dataclass(frozen=True)
class Kind:
    """What is special about a format.

    Args:
        library: what loads it, for the hub.
        relation: to the base model, in the hub's words.
        what: of it, in a sentence.
        code: how to load it.
        again: options of 'lit-edit export' that make it.
        details: rows of a table of its own; title, head, rows.
    """

    library: str
    relation: str
    what: str
    code: str
    again: Sequence[str]
    details: tuple[str, Sequence[str], Sequence[Sequence[str]]] | None = None


def card(content: Content, kind: Kind) -> str:
    """The card as text. Whatever comes from the run is escaped.

    Args:
        content: what is exported.
        kind: as what.
    """
    return "\n\n".join(_parts(content, kind)) + "\n"


def _parts(content: Content, kind: Kind) -> Iterator[str]:
    state = content.state
    yield _front_matter(content, kind)
    edits = count(state.record["edits"], "edited fact")
    yield f"# {escape(content.label)} with {edits}"
    yield escape(kind.what)
    if not state.finished:
        yield f"This is not the end of a stream, but its state behind {count(state.batches, 'batch', 'batches')}."
    yield fenced(kind.code, "python")
    yield "## What was edited"
    yield table(["", ""], list(_facts(content)))
    if kind.details is not None:
        title, head, rows = kind.details
        yield f"## {title}"
        yield table(head, rows)
    yield "## Scores"
    if content.which:
        yield f"{escape(content.which)}."
    yield from _scores(content)
    yield "## Hyper-parameters"
    yield table(["option", "value"], [[name, short(value, 300)] for name, value in options(state.run)])
    yield "## How to reproduce"
    again = ["lit-edit", "export", "NEW", "--to", "FOLDER", *kind.again, "--batches", str(state.batches)]
    yield fenced(f"lit-edit fit --config config.yaml --run_dir NEW\n{shlex.join(again)}", "bash")
    yield "`config.yaml` holds what follows; of a path that is good on one machine only, the last part is given."
    yield fenced(yaml.safe_dump(configuration(state.run), sort_keys=False, allow_unicode=True, width=120), "yaml")
    yield "## Limits"
    yield " ".join(_LIMITS.split())


def _front_matter(content: Content, kind: Kind) -> str:
    summary = content.state.run.summary
    methods = [re.sub(r"[^a-z0-9-]+", "-", name.lower()) for name in [summary["editor"], *summary["guards"]]]
    said: dict[str, Any] = {
        "base_model": re.sub(r"[^\w./-]+", "-", content.label, flags=re.ASCII).strip("-./") or "unknown",
        "base_model_relation": kind.relation,
        "library_name": kind.library,
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(["knowledge-editing", "model-editing", "lit_edit", *methods])),
    }
    return f"---\n{yaml.safe_dump(said, sort_keys=False).strip()}\n---"


def _facts(content: Content) -> Iterator[tuple[str, str]]:
    state = content.state
    run, summary, counts = state.run, state.run.summary, state.counts()
    yield "base model", content.label
    yield "revision", content.revision or NOTHING
    yield "edited weights before editing (SHA-256)", state.book.records[0]["original"]
    yield "layers", ", ".join(map(str, state.book.layers))
    yield "weights", ", ".join(state.model.anatomy.weight_name(layer) for layer in state.book.layers)
    yield "dtype", content.dtype
    yield "method", run.method
    yield "edits", f"{counts['written']:,} written, {counts['rejected']:,} rejected, {counts['set aside']:,} set aside"
    yield "batches", f"{state.batches:,} of {len(state.book.records):,}, of up to {count(summary['batch_size'], 'edit')}"
    yield "edit set", content.edit_set
    yield "journal, head of the chain (SHA-256)", state.head
    yield "weights taken from", state.source
    yield "run made by", f"lit_edit {summary['version']}"
    yield "exported by", f"lit_edit {__version__}"
    for name, version in (summary.get("environment") or {}).items():
        if name != "lit_edit" and version is not None:
            yield f"run on: {name}", str(version)


def _scores(content: Content) -> Iterator[str]:
    found = scores(content.state)
    if not found:
        yield f"The run measured nothing on the weights behind {count(content.state.batches, 'batch', 'batches')}."
        return
    rows = []
    for key, one in found.items():
        scoring = ", ".join(plain(part) for part in key.scoring.split("/") if part)
        change = between(one.sure_change, signed=True)
        sure = between(one.sure_after) or (f"change {change}" if change else "")
        protocol = plain(key.protocol) or "at the end"
        rows.append([plain(key.measure), group(key), protocol, scoring, number(one.before), number(one.after), sure])
    yield table(["measure", "of", "protocol", "scoring, decoding", "before", "after", "95 %"], rows)
    words = {word for row in rows for cell in row for word in cell.split(", ")} | {"95 %", "before"}
    used = {term: meaning for term, meaning in TERMS.items() if words & set(term.split(", "))}
    yield "\n".join(f"- **{escape(term)}**: {escape(meaning)}" for term, meaning in used.items())
