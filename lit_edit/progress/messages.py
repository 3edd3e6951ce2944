"""The messages of a run, which progress must not get in the way of."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


def loggers() -> list[logging.Logger]:
    """Loggers with a handler of their own that writes what a run says: Lightning's and the root."""
    names = [name for name in logging.Logger.manager.loggerDict if name.split(".")[0] in ("lightning", "lit_edit")]
    return [logging.getLogger(), *(found for name in names if (found := logging.getLogger(name)).handlers)]


@contextmanager
def only_warnings() -> Iterator[None]:
    """Inside the block, Lightning and this project say nothing below a warning."""
    names = [name for name in logging.Logger.manager.loggerDict if name.split(".")[0] in ("lightning", "lit_edit")]
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(max(before[name], logging.WARNING))
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
