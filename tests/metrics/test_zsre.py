"""Token accuracy: by hand, and the published rows with their quirks against recorded booleans."""

import json
import math

import pytest
import torch

from lit_edit.anatomy import Anatomy
from lit_edit.errors import MalformedRecord
from lit_edit.metrics.zsre import (
    TokenRow,
    leading,
    legacy_margins,
    legacy_neighbourhood_rows,
    legacy_rows,
    margins,
    token_accuracy,
    token_scores,
)
from lit_edit.passes.forward import greedy
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest
from lit_edit.scoring import Scorer
from lit_edit.verify.recording import find
from tests.tiny import tiny_model, tiny_tokenizer


def scorer(family="gpt2", bos=False):
    return Scorer(Anatomy.of(tiny_model(family)), Encoder(tiny_tokenizer(bos)))


def test_token_accuracy_by_hand():
    assert token_accuracy([[True, False], [True]]) == 0.75  # not 2/3
    assert token_accuracy([[True, False]]) == 0.5
    assert token_accuracy([[], [False, False], []]) == 0.0
    assert math.isnan(token_accuracy([])) and math.isnan(token_accuracy([[]]))


def test_margins_and_ties_go_to_the_first_token():
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [math.nan, 1.0, 2.0]])
    found = margins(logits, [1, 0, 0, 1, 2])
    assert found[:3].tolist() == [1.0, -2.0, 0.0]
    assert (found >= 0).tolist() == [True, False, True, False, False]
    assert abs(float(found[3])) < 1e-30


def test_a_models_own_answer_is_all_right_and_a_changed_token_is_not():
    scores = scorer("llama")
    prompt = "The Eiffel Tower is located in the city of"
    anatomy, encoder = scores.anatomy, scores.encoder
    for word in ("Paris", "Berlin", "a cat"):
        ids, _, first = encoder.with_target(prompt, word)
        wanted = [greedy(anatomy, ids[:at], 1) == [ids[at]] for at in range(first, len(ids))]
        request = EditRequest(prompt, "", word, paraphrases=(prompt, "It is"), neighbourhood=(("Because", word),))
        (found,) = token_scores(scores, [request])
        assert list(found.rewrite) == wanted == list(found.paraphrase[: len(wanted)])
        assert len(found.paraphrase) == 2 * len(wanted) and len(found.neighbourhood) == len(wanted)


def test_records_keep_their_own_tokens():
    scores = scorer()
    requests = [
        EditRequest("The Eiffel Tower is in", "", "the city of Paris"),
        EditRequest("I was born in", "", "Rome", paraphrases=("She was born in", "You were born in")),
    ]
    for legacy in (False, True):
        together = token_scores(scores, requests, legacy)
        assert together == [one for request in requests for one in token_scores(scores, [request], legacy)]
        assert together[0].paraphrase == () == together[0].neighbourhood
    assert token_scores(scores, []) == [] == token_scores(scores, [], legacy=True)


def test_legacy_rows_without_bos_are_the_teacher_forced_row():
    encoder = scorer().encoder
    assert leading(encoder) == 0
    rows = legacy_rows(encoder, ["Where?", "Is it"], "Paris")
    ids = encoder.encode(" Paris")[0]
    assert len(rows) == 2 * len(ids)
    assert [row.prompt for row in rows[: len(ids)]] == ["Where?" + encoder.tokenizer.decode(ids[:at]) for at in range(len(ids))]
    assert "".join(row.target for row in rows[len(ids) :]) == " Paris"
    assert legacy_neighbourhood_rows(encoder, "Where?", "Paris") == rows[: len(ids)]


def test_legacy_rows_with_bos_have_the_published_quirks():
    encoder = scorer("llama", bos=True).encoder
    assert leading(encoder) == 1
    rows = legacy_rows(encoder, ["Where?"], "Paris is")
    ids = encoder.encode(" Paris is")[0][1:]
    decode = encoder.tokenizer.decode
    assert rows[0] == TokenRow("Where?", decode(ids[:1]))
    assert rows[1].prompt == "Where? " + decode(ids[:1]) and rows[1].prompt.startswith("Where?  ")  # two blanks
    nearby = legacy_neighbourhood_rows(encoder, "Where?", "Paris is")
    assert nearby[0] == TokenRow("Where?", "<bos>")
    assert nearby[1].prompt == "Where?<bos>" and len(nearby) == len(ids) + 1


def test_legacy_margins_judge_the_next_token():
    scores = scorer("llama", bos=True)
    anatomy, encoder = scores.anatomy, scores.encoder
    rows, wanted = [], []
    for prompt in ("Because", "The Eiffel Tower is in", "I was", "You were born in", "She is", "Sony", "It was", "Ada"):
        (best,) = greedy(anatomy, encoder.encode(prompt)[0], 1)
        for target in ("P", " is", encoder.tokenizer.decode([best])):
            rows.append(TokenRow(prompt, target))
            wanted.append(encoder.encode(target)[0][1] == best)
    assert (legacy_margins(scores, rows) >= 0).tolist() == wanted
    assert True in wanted and False in wanted
    small = Scorer(anatomy, encoder, tokens_at_once=1)
    assert torch.allclose(legacy_margins(small, rows), legacy_margins(scores, rows), atol=1e-5)


def test_an_answer_without_a_token_is_malformed():
    with pytest.raises(MalformedRecord):
        token_scores(scorer(), [EditRequest("Where is it?", "", "Rome", paraphrases=("",))])


@pytest.mark.parametrize("model", ["tiny-gpt2", "tiny-gptj", "tiny-llama"])
def test_recorded_booleans(shared, model):
    (recording,) = find(shared / "golden" / "a" / model)
    said = json.loads((recording.folder / "eval.json").read_text(encoding="utf-8"))
    requests = [
        EditRequest(
            row["src"],
            "",
            row["answers"][0],
            paraphrases=(row["rephrase"],),
            neighbourhood=((row["loc"] + "?", row["loc_ans"]),),
        )
        for row in recording.records["zsre"]
    ]
    scores = Scorer(recording.anatomy, recording.encoder)
    found = token_scores(scores, requests, legacy=True)
    clean = token_scores(scores, requests)
    ours = {"rewrite": "rewrite", "paraphrase": "paraphrase", "neighborhood": "neighbourhood"}
    for theirs, name in ours.items():
        assert [list(getattr(one, name)) for one in found] == [row[f"{theirs}_prompts_correct"] for row in said["pre"]["zsre"]]
        accuracy = 100 * token_accuracy([getattr(one, name) for one in found])
        assert accuracy == pytest.approx(said["pre"]["zsre_summary"][f"{theirs}_acc"], rel=1e-9)
    if model == "tiny-llama":  # what the quirks cost
        accuracies = [100 * token_accuracy([getattr(one, name) for one in clean]) for name in ours.values()]
        assert accuracies[1] > said["pre"]["zsre_summary"]["paraphrase_acc"] + 4
        assert accuracies[2] > said["pre"]["zsre_summary"]["neighborhood_acc"] + 40
    else:
        assert clean == found
