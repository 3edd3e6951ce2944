"""``lit-edit study NAME --config ...``: the command line of the studies."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

from jsonargparse import Namespace

from lit_edit.errors import EditError
from lit_edit.options.command import command, ending
from lit_edit.options.parser import Parser
from lit_edit.studies import STUDIES
from lit_edit.studies.base import Study
from lit_edit.studies.folder import StudyFolder
from lit_edit.studies.keys import refuse_repeated
from lit_edit.studies.runner import run
from lit_edit.studies.text import columns


def study_class(name: str) -> type[Study]:
    """The study of a name: one of the project's own, or an import path like ``my_package.MyStudy``.

    Raises:
        EditError: if there is none.
    """
    path = STUDIES.get(name, name)
    module, _, attribute = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute) if module else None
    except (ImportError, AttributeError):
        found = None
    if not (isinstance(found, type) and issubclass(found, Study)):
        raise EditError(
            f"there is no study {name!r}; there are {', '.join(STUDIES)}, or give an import path like my_package.MyStudy"
        )
    return found


def parser_of(name: str, kind: type[Study]) -> Parser:
    """The options of one study."""
    parser = Parser(prog=f"lit-edit study {name}", description=kind.question)
    parser.add_argument("-c", "--config", action="config", help="YAML file or name (see lit-edit configs); later ones win")
    parser.add_argument("--run_dir", type=str, default=f"runs/studies/{name}", help="folder for points, tables and figures")
    parser.add_argument("--workers", type=list[str], default=["auto"], help="devices, e.g. [cuda:0, cuda:1] or [cpu, cpu]")
    parser.add_class_arguments(kind, None, instantiate=True, sub_configs=True)
    return parser


def study_of(kind: type[Study], parser: Parser, config: Namespace) -> Study:
    """The study that these options describe.

    Where an option is open to ``Any`` values, as those that are handed on to runs are, classes in it stay what was typed: the
    parser makes objects of all that are named by their import path.
    """
    made = parser.instantiate_classes(config)
    hints = get_type_hints(kind.__init__)
    own = [key for key in vars(made) if key not in ("config", "run_dir", "workers")]
    return kind(**{key: _plain(config[key]) if _admits_any(hints.get(key)) else made[key] for key in own})


def _admits_any(hint: Any) -> bool:
    return hint is Any or any(_admits_any(part) for part in get_args(hint))


def _plain(value: Any) -> Any:  # not Namespace.as_dict, which in the oldest version allowed looks one level into dicts
    if isinstance(value, Namespace | dict):
        return {key: _plain(part) for key, part in (vars(value) if isinstance(value, Namespace) else value).items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


def main(argv: Sequence[str]) -> None:
    """Measure what is missing, write tables and figures, print the table.

    Args:
        argv: the command line behind ``lit-edit study``.

    Raises:
        EditError: for a mistake that the user can repair.
    """
    names = ", ".join(STUDIES)
    if not argv or argv[0] in ("-h", "--help"):
        print(
            f"usage: lit-edit study NAME --config FILE [options]\n\nNAME is one of {names},\nor an import path like "
            "my_package.MyStudy; 'lit-edit study NAME --help' shows its options"
        )
        return
    with ending(), command():
        name = argv[0]
        kind = study_class(name)
        parser = parser_of(name, kind)
        config: Namespace = parser.parse_args(list(argv[1:]))
        for path in config.config or ():
            refuse_repeated(path)
        study = study_of(kind, parser, config)
        folder = StudyFolder(config.run_dir, study, name)
        files = []
        try:
            run(folder, config.workers)
        finally:
            if folder.done:
                files = folder.write()
        print(f"\n{kind.question}\n\n{columns(study.table(folder.results()))}\n")
        print("Written: " + ", ".join(str(file) for file in files))
