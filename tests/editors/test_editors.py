"""Closed-form editors against their published formulas, densely and in float64; what they refuse."""

import pytest
import torch

from lit_edit.editors import EMMET, ENCORE, MEMIT, AlphaEdit
from lit_edit.editors.locate import joined, warn_of_conflicts
from lit_edit.errors import EditError
from lit_edit.moments import SecondMoment
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest
from lit_edit.spectrum import Subspace
from tests.tiny import normal, tiny_tokenizer

D, M, N = 24, 10, 6
LAM, RIDGE, LIMIT = 2.0, 0.7, 0.3


def moment(seed=0):
    basis = torch.linalg.qr(normal(D, D, seed=seed)).Q
    return SecondMoment(((basis * torch.logspace(-2, 1, D, dtype=torch.float64)) @ basis.T).float(), 1)


def ready(editor, seed=0):
    editor.allocate(0, M, D)
    editor.prepare(0, torch.zeros(M, D), moment(seed))
    return editor


def facts(seed, n=N):
    """Keys that float32 holds exactly, as they come from a model, and residuals."""
    return normal(n, D, seed=seed + 100).float().double(), normal(n, M, seed=seed + 200)


def c_of(seed=0):
    return moment(seed).mean.double()


def projector(c):
    values, vectors = torch.linalg.eigh(c)
    free = vectors[:, values < LIMIT]
    return free @ free.T


def eye(d=D):
    return torch.eye(d, dtype=torch.float64)


def alphaedit(c, keys, residuals, history):
    """The released, non-symmetric system."""
    p = projector(c)
    k, r = keys.T, residuals.T
    return torch.linalg.solve(p @ (k @ k.T + history) + RIDGE * eye(), p @ k @ r.T).T


def emmet(c, keys, residuals, history):
    a = torch.linalg.inv(LAM * c + history)
    k, r = keys.T, residuals.T
    return r @ torch.linalg.inv(k.T @ a @ k + 0.1 * eye(len(keys))) @ k.T @ a


def least_squares(ridge):
    def formula(c, keys, residuals, history):
        k, r = keys.T, residuals.T
        return torch.linalg.solve(LAM * c + ridge * eye() + history + k @ k.T, k @ r.T).T

    return formula


