"""``lit-edit verify DIR``: the command line of the replays."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_edit.errors import EditError
from lit_edit.options.arguments import SentenceParser
from lit_edit.verify import (
    alphaedit,
    deltaedit,
    early_stop,
    emmet,
    encore,
    evaluation,
    finetune,
    lyaplock,
    memit,
    memit_seq,
    moments,
    nse,
    prune,
    rect,
    revive,
    rome,
    spectra,
    sphere,
    ultraedit,
)
from lit_edit.verify.recording import Check, Recording, find
from lit_edit.verify.table import Row, render

CHECKS: tuple[Check, ...] = (
    moments.CHECK,
    early_stop.CHECK,
    memit.CHECK,
    memit_seq.CHECK,
    emmet.CHECK,
    encore.CHECK,
    rome.CHECK,
    alphaedit.CHECK,
    nse.CHECK,
    deltaedit.CHECK,
    lyaplock.CHECK,
    ultraedit.CHECK,
    finetune.CHECK,
    rect.CHECK,
    sphere.CHECK,
    prune.CHECK,
    revive.CHECK,
    spectra.CHECK,
    evaluation.CHECK,
)
"""All replays, in the order of the table. A new method adds its own here."""

_BESIDE = ("meta.json", "float64_recomputation.json")  # inputs of the replays and their own rounding, not results

_DESCRIPTION = """
Replay the recorded numbers of reference implementations and print how far this library is from them.

DIR is a recorded set (records.json and one folder per model) or one model's folder in it. Every quantity that was
recorded is recomputed: from recorded inputs where it is a closed form, and through the model from the original weights.
The largest relative (Frobenius) error over all instances is compared with five times the rounding difference that the
set's meta.json gives for the quantity, else with 1e-4 for what passes through a model in float32 and 1e-6 for a closed
form. What a folder does not hold is named, not failed.
"""
_EPILOG = "Exit code: 0 if every comparison is within its tolerance, 1 if one is not, 2 if DIR is no recording or is damaged."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: command line without the program's and the command's name; ``None`` takes the process's own.

    Returns:
        The exit code: 0, 1 (a miss) or 2 (no recording, or a damaged one).
    """
    parser = SentenceParser(
        prog="lit-edit verify",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dir", metavar="DIR", type=Path, help="a recorded set, or one model's folder in it")
    parser.add_argument("--misses", action="store_true", help="print only comparisons over their tolerance, and the coverage")
    args = parser.parse_args(argv)
    _without_progress_bars()
    try:
        recordings = find(args.dir)
        rows = [row for recording in recordings for row in replay(recording)]
    except EditError as error:
        print(f"lit-edit verify: {error}", file=sys.stderr)
        return 2
    print(render([row for row in rows if row.missed] if args.misses else rows))
    for recording in recordings:
        print(coverage(recording))
    missed = sum(row.missed for row in rows)
    compared = sum(row.tolerance is not None for row in rows)
    print(f"{compared - missed} of {compared} quantities agree" + (f", {missed} MISS" if missed else ""))
    return 1 if missed else 0


def _without_progress_bars() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def replay(recording: Recording) -> list[Row]:
    """All rows of one model's folder.

    Raises:
        EditError: if a file is damaged.
    """
    try:
        rows = [row for check in CHECKS for row in check.run(recording)]
    except (KeyError, IndexError, TypeError) as error:
        raise EditError(f"{recording.folder} is damaged or of another format ({type(error).__name__}: {error})") from error
    covered = {name for check in CHECKS for name in check.files}
    for path in sorted(recording.folder.iterdir()):
        if path.suffix in (".safetensors", ".json") and path.name not in (*covered, *_BESIDE):
            rows.append(Row(recording.name, path.stem, path.name, note="not yet covered"))
    return rows


def coverage(recording: Recording) -> str:
    """One line: how many tensors of the covered files were compared, and which kinds were not."""
    covered = {Path(name).stem for check in CHECKS for name in check.files if name.endswith(".safetensors")}
    files = [(stem, file) for stem in sorted(covered) if (file := recording.tensors(stem)) is not None]
    compared = sum(len(file.compared) for _, file in files)
    total = sum(len(file.tensors) for _, file in files)
    left = [f"{stem}: {count} x {kind}" for stem, file in files for kind, count in file.left_out().items()]
    text = f"{recording.name}: {compared} of {total} tensors of {len(files)} covered files compared"
    return text + (f"; left out {', '.join(left)}" if left else ", none left out")


if __name__ == "__main__":
    sys.exit(main())
