"""Generated answers along a stream: who is asked, how answers are judged, and that nothing is changed by it."""

import json
import random

import pytest
import torch
from generating import fit, lines
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from stream import editor, stream, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import save_tiny

from lit_edit.callbacks import Generations
from lit_edit.callbacks.generations import rotate
from lit_edit.data import EditStream
from lit_edit.editors import MEMIT
from lit_edit.errors import EditError
from lit_edit.guards import PRUNE
from lit_edit.metrics.answers import negation_prompt
from lit_edit.metrics.references import References
from lit_edit.request import EditRequest
from lit_edit.workbench import Rejected


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("gpt2"), "gpt2"))


# ------------------------------------------------------------------------------------------------ who is asked


def test_rotation_is_even_and_gets_around():
    asked: dict[int, int] = {}
    for visit in range(25):
        chosen = rotate(range(100), asked, 4, f"0/{visit}")
        assert [at // 25 for at in chosen] == [0, 1, 2, 3], "one of every quarter of the stream"
        for at in chosen:
            asked[at] = asked.get(at, 0) + 1
    assert asked == dict.fromkeys(range(100), 1), "everyone once before anyone twice"
    assert rotate(range(100), {}, 4, "0/1") == rotate(range(100), {}, 4, "0/1") != rotate(range(100), {}, 4, "1/1")
    assert rotate([3, 5], {}, 8, "0") == [3, 5] and rotate([], {}, 8, "0") == []


def test_a_run_asks_about_others_each_time(model, tmp_path):
    fit(model, tmp_path / "run", Generations(1, items=2, tokens=2), count=20)
    asked: dict[int, int] = {}
    for edits in range(2, 21, 2):
        found = [int(x["case_id"]) for x in lines(tmp_path / "run") if x["edits"] == edits and x["kind"] == "efficacy"]
        for half, case in zip((range(edits // 2), range(edits // 2, edits)), found, strict=True):
            assert case in half and asked.get(case, 0) == min(asked.get(at, 0) for at in half)
            asked[case] = asked.get(case, 0) + 1
    assert len(asked) >= 12


def test_edits_that_were_not_written_are_not_asked_about(model, tmp_path):
    class Second(MEMIT):
        def solve(self, layer, keys, residuals, weight, avoid=None):
            Second.calls += 1
            if Second.calls == 2:
                raise Rejected("on purpose")
            return super().solve(layer, keys, residuals, weight, avoid)

    Second.calls = 0
    module = editor(model, tmp_path / "cache", editor=Second(lam=10.0), layers=[1], guards=[])
    fit(model, tmp_path / "run", Generations(1, items=8, tokens=2), module=module)
    found = [(line["edits"], line["case_id"]) for line in lines(tmp_path / "run") if line["kind"] == "efficacy"]
    wanted = [(2, [0, 1]), (2, [0, 1]), (4, [0, 1, 4, 5]), (6, [0, 1, 4, 5, 6, 7])]
    assert found == [(edits, str(case)) for edits, cases in wanted for case in cases]


# ------------------------------------------------------------------------------------------------ what is said


def test_lines_say_what_the_model_says(model, tmp_path):
    class Asks(Callback):
        def __init__(self):
            self.said = {}

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            for request in trainer.datamodule.requests:
                for prompt in (request.text, *request.paraphrases, negation_prompt(request)):
                    self.said[pl_module.edits, prompt] = pl_module.scorer.generate([prompt], 6, (" ",))[0]

    fit(model, tmp_path / "run", Generations(2, items=3, tokens=6, until=[" "]), callbacks=[asks := Asks()])
    found = lines(tmp_path / "run")
    assert {line["edits"] for line in found} == {4, 8} and len(found) == 2 * 3 * 3
    assert [line["kind"] for line in found[:3]] == ["efficacy", "paraphrase", "negation"]
    assert all(line["said"] == asks.said[line["edits"], line["prompt"]] for line in found)
    assert all(line["prompt"].startswith("It is not true that ") for line in found if line["kind"] == "negation")
    assert {line["wanted"] for line in found} <= {"Paris", "Rome", "English", "Polish"}
    assert any(line["said"] for line in found)


@pytest.fixture
def parrot(monkeypatch):
    """A model that says the new answer to some prompts and something else to others."""
    from lit_edit.scoring import Scorer

    def generate(self, prompts, tokens, until=()):
        assert len(prompts) == 9 and tokens == 20 and tuple(until) == ("\n",)
        return [" the Paris!", " Paris, of course", "Parisian", " Rome", " in Rome", " no", " English", "English.", " Polish"]

    monkeypatch.setattr(Scorer, "generate", generate)


def test_rates_by_hand(model, tmp_path, parrot):
    folder = tmp_path / "run"
    watcher = Generations(4, items=3)
    logger = TensorBoardLogger(folder, name="", version="tb")
    fit(model, folder, watcher, count=3, logger=logger, log_every_n_steps=1)
    wanted = {  # wanted answers: Paris, Rome, English; each with an edit prompt, one paraphrase, one negation
        "edit/so_far/efficacy/exact/generated": 1.0,
        "edit/so_far/efficacy/contains/generated": 1.0,
        "edit/so_far/paraphrase/exact/generated": 1 / 3,
        "edit/so_far/paraphrase/contains/generated": 1.0,
        "edit/so_far/negation/contains/generated": 0.0,
    }
    assert watcher.last == pytest.approx(wanted)
    events = EventAccumulator(str(folder / "tb"), size_guidance={"tensors": 0}).Reload()
    assert {name: [round(point.value, 4) for point in events.Scalars(name)] for name in wanted} == {
        name: [round(value, 4)] for name, value in wanted.items()
    }
    (text,) = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("generations/text_summary")]
    assert (
        "Parisian" in text
        and "| **negation** It is not true that Ada Lovelace was born in |" in text
        and "| Paris: yes |" in text
    )


def test_free_texts(model, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "facts.jsonl").write_text("")
    requests = tuple(
        EditRequest("{} was born in", name, "Rome", case_id=name, generation_prompts=prompts)
        for name, prompts in (("Ada", ("Ada lives", "Ada's friends are")), ("Marie", ()))
    )

    class Source:
        def requests(self):
            return requests

    watcher = Generations(1, items=2, tokens=2, text_tokens=12, seed=5)
    fit(model, folder, watcher, data=EditStream(source=Source(), batch_size=2))
    texts = [line for line in lines(folder) if line["kind"] == "fluency"]
    assert [line["prompt"] for line in texts] == ["Ada lives", "Ada's friends are", "Marie was born in"]
    assert all(line["said"] and line["wanted"] is None for line in texts)
    assert len({line["said"] for line in texts}) == 3, "texts are sampled"
    assert watcher.last["edit/so_far/fluency/entropy/generated"] > 0
    again = tmp_path / "again"
    fit(model, again, Generations(1, items=2, tokens=2, text_tokens=12, seed=5), data=EditStream(source=Source(), batch_size=2))
    assert lines(again) == lines(folder)


def test_a_prompt_longer_than_the_model_is_left_out(model, tmp_path):
    class Source:
        def requests(self):
            return (EditRequest("{} was born in", "Ada", "Rome", paraphrases=("Rome " * 200, "Ada is from")),)

    watcher = Generations(1, text_tokens=8)
    fit(model, tmp_path / "run", watcher, data=EditStream(source=Source(), batch_size=2))
    assert [line["kind"] for line in lines(tmp_path / "run")] == ["efficacy", "paraphrase", "negation", "fluency"]


# ------------------------------------------------------------------------------------------------ no trace


def test_it_changes_nothing(model, tmp_path):
    def run(folder, *callbacks):
        torch.manual_seed(3)
        random.seed(3)
        folder.mkdir()
        module = editor(model, tmp_path / "cache", guards=[PRUNE()])
        trainer(folder, callbacks).fit(module, datamodule=stream(folder))
        shown = {name: value.clone() for name, value in module.net.state_dict().items()}
        modes = [(name, part.training) for name, part in module.net.named_modules()]
        tokenizer = module.encoder.tokenizer
        settings = (
            tokenizer.padding_side,
            tokenizer.truncation_side,
            module.net.generation_config.to_dict(),
            random.getstate(),
        )
        masters = {i: module.master(i).detach().clone() for i in module.layers}
        return shown, masters, modes, torch.get_rng_state(), settings

    plain, watched = run(tmp_path / "plain"), run(tmp_path / "watched", Generations(1, tokens=4, text_tokens=12))
    assert lines(tmp_path / "watched")
    assert plain[2] == watched[2] and torch.equal(plain[3], watched[3]) and plain[4] == watched[4]
    for part in (0, 1):
        assert all(torch.equal(value, watched[part][name]) for name, value in plain[part].items())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"every_n_batches": -2}, "every_n_batches is -2"),
        ({"items": 0}, "items is 0"),
        ({"tokens": 0}, "tokens is 0"),
        ({"text_tokens": -1}, "text_tokens is -1"),
        ({"until": ["\n", ""]}, "empty string"),
    ],
)
def test_mistakes_are_told(options, sentence):
    with pytest.raises(EditError, match=sentence):
        Generations(**options)


