"""``lit-edit pretrain-facts --config configs/pretrain_facts.yaml --data.folder DATA``: train the reference model."""

from __future__ import annotations

from collections.abc import Sequence

from lit_edit.pretraining.cli import train
from lit_edit.reference.data import FactsData
from lit_edit.reference.pretrain import FactsPretrainer


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the configuration says and print the report.

    Args:
        argv: command line without the program's name; ``None`` takes the process's own.

    Raises:
        EditError: for a mistake that the user can repair.
    """
    cli = train(FactsPretrainer, FactsData, "lit-edit pretrain-facts", argv)
    if cli.model.report is not None:
        print(cli.model.report)
