"""The replay of recorded evaluations agrees, and notices what does not."""

import json
import shutil

import pytest
import torch

from lit_edit.errors import EditError
from lit_edit.scoring import Scorer
from lit_edit.verify import counterfact, evaluation
from lit_edit.verify.recording import find

POST = "post_MEMIT4"


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "golden" / "a"


@pytest.fixture(scope="module")
def loaded(golden):
    """Recordings with their models, loaded once; tests replace what they say in copies."""
    return {model: find(golden / model)[0] for model in ("tiny-gpt2", "tiny-gptj", "tiny-llama")}


def misses(rows):
    return {row.quantity: row.worst for row in rows if row.missed}


def replay(recording, monkeypatch, change=None, states=("pre", POST)):
    """Run the check on what ``eval.json`` says, of some states, after a change."""
    said = json.loads((recording.folder / "eval.json").read_text(encoding="utf-8"))
    said = {name: value for name, value in said.items() if name in states or name not in ("pre", POST)}
    if change is not None:
        change(said)
    monkeypatch.setattr(recording, "json", lambda name: said)
    return evaluation.run(recording)


@pytest.mark.parametrize("model", ["tiny-gpt2", "tiny-gptj", "tiny-llama"])
def test_recorded_evaluations_agree(loaded, model):
    recording = loaded[model]
    rows = evaluation.run(recording)
    assert not misses(rows) and not [row for row in rows if row.note]
    counts = {row.quantity: row.count for row in rows}
    for state in ("pre", POST):
        assert counts[f"answer is the argmax, neighborhood [{state}]"] == 200
        assert counts[f"NLL of target_true, paraphrase [{state}]"] == 20
        assert counts[f"summary [{state}]"] == 7 and counts[f"mean differences [{state}]"] == 3
        assert counts[f"ZsRE summary [{state}]"] == 3
    assert ("TF-IDF cosine" in counts) == (model == "tiny-gpt2")
    for layer, weight in recording.original.items():
        assert torch.equal(recording.anatomy.weight(layer), weight)


def first(said, state=POST):
    return said[state]["counterfact"][3]


SPOILT = {
    "NLL of target_new, rewrite": lambda s, p: p["rewrite_prompts_probs"][0].update(target_new=99.0),
    "NLL of target_true, neighborhood": lambda s, p: p["neighborhood_prompts_probs"][4].update(target_true=99.0),
    "answer is the argmax, paraphrase": lambda s, p: p["paraphrase_prompts_correct"].__setitem__(
        1, not p["paraphrase_prompts_correct"][1]
    ),
    "ZsRE tokens, rewrite": lambda s, p: s["zsre"][2]["rewrite_prompts_correct"].__setitem__(
        0, not s["zsre"][2]["rewrite_prompts_correct"][0]
    ),
    "summary": lambda s, p: s["counterfact_summary"].update(rewrite_success=s["counterfact_summary"]["rewrite_success"] + 0.01),
    "mean differences": lambda s, p: s["counterfact_summary"].update(paraphrase_diff=3.0),
    "ZsRE summary": lambda s, p: s["zsre_summary"].update(neighborhood_acc=50.0),
}


@pytest.mark.parametrize("quantity", SPOILT)
def test_what_is_off_is_a_miss_under_its_own_name(loaded, monkeypatch, quantity):
    def change(said):
        SPOILT[quantity](said["pre"], first(said, "pre"))

    found = misses(replay(loaded["tiny-gptj"], monkeypatch, change, states=("pre",)))
    assert f"{quantity} [pre]" in found


def test_a_swapped_comparison_is_a_miss(loaded, monkeypatch):
    def change(said):
        pair = first(said, "pre")["rewrite_prompts_probs"][0]
        pair["target_new"], pair["target_true"] = pair["target_true"], pair["target_new"]

    assert "new answer is likelier, rewrite [pre]" in misses(replay(loaded["tiny-llama"], monkeypatch, change, states=("pre",)))


def test_the_edited_weights_matter(loaded, monkeypatch):
    """Scores of the unedited model under the name of the edited one are no agreement."""

    def change(said):
        said[POST] = said["pre"]

    found = misses(replay(loaded["tiny-llama"], monkeypatch, change))
    assert f"NLL of target_new, rewrite [{POST}]" in found and f"ZsRE tokens, rewrite [{POST}]" in found
    assert not [quantity for quantity in found if "[pre]" in quantity]


def test_text_metrics_that_are_off(loaded, monkeypatch):
    def change(said):
        text = said["text_metrics"]
        text["ngram_entropy"]["untrained_punkt"]["per_text_H2"][3] += 1e-4
        text["ngram_entropy"]["no_sentence_split"]["tokens_text0"][5] = "x"
        text["tfidf"]["cosine"][2] += 1e-6
        text["ngram_entropy"]["trained_punkt"] = {}

    rows = replay(loaded["tiny-gpt2"], monkeypatch, change, states=())
    assert misses(rows) == {
        "n-gram entropy, untrained_punkt": "per_text_H2",
        "words, no_sentence_split": "tokens_text0",
        "TF-IDF cosine": "texts 0 and 6",
    }
    assert [row.quantity for row in rows if row.note] == ["n-gram entropy, trained_punkt"]


