"""Systems without a solution, or with many: every editor gives finite weights, or says why it does not."""

import re

import pytest
import torch
from methods import IN_ORDER, LOCATING, METHODS, STATELESS, editor, fit
from stream import facts
from tiny import normal

from lit_edit import keys
from lit_edit.algebra.second_moment import SecondMoment
from lit_edit.editors import EMMET, MEMIT
from lit_edit.errors import EditError
from lit_edit.passes import gradients


def written(module, originals=True):
    """What became of every batch, of a run whose weights and state are numbers."""
    for layer in module.layers:
        assert torch.isfinite(module.master(layer)).all()
        assert torch.equal(module.anatomy.weight(layer), module.master(layer))
        assert not originals or not torch.equal(module.master(layer), module.original(layer))
    assert all(torch.isfinite(value).all() for value in module.editor.buffers() if value.is_floating_point())
    return [(record["cases"], record["rejected"], record["set_aside"]) for record in module.journal.records()]


# ------------------------------------------------------------------------------------------------ second moments

NO_MOMENTS = {
    "zero": (torch.zeros(48, 48), "diagonal, means of squares, that is negative or all zero"),
    "negative": (-torch.eye(48), "diagonal, means of squares, that is negative or all zero"),
    "indefinite": (2 * torch.ones(48, 48) - torch.eye(48), "not positive semidefinite: its eigenvalues go from -1 to 95"),
    "asymmetric": (torch.eye(48) + torch.eye(48).roll(1, 0), "not symmetric"),
}


def given(monkeypatch, mean):
    """Give editors this instead of the second moments that were collected."""
    monkeypatch.setattr("lit_edit.edited.second_moments", lambda _, __, layers, *more: dict.fromkeys(layers, mean))


@pytest.mark.parametrize("method", LOCATING)
def test_a_second_moment_of_low_rank_is_used(tiny, tmp_path, monkeypatch, method):
    given(monkeypatch, SecondMoment((k := normal(3, 48, seed=1).float()).T @ k / 3, 3))
    module = editor(tiny, method)
    fit(module, tmp_path, facts(4))
    assert [(len(cases), rejected) for cases, rejected, _ in written(module)] == [(2, None), (2, None)]


@pytest.mark.parametrize("method", LOCATING)
def test_what_no_keys_can_have_as_their_second_moment_is_refused(tiny, monkeypatch, method):
    module = editor(tiny, method)
    module.configure_model()
    for mean, refused in NO_MOMENTS.values():
        given(monkeypatch, SecondMoment(mean, 100))
        with pytest.raises(EditError, match=rf"^the second moment .*{refused}"):
            module.prepare()


# ------------------------------------------------------------------------------------------------ keys


def zeroed(which):
    """What is read, with the keys of the first row or of all rows zero."""

    def change(original):
        def read(self, layer):
            inputs, outputs = original(self, layer)
            inputs = inputs.clone()
            inputs[which] = 0
            return inputs, outputs

        return read

    return change


@pytest.mark.parametrize("which", [0, slice(None)], ids=["one", "all"])
@pytest.mark.parametrize("method", METHODS)
def test_a_key_of_zero(tiny, tmp_path, monkeypatch, method, which):
    capture = gradients._capture

    def without(*args):
        found, loss = capture(*args)
        for tokens in found.values():
            tokens.inputs_TI[which] = 0
        return found, loss

    monkeypatch.setattr(keys._Reading, "rows", zeroed(which)(keys._Reading.rows))
    monkeypatch.setattr(gradients, "_capture", without)
    module = editor(tiny, method)
    fit(module, tmp_path, facts(4))
    moved = method.startswith("FT") or (which == 0 and method not in IN_ORDER)
    for cases, rejected, aside in written(module, originals=moved):
        assert rejected is None
        if method == "ROME":
            assert not cases and all("has almost no part along the direction" in row["reason"] for row in aside)
        else:
            assert len(cases) == 2 and not aside


def pair(answers, subjects=("Ada Lovelace", "Ada Lovelace")):
    return [
        {"prompt": "{} was born in", "subject": subject, "target": answer, "case_id": str(i)}
        for i, (subject, answer) in enumerate(zip(subjects, answers, strict=True))
    ]


@pytest.mark.filterwarnings("ignore:2 requests of one batch share a key but not an answer:UserWarning")
@pytest.mark.parametrize("method", METHODS)
def test_a_request_twice_in_a_batch_and_a_key_with_two_answers(tiny, tmp_path, method):
    module = editor(tiny, method)
    fit(module, tmp_path, pair(("Paris", "Paris")) + pair(("Rome", "Polish"), ("Marie Curie",) * 2) + facts(6)[4:])
    assert [(len(cases), rejected) for cases, rejected, _ in written(module)] == [(2, None)] * 3


@pytest.mark.filterwarnings("ignore:2 requests of one batch share a key but not an answer:UserWarning")
@pytest.mark.parametrize("answers", [("Paris", "Paris"), ("Paris", "Rome")], ids=["same", "conflicting"])
def test_equal_keys_without_any_slack_are_rejected_and_the_stream_goes_on(tiny, tmp_path, answers):
    module = editor(tiny, EMMET(lam=10.0, mu=0.0))
    fit(module, tmp_path, pair(answers) + facts(4)[2:])
    (none, reason, _), (both, rejected, _) = written(module)
    assert none == [] and len(both) == 2 and rejected is None
    assert reason.startswith("the solve of layer 0 failed: the 2 keys of this batch are linearly dependent")
    spared = editor(tiny, EMMET(lam=10.0, mu=0.0))
    fit(spared, tmp_path / "spared", facts(4)[2:])
    assert all(torch.equal(module.master(layer), spared.master(layer)) for layer in module.layers)


# ------------------------------------------------------------------------------------------------ more than there is room for


@pytest.mark.parametrize("method", METHODS)
def test_more_requests_than_inputs(narrow, tmp_path, method):
    """18 requests to a batch of weights that read 16 inputs; the history is folded, and EvoEdit's room runs out."""
    module = editor(narrow, method)
    fit(module, tmp_path, facts(36), batch_size=18)
    (first, *_), (second, rejected, aside) = written(module)
    assert module.anatomy.d_inner == 16 and len(first) == 18 and not aside
    if method == "EvoEdit":
        assert not second and re.match(r"the solve of layer 0 failed: all 16 input directions .* no room left", rejected)
    else:
        assert len(second) == 18 and rejected is None
    if method in ("MEMIT", "RLSEdit"):
        assert module.editor.remembered(0).folded.numel(), "or nothing was folded"
    assert (method in STATELESS) == (not list(module.editor.buffers()))


@pytest.mark.parametrize("history", [True, False])
def test_a_batch_of_one_key_many_times_over(tiny, tmp_path, history):
    module = editor(tiny, MEMIT(lam=10.0, history=history))
    fit(module, tmp_path, pair(("Paris",) * 60, ("Ada Lovelace",) * 60), batch_size=60)
    assert [(len(cases), rejected) for cases, rejected, _ in written(module)] == [(60, None)]
