"""Command lines of verbs with a few options of their own; those of the trainer are :mod:`lit_edit.parser`'s."""

from __future__ import annotations

import argparse
from typing import NoReturn

from lit_edit.errors import EditError


class SentenceParser(argparse.ArgumentParser):
    """Says what is wrong in one sentence instead of printing the usage text."""

    def error(self, message: str) -> NoReturn:
        """See the class.

        Raises:
            EditError: always.
        """
        raise EditError(f"{message}; see '{self.prog} --help'")