def test_neighbourhood_prompts_that_are_off(loaded, monkeypatch):
    def change(said):
        said["zsre_neighborhood_items_built_by_reference_dataset"][7][0]["prompt"] += " "

    assert misses(replay(loaded["tiny-llama"], monkeypatch, change, states=())) == {"ZsRE neighbourhood prompts": "record 7"}


def test_a_tie_is_no_miss_and_the_summary_says_so(loaded, monkeypatch):
    def change(said):
        record = first(said, "pre")
        record["rewrite_prompts_correct"] = [not record["rewrite_prompts_correct"][0]]

    recording = loaded["tiny-gptj"]
    monkeypatch.setattr(counterfact, "TIE", 1e9)  # everything is a tie
    rows = replay(recording, monkeypatch, change, states=("pre",))
    assert not [quantity for quantity in misses(rows) if quantity.startswith("answer")]
    assert [row.note for row in rows if row.quantity == "summary [pre]"] == ["a tie fell the other way here"]


def test_an_answer_that_the_reference_cuts_otherwise_is_read_its_way(loaded, monkeypatch):
    """A blank behind an answer is a token for the reference and nothing for this library."""
    recording = loaded["tiny-gpt2"]
    scorer = Scorer(recording.anatomy, recording.encoder)
    prompt = "Everberg is located in"
    plain, odd = counterfact._fed(scorer, prompt, "Belgium"), counterfact._fed(scorer, prompt, "Belgium ")
    assert plain.same and not odd.same
    assert odd.first == plain.first and odd.labels[:-1] == plain.labels == plain.ids[plain.first :]
    ours, same = counterfact._scores(scorer, [(prompt, "Belgium")], [plain])
    theirs, right = counterfact._scores(scorer, [(prompt, "Belgium ")], [odd])
    log_p = recording.model(torch.tensor([odd.ids])).logits[0, odd.first - 1 : -1].log_softmax(-1)
    picked = -log_p[range(len(odd.labels)), odd.labels]
    assert float(theirs[0]) == pytest.approx(float(picked.mean()), rel=1e-5)
    assert float(ours[0]) == pytest.approx(float(picked[:-1].mean()), rel=1e-3)
    assert right == [log_p.argmax(-1).tolist() == odd.labels] and same == [log_p[:-1].argmax(-1).tolist() == plain.labels]

    def blank(said):
        said["pre"]["counterfact"] = said["pre"]["counterfact"][:1]

    records = json.loads(json.dumps(recording.records))
    records["records"][0]["requested_rewrite"]["target_new"]["str"] += " "
    monkeypatch.setitem(recording.__dict__, "records", records)
    notes = [row.note for row in replay(recording, monkeypatch, blank, states=("pre",)) if row.note]
    assert notes == ["13 answers are cut into other tokens by the reference; scored as it does"]


def test_what_is_not_there_is_named(golden, loaded, tmp_path, monkeypatch):
    target = tmp_path / "set" / "tiny-llama"
    target.mkdir(parents=True)
    shutil.copy(golden / "records.json", target.parent)
    shutil.copy(golden / "tiny-llama" / "meta.json", target)
    shutil.copytree(golden / "tiny-llama" / "model", target / "model")
    (recording,) = find(target)
    assert [row.note for row in evaluation.run(recording)] == ["not recorded here"]
    shutil.copy(golden / "tiny-llama" / "eval.json", target)

    def change(said):
        said["post_ROME4"] = said[POST]

    rows = replay(recording, monkeypatch, change, states=(POST,))
    notes = {row.quantity: row.note for row in rows if row.note}
    assert notes == {
        POST: "needs MEMIT.safetensors, not recorded here",
        "post_ROME4": "weights of this state are not covered",
    }
    assert not misses(rows)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda s: s["pre"]["counterfact"][0].update(case_id=-1), "case -1"),
        (lambda s: s["pre"]["counterfact"][0]["rewrite_prompts_correct"].clear(), "records.json 1 prompts"),
        (lambda s: s["pre"]["zsre"][1]["paraphrase_prompts_correct"].append(True), "ZsRE record 1"),
        (lambda s: s["pre"]["zsre"].extend(s["pre"]["zsre"]), "40 ZsRE records"),
        (lambda s: s["pre"].update(counterfact_summary=[]), "damaged"),
    ],
)
def test_damage_is_one_sentence(loaded, monkeypatch, change, word):
    with pytest.raises(EditError, match=word):
        replay(loaded["tiny-llama"], monkeypatch, change, states=("pre",))
