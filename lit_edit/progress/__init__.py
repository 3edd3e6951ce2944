"""How far a run has come: bars for a terminal, lines for a log file, or nothing."""

import os
import sys

from lit_edit.progress.bars import EditProgressBar
from lit_edit.progress.base import Progress
from lit_edit.progress.plain import PlainProgress, QuietProgress

__all__ = ["EditProgressBar", "PlainProgress", "Progress", "QuietProgress", "fitting"]


def fitting() -> Progress:
    """Bars where standard error is a terminal that can move its cursor, lines elsewhere."""
    bars = sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    return EditProgressBar() if bars else PlainProgress()
