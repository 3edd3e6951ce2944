"""The journal as text for a terminal."""

from __future__ import annotations

import json
from typing import Any

from lit_edit.journal.book import Book
from lit_edit.studies.text import columns


def table(book: Book) -> str:
    """One line for every batch."""
    return columns([_line(record) for record in book.records]) if book.records else f"{book.path} holds no batch"


def batch(book: Book, number: int) -> str:
    """Everything of one batch, with its requests.

    Raises:
        EditError: if the journal does not hold it.
    """
    book.upto(number + 1)
    record = book.records[number]
    rows = [
        {
            "id": _plain(request["id"]),
            "fate": request["fate"],
            "prompt": _plain(request["prompt"].replace("{}", request["subject"])),
            "target": _plain(request["target"]),
            "probability": request.get("probability"),
        }
        for request in record["requests"]
    ]
    scalars = [{"scalar": _plain(name), "value": value} for name, value in sorted(record["scalars"].items())]
    aside = [f"set aside: {_plain(str(s))}" for s in record["set_aside"]]
    why = [f"rejected: {_plain(record['rejected'])}"] if record["rejected"] is not None else []
    kept = record["factors"]
    size = f"{kept.get('bytes')} bytes in {_plain(str(kept.get('file')))}" if isinstance(kept, dict) else "nothing"
    head = (
        f"batch {number}: requests {record['start']} to {record['position']}, {record['edits']} edits by then; changes: {size}"
    )
    return "\n".join([head, *why, *aside, columns(rows), columns(scalars)])


def seconds(record: dict[str, Any]) -> float:
    """What a batch took: targets, keys, solves and guards; no measuring."""
    times = [value for name, value in record["scalars"].items() if name.startswith("time/")]
    return sum(value for value in times if isinstance(value, (int, float)))


def _line(record: dict[str, Any]) -> dict[str, Any]:
    norms = {
        f"norm {name.rsplit('_', 1)[-1]}": value
        for name, value in record["scalars"].items()
        if name.startswith("delta/norm/layer_") and isinstance(value, (int, float))
    }
    reason = record["rejected"]
    return {
        "batch": record["batch"],
        "edits": len(record["cases"]),
        "set aside": len(record["set_aside"]),
        "seconds": float(seconds(record)),
        "probability": record.get("target_probability"),
        **norms,
        "rejected": "" if reason is None else _plain(reason)[:60],
    }


def _plain(text: str) -> str:
    """Text from a file, without what a terminal would obey."""
    return text if text.isprintable() else json.dumps(text)[1:-1]
