"""The report of a reference model as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def markdown(report: dict[str, Any]) -> str:
    """All numbers of a report (:func:`lit_edit.reference.measure.measure`) as tables."""
    recall, text = report["recall"], report["perplexity"]
    trained = f"{report['steps']} of {report['of']} steps, " if "steps" in report else ""
    parts = [
        "# What the reference model knows",
        f"{trained}{report['parameters']:,} parameters, {report['facts']:,} facts about {report['subjects']:,} subjects.",
        "Recall: every token of the object is the argmax, teacher-forced; 95 % intervals.",
        _table(
            ("", "value", "95 % interval", "n"),
            [
                _share("recall, words seen in training", recall["words_seen"]),
                _share("recall, words held out for this fact", recall["words_unseen"]),
                *([] if text is None else _text(text)),
                *((f"skill: {name}", f"{value:.3f}", "", "") for name, value in report["skills"].items()),
            ],
        ),
        "## Where editing acts",
        *_layers(report),
        "## Recall by relation",
        "Guess: the relation's most frequent object, whatever the subject.",
        _table(
            ("relation", "recall", "95 % interval", "n", "guess", "lowest template", "", "highest template", ""),
            [_relation(name, row) for name, row in recall["relations"].items()],
        ),
        "## Recall by template",
        _table(
            ("relation", "template", "recall", "n"),
            [
                (name, f"`{prompt}`", f"{share['value']:.3f}", str(share["n"]))
                for name, row in recall["relations"].items()
                for prompt, share in row["templates"].items()
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _share(name: str, share: dict[str, Any]) -> tuple[str, ...]:
    if share["value"] is None:
        return name, "none asked", "", "0"
    return name, f"{share['value']:.3f}", f"{share['low']:.3f} to {share['high']:.3f}", str(share["n"])


def _text(text: dict[str, Any]) -> list[tuple[str, ...]]:
    name, n = text["text"], str(text["tokens"])
    return [
        (f"perplexity per token, {name}", f"{text['perplexity_per_token/teacher_forced']:.1f}", "", n),
        (f"bits per byte, {name}", f"{text['bits_per_byte/teacher_forced']:.3f}", "", ""),
    ]


def _layers(report: dict[str, Any]) -> list[str]:
    found = report["layers"]
    if found is None:
        return ["The model knows too little to be asked."]
    rows = zip(found["block"], found["mlp"], found["without"], report["top5_sigma_share"], strict=True)
    window = "-".join(str(layer) for layer in (found["chosen"][0], found["chosen"][-1]))
    return [
        f"At the subject's last token, {found['n']} pairs of known facts in the same words. Moved: the output of the block, or "
        "of its MLP alone, put into another subject's question, takes the answer with it. Silent: recall while the MLP writes "
        "nothing there.",
        _table(
            ("layer", "block moved", "MLP moved", "MLP silent", "share of the top 5 % of singular values"),
            [(str(layer), *(f"{value:.3f}" for value in row)) for layer, row in enumerate(rows)],
        ),
        f"Layers to edit: {', '.join(map(str, found['chosen']))}. Their MLPs, moved together, take "
        f"{found['windows'][window]:.3f} of the answers with them; the most that any window of layers takes is "
        f"{max(found['windows'].values()):.3f}.",
    ]


def _relation(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    by_recall = sorted(row["templates"].items(), key=lambda item: item[1]["value"])
    (low, lowest), (high, highest) = by_recall[0], by_recall[-1]
    ends = (f"`{low}`", f"{lowest['value']:.3f}", f"`{high}`", f"{highest['value']:.3f}")
    share = _share(name, row["recall"])
    return (*share, f"{row['guess']:.3f}", *ends)
