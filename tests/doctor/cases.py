"""One check on one model, healthy or broken on purpose."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from lit_edit.doctor import examiner
from lit_edit.doctor.case import Case
from lit_edit.passes.forward import frozen
from tests.tiny import tiny_model, tiny_tokenizer


def all_checks():
    """Group and name of every check that there is."""
    return [(group, check.name) for group, checks in examiner.groups(Case(None, None)) for check in checks]


def opened(model=None, tokenizer=None, layers=None, **anatomy):
    """A case; ``anatomy`` replaces what was found out about the model."""
    case, refused = examiner.opened(Case(model or tiny_model("llama"), tokenizer or tiny_tokenizer()))
    assert refused is None, refused
    if anatomy:
        case = replace(case, found=replace(case.found, **anatomy))
    return case if layers is None else replace(case, wanted=tuple(layers))


def finding(group, name, case):
    """What one check finds."""
    (checks,) = (checks for known, checks in examiner.groups(case) if known == group)
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
