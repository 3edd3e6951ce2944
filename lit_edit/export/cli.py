"""``lit-edit export RUN --to DIR``: the command line of the export."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from lit_edit.export.export import Format, export_model
from lit_edit.export.lora import MAX_RANK, TOLERANCE
from lit_edit.export.view import Which
from lit_edit.options.arguments import SentenceParser
from lit_edit.options.command import command

_DESCRIPTION = """
Write the edited model of a run into a folder that others can load: a whole Hugging Face model, the exact change alone, or a
LoRA adapter. RUN is the folder that --run_dir of 'lit-edit fit' named. Nothing is uploaded.
"""


def _parser() -> argparse.ArgumentParser:
    parser = SentenceParser(prog="lit-edit export", description=_DESCRIPTION)
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="a run folder")
    add("--to", metavar="DIR", type=Path, required=True, help="a new or empty folder")
    add(
        "--format",
        choices=get_args(Format),
        default="full",
        help="a whole model (default), the exact change, or a LoRA adapter",
    )
    add("--checkpoint", metavar="PATH", type=Path, help="this checkpoint of the run; default: the newest, of a finished run")
    add("--batches", metavar="N", type=int, help="the state behind N batches, replayed from the journal where no checkpoint is")
    add(
        "--weights",
        choices=get_args(Which),
        default="evaluated",
        help="where a guard shows evaluation other weights than it writes (PRUNE): those evaluated (default), or those written",
    )
    add("--rank", metavar="R", type=int, help="rank of every layer of a LoRA adapter; default: what --tolerance asks for")
    add(
        "--max-rank",
        metavar="R",
        type=int,
        default=MAX_RANK,
        help=f"largest rank where --rank is not given (default {MAX_RANK})",
    )
    add(
        "--tolerance",
        metavar="E",
        type=float,
        default=TOLERANCE,
        help=f"largest relative error of a layer's change where --rank is not given (default {TOLERANCE:g})",
    )
    add("--base-model", metavar="ID", help="how others name the base model; default: as the run did")
    return parser


def main(argv: Sequence[str]) -> None:
    """Export, and say what was written and how it could be published.

    Args:
        argv: the command line behind ``lit-edit export``.

    Raises:
        EditError: for a mistake that the user can repair.
    """
    args = vars(_parser().parse_args(list(argv)))
    with command():
        done = export_model(args.pop("run"), args.pop("to"), **args)
    for note in done.notes:
        print(note)
    print(f"Written to {done.folder}; nothing was uploaded. To publish it: {done.upload}")
