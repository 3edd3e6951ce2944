"""The examination of one model: every check, in the order of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lit_edit.anatomy import Anatomy
from lit_edit.doctor import edit, numbers, outputs, padding, parts, passes, shape, subjects, tokens
from lit_edit.doctor.case import Case, Check
from lit_edit.doctor.finding import Examination, Finding, Verdict
from lit_edit.errors import EditError
from lit_edit.passes.forward import frozen
from lit_edit.prompts import Encoder


def examine(model: nn.Module, tokenizer: Any, layers: Sequence[int] | None = None, name: str | None = None) -> Examination:
    """Find out whether a model can be edited, and what is off where not.

    Every check is made on the model as it is: parts, tokenizer, padding, partial forward passes, one tiny edit and its undo,
    numbers. Weights, modes, gradients' flags and random states are the same afterwards.

    Args:
        model: a Hugging Face causal language model.
        tokenizer: its tokenizer.
        layers: blocks that are to be edited; default: :meth:`lit_edit.anatomy.Anatomy.proposed_layers`.
        name: how the model is called in the table; default: its class.

    Returns:
        One finding per check. Checks that need parts or a tokenizer which cannot be used are left out.

    Raises:
        EditError: if ``layers`` names one that does not exist.
    """
    with frozen(model), torch.no_grad():
        case, refused = opened(Case(model, tokenizer))
        if layers is not None and case.found is not None:
            case = replace(case, wanted=case.anatomy.check_layers(layers))
        findings = _findings(case, refused)
    if case.found is not None:
        at = {"dtype": str(case.anatomy.dtype).removeprefix("torch."), "device": str(case.anatomy.device)}
    else:
        at = {}
    return Examination(name or type(model).__name__, tuple(findings), {**at, **versions()})


def refusal(name: str, error: EditError) -> Examination:
    """The examination of a model that could not even be loaded."""
    finding = Finding(Verdict.CANNOT, "not loaded", _sentence(error), group="model", name="loading")
    return Examination(name, (finding,), versions())


def versions() -> dict[str, str]:
    """What the examination was made with."""
    from transformers import __version__ as transformers_version

    from lit_edit import __version__

    return {"lit_edit": __version__, "torch": str(torch.__version__), "transformers": transformers_version}


def opened(case: Case) -> tuple[Case, EditError | None]:
    """The case with the model's parts and the tokenizer made ready, as far as that is possible; why not, if not."""
    found, reader, refused = None, None, None
    places = {parameter.device for parameter in case.model.parameters()}
    if len(places) == 1 and next(iter(places)).type != "meta":
        try:
            found = Anatomy.of(case.model)
        except EditError as error:
            refused = error
        except Exception as error:  # a class that does not even run two tokens
            refused = EditError(f"{type(case.model).__name__} does not run ({type(error).__name__}: {error})")
    try:
        reader = Encoder(case.tokenizer, None if found is None else found.positions)
    except EditError:
        reader = None  # told by the check of the tokenizer
    return replace(case, found=found, reader=reader), refused


def groups(case: Case) -> list[tuple[str, tuple[Check, ...]]]:
    """All checks by group, in the order of the table."""
    fixed = [(group.NAME, group.CHECKS) for group in (parts, shape, tokens, subjects, padding, outputs, passes)]
    return [*fixed, (edit.NAME, edit.checks(case)), (numbers.NAME, numbers.CHECKS)]


def _findings(case: Case, refused: EditError | None) -> list[Finding]:
    found = []
    if refused is not None:
        found.append(Finding(Verdict.CANNOT, "its parts were not found", _sentence(refused), group=parts.NAME, name="decoder"))
    for group, checks in groups(case):
        found += [check.made(group, case) for check in checks if check.fits(case)]
    return found


def _sentence(error: EditError) -> str:
    text = str(error)
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?")) else ".")
