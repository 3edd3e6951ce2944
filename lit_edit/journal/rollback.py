"""Taking batches or requests back, such that the run can go on as if it had never had them.

The journal knows the weights behind every batch. A run also has the state of its editor, guards and callbacks, its random
numbers and its counters; those stand in checkpoints only. A run is therefore taken back to a checkpoint, and where none was
written after the wanted batch, the batches from the nearest earlier one are run again; the hashes in the journal tell whether
they came out the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_edit.errors import EditError
from lit_edit.journal.book import Book, open_book
from lit_edit.journal.journal import Journal
from lit_edit.journal.show import seconds
from lit_edit.options.arguments import ids as read_ids
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO, header, prove
from lit_edit.runs.run_folder import RunFolder
from lit_edit.store import write_atomically


def roll_back(book: Book, count: int, sure: bool) -> str:
    """Take all batches but the first ``count`` back.

    Args:
        book: the journal.
        count: batches that stay.
        sure: run batches again, where no checkpoint was written after exactly ``count``.

    Returns:
        What was done, in a sentence.

    Raises:
        EditError: if batches have to be run again and ``sure`` is false, or came out otherwise.
    """
    book.upto(count)
    if count == len(book.records):
        raise EditError(f"{book.path} holds {count} batches, so there is nothing to take back")
    start = _nearest(book, count)
    if start != count:
        _agreed(book, start, count, sure, f"{_told(start)} is the nearest that can be gone back to at once", "--to")
    wanted = book.records[count - 1].get("weights") if count else None
    _go_back(book, start)
    if start != count:
        _run(book.run, count, final=False)
        found = open_book(book.run).records
        if len(found) != count or found[-1].get("weights") != wanted:
            raise EditError(
                f"{book.run} stands behind {len(found)} batches, but running them again did not give the weights that the "
                "journal had: another machine, library or setting; the new journal says what it is now"
            )
    taken = len(book.records) - count
    return (
        f"{book.run} stands behind {count} batches, {taken} were taken back; go on with --run_dir {book.run} --ckpt_path last"
    )


def drop(book: Book, ids: Sequence[str], sure: bool) -> str:
    """Take single requests out of a run, by running it again from their first batch on without them.

    The result is that of a run whose edit set never held them: batches before stay as they are, the requests behind move up.

    Args:
        book: the journal.
        ids: of the requests.
        sure: do it, instead of saying what it costs.

    Returns:
        What was done, in a sentence.

    Raises:
        EditError: if one was not written, or ``sure`` is false.
    """
    batches = []
    for one in ids:
        places = [
            number
            for number, record in enumerate(book.records)
            if any(request["id"] == one and request["fate"] == "written" for request in record["requests"])
        ]
        if not places:
            raise EditError(
                f"{book.path} holds no written request {one!r}, so there is nothing to take out; see 'journal show'"
            )
        batches.append(places[0])
    first, end = min(batches), len(book.records)
    start = _nearest(book, first)
    reason = f"request {ids[batches.index(first)]!r} was written in batch {first}; {_told(start)} is the nearest to begin from"
    _agreed(book, start, end, sure, reason, "--drop")
    config = RunFolder(book.run).config
    journal = config.get("journal")
    options: dict[str, Any] = journal if isinstance(journal, dict) else {}
    known = options.get("without")
    without = sorted({*([] if known is None else read_ids(known)), *ids})
    text = yaml.safe_dump({**config, "journal": {**options, "without": without}}, sort_keys=False, allow_unicode=True)
    write_atomically(book.run / "config.yaml", text.encode())
    _go_back(book, start)
    _run(book.run, end, final=None)
    return f"{book.run} is now a run without {', '.join(without)}: {end - start} batches were run again"


def _agreed(book: Book, start: int, end: int, sure: bool, reason: str, option: str) -> None:
    """Say what running batches again costs, unless that was agreed to."""
    if sure:
        return
    cost = sum(seconds(record) for record in book.records[start:end])
    raise EditError(
        f"{reason}, so {end - start} batches would be run again, about {cost:.0f} seconds by the journal, preparation and "
        f"measuring not counted; add --yes to do it, or name another {option}"
    )


def _told(count: int) -> str:
    return f"the checkpoint behind {count} batches" if count else "the beginning of the run (no earlier checkpoint is there)"


def _folder(run: Path) -> Path:
    """Where the checkpoints of a run lie.

    Raises:
        EditError: if outside of its folder, where nothing may be removed on the word of a file.
    """
    given = RunFolder(run).config.get("checkpoint")
    named = given.get("dirpath") if isinstance(given, dict) else None
    if named is not None and not Path(str(named)).resolve().is_relative_to(run.resolve()):
        raise EditError(f"{run / 'config.yaml'} keeps checkpoints in {named}, outside of the run; nothing there is removed")
    return run / "checkpoints" if named is None else Path(str(named))


def _claims(run: Path) -> list[tuple[int, Path]]:
    """``(batches, file)`` of every checkpoint, as their headers say."""
    found = []
    for path in sorted(_folder(run).glob("[!.]*.ckpt")):
        try:
            found.append((int(header(path).get("batches", -1)), path))
        except (EditError, TypeError, ValueError):
            found.append((-1, path))
    return found


def _nearest(book: Book, count: int) -> int:
    """The most batches, up to ``count``, behind which a checkpoint was written that is whole; 0 for none."""
    for batches, path in sorted(_claims(book.run), reverse=True):
        if 0 < batches <= count:
            try:
                prove(path)
            except EditError:
                continue
            return batches
    return 0


def _go_back(book: Book, count: int) -> None:
    """Make the checkpoint behind ``count`` batches the last of the run, and cut the journal back to it.

    In this order: a journal that is longer than the checkpoint is cut when the run goes on, a shorter one is refused.
    """
    claims = _claims(book.run)
    chosen = next((path for batches, path in claims if batches == count and _whole(path)), None)
    if count and chosen is None:
        raise EditError(f"no checkpoint behind {count} batches of {book.run} is whole")
    last = _folder(book.run) / "last.ckpt"
    if chosen is not None and chosen != last:
        write_atomically(last, chosen.read_bytes())
    for batches, path in claims:
        if path != last and batches > count:
            path.unlink(missing_ok=True)
    if chosen is None:
        last.unlink(missing_ok=True)
    masters = {}
    if chosen is not None:
        state = SafetensorsCheckpointIO().load_checkpoint(last)["state_dict"]
        masters = {int(name.split("_")[-1]): value for name, value in state.items() if name.startswith("masters.layer_")}
    Journal(book.path).truncate(count, lambda: masters)


def _whole(path: Path) -> bool:
    try:
        prove(path)
    except EditError:
        return False
    return True


def _run(run: Path, steps: int, final: bool | None) -> None:
    """Let the run go on, up to a number of batches, under its own configuration."""
    from lit_edit.cli import main

    path = run / "config.yaml"
    before = path.read_bytes()
    arguments = ["fit", "--config", str(path), "--run_dir", str(run), "--ckpt_path", "last", "--trainer.max_steps", str(steps)]
    try:
        main(arguments if final is None else [*arguments, "--final", str(final).lower()])
    finally:
        write_atomically(path, before)  # the run's own number of batches is not that of this repetition
