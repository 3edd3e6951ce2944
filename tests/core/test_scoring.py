"""Teacher-forced scores: batched, merged and deduplicated, they are those of one plain forward pass per answer."""

from contextlib import contextmanager

import pytest
import torch

from lit_edit.anatomy import Anatomy
from lit_edit.batch.records import Asked, RecordScores, Tally
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest
from lit_edit.scoring import Scorer, _merged
from tests.tiny import tiny_model, tiny_tokenizer

PAIRS = [
    ("Ada Lovelace was born in", "Rome"),
    ("Ada Lovelace was born in", "Paris"),
    ("Ada Lovelace was born in", "the city of Paris and Berlin"),
    ("The home of Marie Curie is", "Paris"),
    ("You", "were born in Vienna"),
    ("Ada Lovelace was born in", "Rome"),
]


@pytest.fixture(scope="module", params=["gpt2", "llama", "gemma3_text"])
def scorer(request):
    return Scorer(Anatomy.of(tiny_model(request.param)), Encoder(tiny_tokenizer(bos=request.param == "llama")))


@torch.no_grad()
def plain(scorer, prompt, answer):
    """Log-probabilities and argmax of one answer's tokens by one forward pass over the whole row."""
    ids, _, first = scorer.encoder.with_target(prompt, answer)
    logits = scorer.anatomy.model(input_ids=torch.tensor([ids])).logits[0].float()
    labels = torch.tensor(ids[first:])
    log_p = logits.log_softmax(-1)[first - 1 : -1]
    return -log_p.gather(1, labels[:, None])[:, 0], log_p.argmax(-1), labels


@pytest.mark.parametrize("tokens_at_once", [1, 30, 8192])
def test_scores_are_those_of_one_forward_per_answer(scorer, tokens_at_once):
    scorer = Scorer(scorer.anatomy, scorer.encoder, tokens_at_once)
    found = scorer.answers(PAIRS)
    for index, pair in enumerate(PAIRS):
        nll, best, labels = plain(scorer, *pair)
        torch.testing.assert_close(found.nll[index], nll.mean(), rtol=1e-5, atol=1e-5)
        assert found.predicted[index] == tuple(best.tolist())
        assert found.right[index] == tuple((best == labels).tolist())
        assert int(found.tokens[index]) == len(labels) and bool(found.correct[index]) == bool((best == labels).all())


def test_answers_to_one_prompt_share_a_row():
    fed, place = _merged([(1, 2), (1, 2, 3), (4,), (1, 2), (1, 3)])
    assert sorted(fed) == [(1, 2, 3), (1, 3), (4,)]
    assert [fed[at] for at in place] == [(1, 2, 3), (1, 2, 3), (4,), (1, 2, 3), (1, 3)]


def test_padding_side_of_the_tokenizer_does_not_matter(scorer):
    tokenizer, before = scorer.encoder.tokenizer, scorer.answers(PAIRS)
    side = tokenizer.padding_side
    try:
        tokenizer.padding_side = "left"
        assert torch.equal(scorer.answers(PAIRS).nll, before.nll) and tokenizer.padding_side == "left"
    finally:
        tokenizer.padding_side = side


def test_every_scoring_of_a_two_token_answer_by_hand():
    tally = Tally()
    asked = Asked("efficacy", "p", ("new",), "true")
    tally.judge(asked, [(0.5, (True, False))], 0.7)
    assert tally.values == {
        "efficacy/accuracy/teacher_forced": [0.0],
        "efficacy/token_accuracy/teacher_forced": [0.5],
        "efficacy/probability/teacher_forced": [pytest.approx(0.6065, abs=1e-4)],
        "efficacy/success/teacher_forced": [1.0],
        "efficacy/difference/teacher_forced": [pytest.approx(0.6065 - 0.4966, abs=1e-4)],
    }


def test_a_tie_is_a_failure_and_any_accepted_answer_counts():
    tally = Tally()
    tally.judge(Asked("neighbourhood", "p", ("a",), "b"), [(0.5, (True,))], 0.5)
    assert tally.values["neighbourhood/success/teacher_forced"] == [0.0]
    tally.judge(Asked("portability_reasoning", "p", ("a", "b")), [(2.0, (False, True)), (1.0, (True, True))], None)
    for metric in ("portability", "portability_reasoning"):
        assert tally.values[f"{metric}/accuracy/teacher_forced"] == [1.0]
        assert tally.values[f"{metric}/token_accuracy/teacher_forced"] == [1.0]
    assert not any("portability" in name and "success" in name for name in tally.values)


