"""Console entry: ``lit-edit`` and ``python -m lit_edit``. Heavy imports happen only for the verb that needs them."""

from __future__ import annotations

import sys
from importlib import import_module

VERBS = {
    "configs": "lit_edit.options.packaged",
    "doctor": "lit_edit.doctor.cli",
    "export": "lit_edit.export.cli",
    "journal": "lit_edit.journal.cli",
    "plan": "lit_edit.plan.cli",
    "pretrain": "lit_edit.world.cli",
    "pretrain-facts": "lit_edit.reference.cli",
    "report": "lit_edit.report.cli",
    "study": "lit_edit.studies.cli",
    "train-mend": "lit_edit.mend.cli",
    "verify": "lit_edit.verify.cli",
}
"""Verbs with options of their own and where their ``main`` is; everything else is the trainer's."""


def main(argv: list[str] | None = None) -> int:
    """Run one verb; mistakes that a user can repair end in one sentence and exit code 2.

    Args:
        argv: arguments without the program's name; default: those of the process.

    Returns:
        The exit code.
    """
    from lit_edit.errors import exit_code

    return exit_code("lit-edit", lambda: _run(argv))


def _run(argv: list[str] | None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    from lit_edit.errors import EditError
    from lit_edit.options.overview import TRAINER, no_verb, overview

    if arguments == ["--version"]:
        from lit_edit import __version__

        print(f"lit-edit {__version__}")
        return 0

    if arguments in (["--help"], ["-h"]):
        print(overview())
        return 0

    if not arguments:
        raise EditError("it takes a verb, e.g. lit-edit fit --config quickstart; see lit-edit --help")
    verb = arguments[0]
    if verb in VERBS:
        return import_module(VERBS[verb]).main(arguments[1:]) or 0
    if verb not in TRAINER and not verb.startswith("-"):
        raise EditError(no_verb(verb, [*VERBS, *TRAINER]))
    from lit_edit.cli import main as edit

    edit(argv)  # None lets the parser read the process's own arguments
    return 0


if __name__ == "__main__":
    sys.exit(main())
