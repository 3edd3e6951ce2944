"""What a run inside a study says: its output to a file, its numbers to the study."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from lit_edit.journal import finite
from lit_edit.runs.run_folder import RunFolder
from lit_edit.studies.base import Result


@contextlib.contextmanager
def told_to(path: Path) -> Iterator[None]:
    """What a run prints, warns of and logs goes to a file: several at once would talk across each other and the study's bar."""
    standard = {id(sys.stdout), id(sys.stderr), id(sys.__stdout__), id(sys.__stderr__)}
    with (
        path.open("a", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
        warnings.catch_warnings(),
    ):
        # A run inside another program has arguments of its own on purpose.
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        # Handlers keep the stream of the time when their library was imported.
        before = {handler: handler.stream for handler in _handlers() if id(handler.stream) in standard}
        for handler in before:
            handler.setStream(file)
        try:
            yield
        finally:
            for handler in _handlers():
                if handler.stream is file:  # also those of libraries that were imported meanwhile
                    handler.setStream(before.get(handler, sys.__stderr__))


def _handlers() -> list[Any]:
    """Handlers of all loggers that keep a stream; not those with a file of their own, or that look ``sys.stderr`` up anew."""
    loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    found = {handler: None for logger in loggers for handler in getattr(logger, "handlers", ())}
    return [one for one in found if "stream" in vars(one) and not isinstance(one, logging.FileHandler)]


def told(run: RunFolder) -> Result:
    """What figures and tables need of a run: last numbers, curves over edits, what was rejected, and seconds.

    Returns:
        ``before``, ``after`` (by logged name, without the protocol of editing scores), ``intervals``, ``changes``, ``probes``,
        ``validations``, ``undefined`` and ``batches`` (see :class:`lit_edit.runs.run_folder.RunFolder`), ``edits``,
        ``finished`` (whether the stream came to its end), ``rejected`` (batches), ``seconds_per_edit`` (targets, keys, solves
        and guards; no measuring). What is not finite is ``None``, as in JSON.
    """
    curves = run.validations
    summary = run.summary
    times = [sum(v or 0.0 for name, v in record["scalars"].items() if name.startswith("time/")) for record in run.journal]
    result = {
        "before": {name: curve[0][1] for name, curve in curves.items() if curve[0][0] == 0},
        "after": {name: curve[-1][1] for name, curve in curves.items()},
        "intervals": summary["intervals"],
        "changes": summary["changes"],
        "probes": run.probes,
        "validations": {name: [list(pair) for pair in curve] for name, curve in curves.items()},
        "undefined": run.undefined,
        "batches": {name: [list(pair) for pair in curve] for name, curve in run.batches.items()},
        "edits": summary["edits"],
        "finished": summary["finished"],
        "rejected": sum(record["rejected"] is not None for record in run.journal),
        "seconds_per_edit": sum(times) / max(summary["edits"], 1),
    }
    return cast("Result", finite(result))