METHODS = {
    "MEMIT": (lambda: MEMIT(LAM), least_squares(0.0), False),
    "MEMIT with history": (lambda: MEMIT(LAM, history=True), least_squares(0.0), True),
    "ENCORE": (lambda: ENCORE(LAM, RIDGE), least_squares(RIDGE), True),
    "EMMET": (lambda: EMMET(LAM), emmet, False),
    "EMMET with history": (lambda: EMMET(LAM, history=True), emmet, True),
    "AlphaEdit": (lambda: AlphaEdit(LIMIT, RIDGE), alphaedit, True),
    "AlphaEdit without history": (lambda: AlphaEdit(LIMIT, RIDGE, history=False), alphaedit, False),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_batch_of_a_stream_is_the_published_formula(name):
    make, formula, keeps = METHODS[name]
    editor, c, past = ready(make()), c_of(), torch.zeros(D, D, dtype=torch.float64)
    for batch in range(6):  # enough for a history of half of D keys to be folded twice
        keys, residuals = facts(batch)
        ours = editor.solve(0, keys, residuals, torch.zeros(M, D)).dense()
        theirs = formula(c, keys, residuals, past if keeps else torch.zeros_like(past))
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
        editor.remember(0, keys, torch.zeros(M, D))
        past = past + keys.T @ keys


@pytest.mark.parametrize("name", ["MEMIT with history", "ENCORE", "AlphaEdit"])
def test_sequential_is_one_shot_for_fixed_keys_and_outputs(name):
    make, formula, _ = METHODS[name]
    editor, weight = ready(make()), normal(M, D, seed=17)
    start, c = weight, c_of()
    keys = normal(5, N, D, seed=15).float().double()
    if name == "AlphaEdit":  # the theorem is about what the projected keys write
        keys = (keys @ projector(c)).float().double() @ projector(c)
    values = normal(5, N, M, seed=16)
    for k, v in zip(keys, values, strict=True):
        weight = weight + editor.solve(0, k, v - k @ weight.T, weight).dense()
        editor.remember(0, k, weight)
    every_k, every_v = keys.flatten(0, 1), values.flatten(0, 1)
    one_shot = start + formula(c, every_k, every_v - every_k @ start.T, torch.zeros_like(c))
    allowed = 1e-6 if name == "AlphaEdit" else 1e-9  # projecting leaves float32's last digits in the keys
    assert float((weight - one_shot).norm() / one_shot.norm()) < allowed


def test_emmet_writes_one_fact_exactly_and_a_batch_almost():
    keys, residuals = facts(3)
    one = ready(EMMET(LAM)).solve(0, keys[:1], residuals[:1], None).dense()
    torch.testing.assert_close(one @ keys[0], residuals[0], rtol=1e-9, atol=1e-10)
    exact = ready(EMMET(LAM, mu=0.0)).solve(0, keys, residuals, None).dense()
    torch.testing.assert_close(exact @ keys.T, residuals.T, rtol=1e-8, atol=1e-9)
    soft = ready(EMMET(LAM)).solve(0, keys, residuals, None).dense()
    assert 1e-3 < float((soft @ keys.T - residuals.T).norm() / residuals.norm()) < 0.5


def test_equal_keys_are_refused_without_slack_and_averaged_with_it():
    keys, residuals = facts(4, 2)
    keys[1] = keys[0]
    with pytest.raises(EditError, match="linearly dependent"):
        ready(EMMET(LAM, mu=0.0)).solve(0, keys, residuals, None)
    written = ready(EMMET(LAM)).solve(0, keys, residuals, None).dense() @ keys[0]
    mean = residuals.mean(0)
    assert float(torch.nn.functional.cosine_similarity(written, mean, dim=0)) > 0.999


def test_alphaedit_writes_nothing_into_protected_directions_and_says_how_many_there_are():
    editor = ready(AlphaEdit(LIMIT, RIDGE))
    closed = editor.forbidden(0)
    assert editor.removed == {0: closed.shape[1]} and 0 < closed.shape[1] < D
    keys, residuals = facts(5)
    editor.remember(0, *facts(6)[:1], None)
    delta = editor.solve(0, keys, residuals, None)
    assert float((delta.dense() @ closed).norm()) < 1e-12 * float(delta.norm())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("seed", range(10))
def test_a_constrained_solve_stays_inside_and_is_never_worse_than_cutting_afterwards(name, seed):
    make, _, keeps = METHODS[name]
    editor, c = ready(make(), seed), c_of(seed)
    earlier = facts(seed + 50)[0]
    editor.remember(0, earlier, None)
    keys, residuals = facts(seed)
    u, v = (torch.linalg.qr(normal(width, 4, seed=seed + width)).Q for width in (M, D))
    inside = editor.solve(0, keys, residuals, None, Subspace(u, v))
    pm, pd = eye(M) - u @ u.T, eye() - v @ v.T
    cut = pm @ editor.solve(0, keys, residuals, None).dense() @ pd
    ours = inside.dense()
    torch.testing.assert_close(pm @ ours @ pd, ours, rtol=1e-8, atol=1e-10)
    past = earlier.T @ earlier if keeps else torch.zeros_like(c)
    if name.startswith("AlphaEdit"):
        metric = RIDGE * eye() + past
        closed = editor.forbidden(0)
        assert float((ours @ closed).norm()) < 1e-9 * float(inside.norm()), "both subspaces are kept out of"
        cut = cut - (cut @ joined(closed, v)) @ joined(closed, v).T  # two projectors do not commute
    else:
        metric = LAM * c + past + (RIDGE * eye() if name == "ENCORE" else 0)
    mu = editor.weighting(keys)

    def objective(delta):
        missed = (residuals.T - delta @ keys.T).square().sum()
        return float(missed + mu * torch.trace(delta @ metric @ delta.T))

    assert objective(ours) <= objective(cut) * (1 + 1e-9)


def test_joined_bases_span_both_and_count_shared_directions_once():
    q = torch.linalg.qr(normal(D, 7, seed=1)).Q
    union = joined(q[:, :5], q[:, 3:])
    assert union.shape == (D, 7)
    torch.testing.assert_close(union.T @ union, eye(7), rtol=0, atol=1e-12)
    torch.testing.assert_close(union @ union.T, q @ q.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: MEMIT(lam=-1.0), "MEMIT's lam is -1"),
        (lambda: MEMIT(lam=float("nan")), "MEMIT's lam is nan"),
        (lambda: EMMET(mu=-0.1), "EMMET's mu is -0.1"),
        (lambda: ENCORE(ridge=-2.0), "ENCORE's ridge is -2"),
        (lambda: ENCORE(patience=0), "patience is 0"),
        (lambda: AlphaEdit(threshold=0.0), "threshold is 0"),
        (lambda: AlphaEdit(ridge=0.0), "ridge is 0"),
        (lambda: ready(AlphaEdit(threshold=1e-9)), "protects all 24 input directions of layer 0"),
        (lambda: ready(MEMIT()).prepare(2, torch.zeros(M, D + 1), moment()), "belongs to another model"),
        (lambda: AlphaEdit().prepare(2, torch.zeros(M, D + 1), moment()), "belongs to another model"),
        (lambda: AlphaEdit().prepare(2, torch.zeros(M, D), None), "none was given"),
    ],
)
def test_bad_settings_get_one_sentence(make, sentence):
    with pytest.raises(EditError, match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_requests_that_share_a_key_are_warned_of_by_name():
    encoder = Encoder(tiny_tokenizer())

    def rows(prompt, subject, target, case):
        return encoder.rows(EditRequest(prompt, subject, target, case_id=case), ["I was. {}"])

    one = rows("{} was born in", "Ada Lovelace", "Rome", "7")
    other = rows("{} works in", "Ada Lovelace", "Paris", "8")  # nothing behind the subject enters a key
    third = rows("{} was born in", "Marie Curie", "Paris", "9")
    with pytest.warns(UserWarning, match=r"share a key.*case 7 \('Rome'\), case 8 \('Paris'\)") as caught:
        warn_of_conflicts([one, other, third])
    assert len(caught) == 1


def test_the_same_fact_twice_is_no_conflict(recwarn):
    row = Encoder(tiny_tokenizer()).rows(EditRequest("{} was born in", "Ada Lovelace", "Rome"), [])
    warn_of_conflicts([row, row])
    assert not recwarn.list
