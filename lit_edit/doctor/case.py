"""One model under examination, and what a check is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lit_edit.anatomy import Anatomy
from lit_edit.doctor.finding import Finding, Outcome, off
from lit_edit.errors import EditError
from lit_edit.models.refusals import first_line
from lit_edit.passes.forward import at_least_float32
from lit_edit.passes.trial import rounding
from lit_edit.prompts import Encoder

SENTENCES = (
    "Ada Lovelace was born in the city of London, where her mother lived.",
    "The capital of France is Paris.",
    "Because old towns have narrow streets, people walk, and everything that they need is around the corner.",
    "Marie Curie's mother tongue is Polish",
)
"""Text that a model is run on: lengths differ, since much of what goes wrong goes wrong in padding."""


@dataclass(frozen=True)
class Case:
    """A model, its tokenizer, and what has been found about them so far."""

    model: nn.Module
    tokenizer: Any
    found: Anatomy | None = None
    """Its parts, ``None`` where they were not found."""
    reader: Encoder | None = None
    """Its tokenizer, made ready, ``None`` where that cannot be used."""
    wanted: tuple[int, ...] | None = None
    """Layers that the user chose."""

    @property
    def anatomy(self) -> Anatomy:
        """Its parts, for checks that are made only where they were found."""
        assert self.found is not None
        return self.found

    @property
    def encoder(self) -> Encoder:
        """Its tokenizer, for checks that are made only where it can be used."""
        assert self.reader is not None
        return self.reader

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that would be edited."""
        return self.anatomy.proposed_layers() if self.wanted is None else self.wanted

    @property
    def text_config(self) -> Any:
        """The configuration of the language model proper."""
        config: Any = self.model.config
        return config.get_text_config() if hasattr(config, "get_text_config") else config

    @property
    def allowed(self) -> float:
        """Up to where a :func:`~lit_edit.passes.trial.difference` of logits is rounding."""
        return rounding(self.anatomy.dtype, self.anatomy.device)

    @cached_property
    def rows(self) -> list[list[int]]:
        """Token ids of :data:`SENTENCES`, of unequal lengths; made-up ids where there is no tokenizer to make them."""
        anatomy = self.anatomy
        most = min(anatomy.positions, 64)
        if self.reader is None:
            made = [[(7 + 31 * at) % anatomy.vocabulary for at in range(length)] for length in (17, 7, 22, 9)]
            return [row[:most] for row in made]
        encoded = [self.reader.encode(sentence)[0] for sentence in SENTENCES]
        return [[token % anatomy.vocabulary for token in row[:most]] or [0] for row in encoded]

    @property
    def pad(self) -> int:
        """A token id to pad with."""
        return self.reader.pad % self.anatomy.vocabulary if self.reader is not None else 0

    def inputs(self, row: Sequence[int]) -> dict[str, Tensor]:
        """What the model is called with to run one row alone."""
        ids = torch.tensor([list(row)], device=self.anatomy.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    @cached_property
    def alone(self) -> list[Tensor]:
        """Logits of each of :attr:`rows` run alone, made once for all checks that compare with them."""
        return [self.logits(row) for row in self.rows]

    def logits(self, row: Sequence[int]) -> Tensor:
        """Logits of one row run alone, by the model's own forward pass: ``[positions, vocabulary]``, float32 or wider."""
        model: Any = self.model
        return at_least_float32(model(**self.inputs(row), use_cache=False).logits[0])


def equal(apart: float) -> str:
    """How two results that agree are told.

    >>> equal(0.0), equal(4.9e-7)
    ('equal bit for bit', 'equal to 5e-07')
    """
    return f"equal to {apart:.0e}" if apart else "equal bit for bit"


@dataclass(frozen=True)
class Check:
    """One check of a group."""

    name: str
    """What it is called in the table."""
    run: Callable[[Case], Outcome]
    """Makes it."""
    needs_anatomy: bool = True
    """Whether it can be made only where the model's parts were found."""
    needs_encoder: bool = False
    """Whether it can be made only where the tokenizer can be used."""

    def fits(self, case: Case) -> bool:
        """Whether what it needs is there."""
        return (case.found is not None or not self.needs_anatomy) and (case.reader is not None or not self.needs_encoder)

    def made(self, group: str, case: Case) -> Finding:
        """Its finding; a check that fails on a model nobody has seen yet must not end the others."""
        try:
            outcome = self.run(case)
        except EditError as error:
            outcome = off("not possible with this model", str(error))
        except Exception as error:
            what = f"{type(error).__name__}: {first_line(error)}"
            outcome = off(f"the check could not be made ({what})", "What stands behind it is not known; do not rely on it.")
        return Finding(outcome.verdict, outcome.found, outcome.advice, outcome.values, group, self.name)
