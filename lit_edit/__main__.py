"""Console entry: ``lit-edit`` and ``python -m lit_edit``. Heavy imports happen only for the verb that needs them."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """Run one verb; mistakes that a user can repair end in one sentence and exit code 2.

    Args:
        argv: arguments without the program's name; default: those of the process.

    Returns:
        The exit code.
    """
    arguments = sys.argv[1:] if argv is None else argv
    from lit_edit.errors import EditError

    try:
        if arguments[:1] == ["verify"]:
            from lit_edit.verify.cli import main as verify

            return verify(arguments[1:])
        if arguments[:1] == ["pretrain"]:
            from lit_edit.world.cli import main as pretrain

            pretrain(arguments[1:])
            return 0
        if arguments[:1] == ["train-mend"]:
            from lit_edit.mend.cli import main as train_mend

            train_mend(arguments[1:])
            return 0
        if arguments[:1] == ["study"]:
            from lit_edit.studies.cli import main as study

            study(arguments[1:])
            return 0
        if arguments[:1] == ["report"]:
            from lit_edit.report.cli import main as report

            report(arguments[1:])
            return 0
        if arguments[:1] == ["journal"]:
            from lit_edit.journal.cli import main as journal

            return journal(arguments[1:])
        from lit_edit.cli import main as edit

        edit(argv)  # None lets the parser read the process's own arguments
    except EditError as error:
        print(f"lit-edit: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
