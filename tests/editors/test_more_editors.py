"""RLSEdit in float64; state, options and guarded runs of RLSEdit, EvoEdit and BetaEdit."""

import copy
import json

import pytest
import torch
from one_layer import EYE, D, M, N, batches, mean, ready, run
from stream import editor as run_of
from stream import stream, trainer
from tiny import normal, save_tiny

from lit_edit.batch.state import restore, snapshot
from lit_edit.editors.betaedit import BetaEdit
from lit_edit.editors.evoedit import EvoEdit
from lit_edit.editors.lyaplock import LyapLock
from lit_edit.editors.rlsedit import RLSEdit
from lit_edit.errors import EditError
from lit_edit.guards import REVIVE
from lit_edit.spectrum import triple_drift
from lit_edit.workbench import Rejected

# ---------------------------------------------------------------------------------------------------- RLSEdit


@pytest.mark.parametrize("seed", range(3))
def test_rlsedit_is_the_recursion_of_the_paper_and_its_one_shot_solution(seed):
    """W_t = W_{t-1} + C_t K_t (V_t - K_t^T W_{t-1}) in the paper's orientation, C_t downdated; fixed keys and targets."""
    stream, start = batches(7, seed), normal(M, D, seed=seed + 9)
    values = [normal(N, M, seed=seed + 300 + i) for i in range(7)]
    editor = ready(RLSEdit(lam=2.0, ridge=0.3), seed)
    weight, theirs = start, start.T  # theirs [d_in, d_out]
    inverse = torch.linalg.inv(0.3 * EYE + 2.0 * mean(seed))
    for (keys, _), wanted in zip(stream, values, strict=True):
        weight = weight + editor.solve(0, keys, wanted - keys @ weight.T, weight).dense()
        editor.remember(0, keys, weight)
        k = keys.T
        applied = inverse @ k
        inverse = inverse - applied @ torch.linalg.solve(torch.eye(N) + k.T @ applied, applied.T)
        theirs = theirs + inverse @ k @ (wanted - k.T @ theirs)
        torch.testing.assert_close(weight, theirs.T, rtol=1e-9, atol=1e-9)
    every, wanted = torch.cat([keys for keys, _ in stream]), torch.cat(values)
    metric = 0.3 * EYE + 2.0 * mean(seed) + every.T @ every
    one_shot = start + torch.linalg.solve(metric, every.T @ (wanted - every @ start.T)).T
    torch.testing.assert_close(weight, one_shot, rtol=1e-9, atol=1e-9)


def test_rlsedit_refuses_what_it_cannot_work_with():
    with pytest.raises(EditError, match="RLSEdit's lam is 0"):
        RLSEdit(lam=0.0)
    with pytest.raises(EditError, match="RLSEdit's ridge is -1"):
        RLSEdit(ridge=-1.0)


# ---------------------------------------------------------------------------------------------------- all of them

MAKE = {
    "RLSEdit": lambda: RLSEdit(lam=2.0, ridge=0.1),
    "EvoEdit": lambda: EvoEdit(ridge=0.5),
    "BetaEdit": lambda: BetaEdit(ridge=0.5, lam=60.0, refresh=4, limit=None),
}


@pytest.mark.parametrize("name", MAKE)
def test_state_goes_through_a_state_dict_and_the_stream_goes_on_to_the_same_bits(name):
    editor, stream = ready(MAKE[name]()), batches(4, n=2)
    weight = run(editor, stream[:2])
    other = ready(MAKE[name]())
    other.load_state_dict(copy.deepcopy(editor.state_dict()))
    assert torch.equal(run(editor, stream[2:], weight), run(other, stream[2:], weight))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in editor.state_dict().items())


@pytest.mark.parametrize("name", MAKE)
def test_a_batch_that_is_undone_leaves_no_trace(name):
    editor, stream = ready(MAKE[name]()), batches(3, n=2)
    weight = run(editor, stream[:2])
    before, values = snapshot([editor]), {key: value.clone() for key, value in editor.state_dict().items()}
    delta = editor.solve(0, *stream[2], weight).dense()
    run(editor, stream[2:], weight)
    assert any(not torch.equal(value, editor.state_dict()[key]) for key, value in values.items())
    restore(before)
    assert all(torch.equal(value, editor.state_dict()[key]) for key, value in values.items())
    assert torch.equal(editor.solve(0, *stream[2], weight).dense(), delta)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: EvoEdit(threshold=0.0), "EvoEdit's threshold is 0"),
        (lambda: EvoEdit(ridge=-1.0), "EvoEdit's ridge is -1"),
        (lambda: BetaEdit(lam=0.0), "BetaEdit's lam is 0"),
        (lambda: BetaEdit(ridge=0.0), "BetaEdit's ridge is 0"),
        (lambda: BetaEdit(threshold=-1.0), "BetaEdit's threshold is -1"),
        (lambda: BetaEdit(refresh=0), "BetaEdit's refresh is 0"),
        (lambda: BetaEdit(limit=0.0), "BetaEdit's limit is 0"),
        (lambda: ready(EvoEdit(threshold=1e-9)), "EvoEdit's threshold of 1e-09 protects all 24"),
        (lambda: ready(BetaEdit(threshold=1e-9)), "BetaEdit's threshold of 1e-09 protects all 24"),
        (lambda: EvoEdit().prepare(1, torch.zeros(M, D), None), "EvoEdit needs the second moment of the keys of layer 1"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(make, said):
    with pytest.raises(EditError, match=said):
        make()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("llama"), "llama"))


RUNS = {
    "LyapLock": lambda: LyapLock(lam=10.0, alpha=2.0),
    "RLSEdit": lambda: RLSEdit(lam=10.0),
    "EvoEdit": lambda: EvoEdit(threshold=0.3, ridge=1.0),
    "BetaEdit": lambda: BetaEdit(threshold=0.3, lam=10.0, ridge=1.0, refresh=4, limit=None),
}


@pytest.mark.parametrize("mode", ["project", "constrain"])
@pytest.mark.parametrize("name", RUNS)
def test_a_guarded_run_writes_keeps_what_is_protected_and_goes_on_after_a_rejected_batch(model, tmp_path, name, mode):
    editor = RUNS[name]()
    solve, calls = editor.solve, []

    def spoilt(layer, keys, residuals, weight, avoid=None):
        calls.append(layer)
        assert (avoid is not None) == (mode == "constrain")
        delta = solve(layer, keys, residuals, weight, avoid)
        if len(calls) == 4:  # the last layer of the second batch
            raise Rejected("spoilt")
        return delta

    editor.solve = spoilt
    module = run_of(model, tmp_path / "cache", editor=editor, guards=[REVIVE(tau=0.3, mode=mode)])
    data = stream(tmp_path, 8)
    trainer(tmp_path).fit(module, datamodule=data)
    records = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [record["rejected"] for record in records] == [None, "spoilt", None, None]
    assert module.edits == 6
    for layer in module.layers:
        rank = module.guards[0].protected(layer).rank
        assert rank >= 1 and triple_drift(module.spectra[layer], module.master(layer).detach(), rank) < 1e-4
        assert not torch.equal(module.master(layer), module.original(layer))
        if name == "LyapLock":
            assert len(editor.account(layer).keys) == 6
            for what in ("queue", "drift"):
                assert module.outcome.scalars[f"lyaplock/{what}/layer_{layer}"] == float(getattr(editor.account(layer), what))
        elif name == "EvoEdit":
            assert editor.span(layer).basis.shape[1] <= 6
        else:
            assert len(editor.remembered(layer)) == 6
