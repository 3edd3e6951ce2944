"""Two files of an edit set: a stream without contradictions, and facts that it leaves alone.

    python -m lit_edit.reference.stream counterfact.jsonl --unedited 859 --to streams/

writes ``streams/edits.jsonl`` and ``streams/unedited.jsonl``; the first is what a run edits (``--data.path``), the second is
what :class:`lit_edit.probes.UneditedFacts` asks for.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from lit_edit.data.counterfact import CounterFact
from lit_edit.data.source import rows
from lit_edit.errors import EditError, MalformedRecord, exit_code
from lit_edit.store import write_atomically

Record = dict[str, Any]


@dataclass(frozen=True)
class Parted:
    """An edit set in two parts, both in the order of the file.

    Args:
        edits: records to edit.
        unedited: records that are left alone.
        contradicting: how many were left out because another record edits the same relation of the same subject: of two such
            edits one must fail, whatever the method.
        unusable: how many could not be read as CounterFact.
    """

    edits: tuple[Record, ...]
    unedited: tuple[Record, ...]
    contradicting: int
    unusable: int


def part(path: str, unedited: int, seed: int = 0) -> Parted:
    """Leave out what contradicts, and draw what is left alone.

    Args:
        path: an edit set in CounterFact's schema, see :func:`lit_edit.data.source.rows`.
        unedited: number of records to leave alone.
        seed: of their draw.

    Raises:
        EditError: if it cannot be read, or nothing would be left to edit.
    """
    read = list(rows(path))
    found: list[tuple[tuple[str, str], Record]] = []
    for number, row in read:
        if isinstance(row, dict) and CounterFact.recognises(row):
            try:
                request = CounterFact().request(row, path, number)
            except MalformedRecord:
                continue
            found.append(((request.relation or request.prompt, request.subject), row))
    often = Counter(key for key, _ in found)
    usable = [row for key, row in found if often[key] == 1]
    if not 0 <= unedited < len(usable):
        raise EditError(
            f"{path} has {len(usable)} records that contradict no other one; at least one of them has to be "
            f"edited, so {unedited} cannot be left alone"
        )
    alone = set(Random(f"unedited-{seed}").sample(range(len(usable)), unedited))
    edits = tuple(row for at, row in enumerate(usable) if at not in alone)
    return Parted(edits, tuple(usable[at] for at in sorted(alone)), len(found) - len(usable), len(read) - len(found))


def _lines(records: Sequence[Record]) -> Iterator[str]:
    return (json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def main(argv: Sequence[str] | None = None) -> None:
    """Write both files and say how many records went where.

    Raises:
        EditError: see :func:`part`.
    """
    parser = argparse.ArgumentParser(prog="python -m lit_edit.reference.stream", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("path", help="an edit set in CounterFact's schema")
    parser.add_argument("--unedited", type=int, default=859, help="records to leave alone")
    parser.add_argument("--seed", type=int, default=0, help="of their draw")
    parser.add_argument("--to", type=Path, required=True, help="folder for edits.jsonl and unedited.jsonl")
    given = parser.parse_args(argv)
    found = part(given.path, given.unedited, given.seed)
    given.to.mkdir(parents=True, exist_ok=True)
    for name, records in (("edits", found.edits), ("unedited", found.unedited)):
        write_atomically(given.to / f"{name}.jsonl", "".join(_lines(records)).encode())
    print(
        f"{len(found.edits):,} records to edit, {len(found.unedited):,} to leave alone, in {given.to}; left out: "
        f"{found.contradicting:,} that contradict another one, {found.unusable:,} that cannot be used"
    )


if __name__ == "__main__":
    sys.exit(exit_code("python -m lit_edit.reference.stream", main))