def test_a_multi_hop_question_is_answered_if_any_wording_is():
    tally = Tally()
    for right in (False, True, False):
        tally.judge(Asked("portability_multi_hop", "p", ("a",)), [(1.0, (right,))], None)
    found = tally.close().values
    assert found["portability_multi_hop/any_wording/teacher_forced"] == [1.0]
    assert found["portability_multi_hop/accuracy/teacher_forced"] == [0.0, 1.0, 0.0]


def test_a_record_is_scored_on_what_it_has(scorer):
    bare = EditRequest("{} was born in", "Ada Lovelace", "Rome")
    (scores,) = scorer.requests([bare])
    assert set(scores.values) == {f"efficacy/{s}/teacher_forced" for s in ("accuracy", "token_accuracy", "probability")}
    full = EditRequest(
        "{} was born in",
        "Ada Lovelace",
        "Rome",
        target_true="Paris",
        paraphrases=("The home of Ada Lovelace is",),
        neighbourhood=(("She is a native speaker of", "Dutch"), ("You were born in", "Vienna")),
        portability=(("reasoning", "The capital of the country of Ada Lovelace is", ("Rome", "Roma")),),
    )
    (scores,) = scorer.requests([full])
    assert len(scores.values["neighbourhood/success/teacher_forced"]) == 2
    assert len(scores.values["portability_reasoning/accuracy/teacher_forced"]) == 1
    wanted, other = (plain(scorer, full.text, answer)[0].mean() for answer in ("Rome", "Paris"))
    assert scores.values["efficacy/success/teacher_forced"] == [float(wanted < other)]


def test_locality_compares_with_what_the_unedited_model_says(scorer):
    request = EditRequest(
        "{} was born in", "Ada Lovelace", "Rome", locality=(("specificity", "She is a native speaker of", "Dutch"),)
    )
    shown = []

    @contextmanager
    def unedited():
        shown.append("in")
        yield
        shown.append("out")

    (scores,) = scorer.requests([request], unedited)
    assert shown == ["in", "out"]
    assert scores.values["locality/agreement/teacher_forced"] == [1.0], "nothing was edited"
    assert scores.values["locality_specificity/agreement/teacher_forced"] == [1.0]

    @contextmanager
    def another():
        weight = scorer.anatomy.weight(0)
        kept = weight.clone()
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 5)
        yield
        with torch.no_grad():
            weight.copy_(kept)

    (other,) = scorer.requests([request], another)
    assert other.values["locality/agreement/teacher_forced"][0] < 1.0
    assert "locality/agreement/teacher_forced" not in scorer.requests([request])[0].values


def test_the_unedited_model_is_asked_once_per_locality_row(scorer, monkeypatch):
    scorer = Scorer(scorer.anatomy, scorer.encoder)
    first, second = (
        EditRequest("{} was born in", "Ada Lovelace", "Rome", locality=(("kept", prompt, "Dutch"),))
        for prompt in ("She is a native speaker of", "You were born in")
    )
    asked = []

    class Shown:
        @contextmanager
        def unedited(self):
            asked.append(1)
            yield

    shown = Shown()
    alone = scorer.requests([first], shown.unedited)[0].values
    assert scorer.requests([first, first], shown.unedited)[0].values == alone and len(asked) == 1
    scorer.requests([first, second], shown.unedited)
    assert len(asked) == 2, "a row that is new"
    scorer.requests([second, first], shown.unedited)
    assert len(asked) == 2
    weight = scorer.anatomy.weight(0)
    kept = weight.clone()
    try:
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 5)
        assert scorer.requests([first], shown.unedited)[0].values["locality/agreement/teacher_forced"][0] < 1.0
        assert len(asked) == 2, "what it said before is remembered while the weights change"
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    scorer.requests([first], Shown().unedited)
    assert len(asked) == 3, "another unedited model"
    monkeypatch.setattr("lit_edit.scoring._REMEMBERED", 1)
    assert scorer.requests([first, second], shown.unedited)[0].values == alone
    assert scorer.requests([first], shown.unedited)[0].values == alone


def test_record_scores_are_plain():
    assert RecordScores({"a": [1.0]}).values["a"] == [1.0]
