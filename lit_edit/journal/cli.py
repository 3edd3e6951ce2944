"""``lit-edit journal VERB RUN``: the command line of the journal."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save

from lit_edit.errors import EditError
from lit_edit.journal.book import Book, open_book
from lit_edit.options.arguments import SentenceParser
from lit_edit.store import write_atomically

_DESCRIPTION = """
What a run wrote, batch by batch: show it, verify it, replay it onto the original model, take batches or single requests back,
and fold old batches to save space. RUN is the folder that --run_dir of 'lit-edit fit' named.
"""


def _parser() -> SentenceParser:
    parser = SentenceParser(prog="lit-edit journal", description=_DESCRIPTION)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=SentenceParser)

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        found = verbs.add_parser(name, help=text, description=text)
        found.add_argument("run", metavar="RUN", type=Path, help="a run folder")
        return found

    show = verb("show", "Print one line for every batch, or all of one batch.")
    show.add_argument("--batch", metavar="N", type=int, help="this batch only, with its requests")
    verb("verify", "Check chain, files, counts and checkpoints; exit code 1 if anything is wrong.")
    replay = verb("replay", "Apply the recorded changes to the original model: weights as the run had them, bit for bit.")
    replay.add_argument(
        "--to", metavar="PATH", type=Path, required=True, help="folder for a model, or FILE.safetensors for masters"
    )
    replay.add_argument("--upto", metavar="N", type=int, help="batches to apply; default: all")
    back = verb("rollback", "Take the last batches back, or single requests.")
    what = back.add_mutually_exclusive_group(required=True)
    what.add_argument("--to", metavar="N", type=int, help="batches that stay")
    what.add_argument("--drop", metavar="ID", action="append", help="take this request out by running again from its batch on")
    back.add_argument("--yes", action="store_true", help="do it, where batches have to be run again")
    compact = verb("compact", "Fold the first batches into one file of weights and remove their factors.")
    compact.add_argument("--before", metavar="N", type=int, help="batches to fold; default: all")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run one verb.

    Args:
        argv: the command line behind ``lit-edit journal``.

    Returns:
        The exit code: 0, or 1 where ``verify`` found something wrong.

    Raises:
        EditError: for a mistake that the user can repair.
    """
    args = _parser().parse_args(list(argv))
    book = open_book(args.run)
    if args.verb == "show":
        from lit_edit.journal.show import batch, table

        print(table(book) if args.batch is None else batch(book, args.batch))
    elif args.verb == "verify":
        return _verify(book)
    elif args.verb == "replay":
        _replay(book, args.to, len(book.records) if args.upto is None else args.upto)
    elif args.verb == "rollback":
        from lit_edit.journal.rollback import drop, roll_back

        print(roll_back(book, args.to, args.yes) if args.drop is None else drop(book, args.drop, args.yes))
    else:
        from lit_edit.journal.compact import compact

        print(compact(book, len(book.records) if args.before is None else args.before))
    return 0


def _verify(book: Book) -> int:
    from lit_edit.journal import files
    from lit_edit.journal.model import checkpoints

    wrong = book.problems()
    kept, damaged = checkpoints(book.run)
    wrong += damaged
    for one in kept:
        if one.batches > len(book.records):
            wrong.append(f"{one.path} was written after {one.batches} batches, and the journal holds {len(book.records)}")
        elif one.batches and files.hashes({int(k): v for k, v in one.masters.items()}) != book.records[one.batches - 1].get(
            "weights"
        ):
            wrong.append(f"{one.path} does not hold the weights that record {one.batches - 1} names")
    requests = [request["fate"] for record in book.records for request in record["requests"]]
    counts = ", ".join(f"{requests.count(fate)} {fate}" for fate in ("written", "rejected", "set aside"))
    stored = sum(record["factors"] is not None for record in book.records)
    print(f"{book.path}: {len(book.records)} records in one chain; {len(requests)} requests in: {counts}")
    print(
        f"{stored} batches with changes"
        + (f", the first {book.base[0]} folded" if book.base else "")
        + f"; {len(kept)} checkpoints"
    )
    for sentence in wrong:
        print(f"WRONG: {sentence}")
    print(f"{len(wrong)} found wrong" if wrong else "nothing wrong")
    return 1 if wrong else 0


def _replay(book: Book, target: Path, count: int) -> None:
    from lit_edit.journal.model import Unedited

    book.upto(count)
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise EditError(f"--to is {target}, which exists; name a new folder or a new FILE.safetensors")
    model = Unedited.of(book.run, book.layers)
    weights = book.weights(model.original, count)
    if target.suffix == ".safetensors":
        about = {"format": "lit_edit-masters", "batches": str(count)}
        write_atomically(target, save({f"masters.layer_{layer}": w.contiguous() for layer, w in weights.items()}, about))
    else:
        model.save(target, weights)
    print(f"The weights behind {count} of {len(book.records)} batches, bit for bit those of the run, are in {target}")
