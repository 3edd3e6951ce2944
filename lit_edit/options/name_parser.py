"""A parser that finds configurations by name, see :mod:`lit_edit.options.packaged`."""

from __future__ import annotations

import sys
from typing import Any

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser

from lit_edit.options.documents import load_yaml
from lit_edit.options.packaged import loading, with_files

_MODE = "lit_edit"
# Configuration files, and values on the command line that are written as YAML.
set_loader(_MODE, loading(lambda text: load_yaml(text, get_loader("yaml"))), exceptions=(yaml.YAMLError,))


class NameParser(LightningArgumentParser):
    """Takes ``--config quickstart`` and ``--model.editor editors/alphaedit``, and such names in YAML files, from any folder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"parser_mode": _MODE, **kwargs})

    def parse_args(self, args: Any = None, *rest: Any, **named: Any) -> Namespace:  # type: ignore[override]
        """See the base class.

        Raises:
            EditError: for a name that is neither a file nor a configuration.
        """
        return super().parse_args(with_files(sys.argv[1:] if args is None else args), *rest, **named)