def test_off(model, tmp_path):
    fit(model, tmp_path / "run", Generations(0))
    assert not (tmp_path / "run" / "generations.jsonl").exists()


# ------------------------------------------------------------------------------------------------ consistency


def references(folder, rows=None):
    folder.mkdir(exist_ok=True)
    rows = rows or [
        {"target": "Paris", "text": "Paris lies on a river."},
        {"target": "Rome", "text": "Rome was not built in a day."},
        {"target": "Rome", "relation": "P19", "text": "Born in Rome."},
    ]
    texts, words = folder / "references.jsonl", folder / "Plain words.txt"
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words.write_text("Paris lies on a river.\n\nRome was built.\n\nborn in the city", encoding="utf-8")
    return str(texts), str(words)


def test_consistency_compares_free_texts_with_reference_texts_and_says_what_it_was_fitted_on(model, tmp_path):
    texts, words = references(tmp_path / "texts")
    watcher = Generations(every_n_batches=2, items=4, text_tokens=16, references=texts, vocabulary=words)
    fit(model, tmp_path / "run", watcher)
    name = "edit/so_far/consistency/tfidf_cosine_plain_words/generated"
    assert 0.0 <= watcher.last[name] <= 1.0
    free = {
        line["case_id"]: line["prompt"] + line["said"] for line in lines(tmp_path / "run")[-100:] if line["kind"] == "fluency"
    }
    assert free


def test_references_of_the_relation_come_first(tmp_path):
    found = References.load(*references(tmp_path))
    assert list(found.of(EditRequest("{} is in", "x", "Rome", relation="P19"))) == ["Born in Rome."]
    assert list(found.of(EditRequest("{} is in", "x", "Rome", relation="P1"))) == ["Rome was not built in a day."]
    assert list(found.of(EditRequest("{} is in", "x", "Oslo"))) == [] and found.fitted_on == "plain_words"


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [([{"target": "Rome"}], "row 1: field 'text'"), ([{"target": "", "text": "x"}], "row 1: field 'target'")],
)
def test_a_reference_without_a_field_is_named(tmp_path, rows, sentence):
    with pytest.raises(EditError, match=sentence):
        References.load(*references(tmp_path, rows))
    with pytest.raises(EditError, match=r"nowhere\.jsonl cannot be read"):
        References.load("nowhere.jsonl", references(tmp_path)[1])
    with pytest.raises(EditError, match="needs a vocabulary"):
        Generations(text_tokens=10, references=references(tmp_path)[0])
