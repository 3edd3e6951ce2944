"""One check on one model, healthy or broken on purpose."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from lit_edit.doctor import edit, numbers, outputs, padding, parts, passes, shape, subjects, tokens
from lit_edit.doctor.case import Case
from lit_edit.doctor.examiner import _opened
from lit_edit.forward import frozen
from tests.tiny import tiny_model, tiny_tokenizer

GROUPS = (parts, shape, tokens, subjects, padding, outputs, passes, edit, numbers)


def all_checks():
    """Group and name of every check that there is."""
    fixed = [(group.NAME, check.name) for group in GROUPS if group is not edit for check in group.CHECKS]
    return [*fixed, *((edit.NAME, check.name) for check in edit.checks(Case(None, None)))]


def opened(model=None, tokenizer=None, layers=None, **anatomy):
    """A case; ``anatomy`` replaces what was found out about the model."""
    case, refused = _opened(Case(model or tiny_model("llama"), tokenizer or tiny_tokenizer()))
    assert refused is None, refused
    if anatomy:
        case = replace(case, found=replace(case.found, **anatomy))
    return case if layers is None else replace(case, wanted=tuple(layers))


def finding(group, name, case):
    """What one check finds."""
    (module,) = (module for module in GROUPS if group == module.NAME)
    checks = module.checks(case) if module is edit else module.CHECKS
    (check,) = (check for check in checks if check.name == name)
    assert check.fits(case)
    with frozen(case.model), torch.no_grad():
        return check.made(group, case)


def with_forward(model, change):
    """A model whose output is changed: ``change(output, input_ids, kwargs)``, after arguments it may have changed."""
    before = model.forward

    @functools.wraps(before)  # its signature is asked for
    def forward(*args, **kwargs):
        return change(lambda **more: before(*args, **{**kwargs, **more}), kwargs)

    model.forward = forward
    return model


def with_logits(model, change):
    """A model whose logits are changed: ``change(logits, kwargs)``."""

    def changed(run, kwargs):
        output = run()
        output.logits = change(output.logits, kwargs)
        return output

    return with_forward(model, changed)


def with_output(module, change):
    """A module (no hook, which partial passes would see) whose output is changed."""
    before = module.forward
    module.forward = lambda *args, **kwargs: change(before(*args, **kwargs))
    return module
