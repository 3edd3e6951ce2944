"""Command lines of verbs with a few options of their own, and values of options that a type does not describe.

The parser of the trainer's options is :mod:`lit_edit.options.parser`.
"""

from __future__ import annotations

import argparse
from typing import NoReturn

import yaml

from lit_edit.errors import EditError, brief


class SentenceParser(argparse.ArgumentParser):
    """Says what is wrong in one sentence instead of printing the usage text."""

    def error(self, message: str) -> NoReturn:
        """See the class.

        Raises:
            EditError: always.
        """
        raise EditError(f"{message}; see '{self.prog} --help'")


def ids(value: object) -> list[str]:
    """Ids of requests, which are text that often looks like a number: one or a list of them, quoted or not.

    Args:
        value: on a command line text, whose words are taken as they are written; in a YAML file what YAML makes of them, where
            whole numbers are their digits.

    Raises:
        EditError: if it is neither, or if YAML made something else of an id.

    Example:
        >>> ids("5"), ids("[5, 007, a]"), ids([5, "b"])
        (['5'], ['5', '007', 'a'], ['5', 'b'])
    """
    if isinstance(value, str):
        try:
            read = yaml.load(value, yaml.BaseLoader)  # for which all scalars are text
        except yaml.YAMLError:
            read = value
        value = read if isinstance(read, list) else [] if read is None else [read if isinstance(read, str) else value]
    found = value if isinstance(value, list | tuple) else [value]
    for one in found:
        if isinstance(one, bool) or not isinstance(one, int | str):
            raise EditError(f"{brief(one)} is no id of a request, which is text or a whole number; quotes make text of it")
    return [str(one) for one in found]
