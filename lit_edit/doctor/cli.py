"""``lit-edit doctor MODEL``: the command line of the examination."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lit_edit.doctor.examiner import examine, refusal
from lit_edit.doctor.finding import Examination
from lit_edit.doctor.text import table
from lit_edit.errors import EditError
from lit_edit.models.identity import load_pretrained
from lit_edit.options.arguments import SentenceParser
from lit_edit.store import write_atomically

_DESCRIPTION = """
Load a model and find out whether it can be edited: where its parts are, what its tokenizer does, whether padding and partial
forward passes are exact, and whether one tiny edit takes and can be taken back. Exit code 0: it can be edited; 1: something is
off, with what to set; 2: it cannot be edited.
"""


_MOST = 100_000
"""Blocks that --layers may name."""


def _parser() -> SentenceParser:
    parser = SentenceParser(prog="lit-edit doctor", description=_DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help="folder or hub id of a Hugging Face model")
    parser.add_argument("--revision", metavar="R", help="revision of a hub id")
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="dtype to load it in (float32)"
    )
    parser.add_argument("--layers", metavar="L", nargs="+", help="blocks to edit, as 4 5 6 or 4-8; default: a proposal")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (cpu)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the findings to a JSON file, too")
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run Python files that come with the model; never done otherwise"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Examine one model and print what was found.

    Args:
        argv: the command line behind ``lit-edit doctor``.

    Returns:
        The exit code: 0 fine, 1 something is off, 2 cannot be edited.

    Raises:
        EditError: for options that make no sense, and a file that cannot be written.
    """
    args = _parser().parse_args(list(argv))
    layers = None if args.layers is None else numbers(args.layers)
    device = _device(args.device)
    examination = _examined(args, layers, device)
    _say(table(examination))
    if args.json is not None:
        write_atomically(args.json, f"{examination.as_json()}\n".encode())
    return examination.exit_code


def _examined(args: argparse.Namespace, layers: list[int] | None, device: torch.device) -> Examination:
    try:
        model, tokenizer = load_pretrained(args.model, args.revision, getattr(torch, args.dtype), args.trust_remote_code)
        model = _moved(model, args.model, device)
    except EditError as error:
        return refusal(args.model, error)
    return examine(model, tokenizer, layers, args.model)


def _moved(model: torch.nn.Module, name: str, device: torch.device) -> torch.nn.Module:
    try:
        return model.to(device)
    except torch.OutOfMemoryError:
        needed = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]) / 2**30
        raise EditError(
            f"the model {name} takes {needed:.1f} GiB, more than {device} has left; --dtype bfloat16 or --device cpu helps"
        ) from None


def numbers(words: Sequence[str]) -> list[int]:
    """Layers as they are typed: ``4 5 6``, ``4-6``, ``4,5,6`` or ``[4,5,6]``.

    Raises:
        EditError: for anything else.

    >>> numbers(["[3,", "5-7]"])
    [3, 5, 6, 7]
    """
    found: list[int] = []
    for word in re.split(r"[\s,]+", " ".join(words).strip("[] ")):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
        if match is None:
            raise EditError(f"--layers names {word!r}; layers are whole numbers, as in 4 5 6 or 4-8")
        first, last = int(match[1]), int(match[2] or match[1])
        if last > _MOST:  # a slip would fill the memory with numbers of blocks that no model has
            raise EditError(f"--layers names {word!r}; no model has more than {_MOST:,} blocks")
        found += range(first, last + 1)
    return found


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise EditError(f"--device is {name}; it is cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EditError(f"--device is {name}, and this machine has {torch.cuda.device_count()} CUDA devices; use cpu")
    return device


def _say(text: str) -> None:
    """Print, with a question mark for what the terminal has no character for."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))
