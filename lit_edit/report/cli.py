"""``lit-edit report RUN [RUN ...]``: the command line of the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_edit.errors import EditError
from lit_edit.options.arguments import SentenceParser
from lit_edit.report.page import page
from lit_edit.report.run import Run
from lit_edit.store import write_atomically

_DESCRIPTION = """
Write one web page about one run or several, beside each other: configuration, protocol, tables with 95 % intervals, curves
along the stream, drift of the weights, what was refused, times and environment. The page is a single file that loads nothing.
"""


def main(argv: Sequence[str]) -> None:
    """Read the runs, write the page, say where it is.

    Args:
        argv: the command line behind ``lit-edit report``.

    Raises:
        EditError: for a mistake that the user can repair.
    """
    parser = SentenceParser(prog="lit-edit report", description=_DESCRIPTION)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a folder that --run_dir of 'lit-edit fit' named")
    parser.add_argument("--to", metavar="FILE", type=Path, help="where the page goes; default: report.html in the first run")
    args = parser.parse_args(list(argv))
    target = args.to or args.runs[0] / "report.html"
    if target.suffix.lower() not in (".html", ".htm"):
        # A slip here must not replace a journal or a checkpoint.
        raise EditError(f"--to is {target}; a page is a file whose name ends in .html")
    if target.is_dir():
        raise EditError(f"--to is {target}, which is a folder; name a file in it, as in {target / 'report.html'}")
    write_atomically(target, page(Run.open_all(args.runs)).encode())
    print(f"The report is in {target}")
