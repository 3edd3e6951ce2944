"""The six label tasks and PRUNE's entailment: prompts, examples, parsing, both scorings."""

import json

import pytest
import torch
from helpers import Prescribed, measured, numbers, scorer, state_of, write

from lit_edit.errors import EditError
from lit_edit.probes import MMLU, MRPC, NLI, RTE, SST2, CoLA, Entailment

PAIR = {"sentence1": "A cat sits.", "sentence2": "A cat sleeps.", "label": 1}
CHOICES = {"question": "Which?", "choices": ["w", "x", "y", "z"], "answer": 2}
PROMPTS = {
    SST2: ({"sentence": "a fine film ", "label": 1}, "Review :a fine film \nSentiment :"),
    MRPC: (
        PAIR,
        "Are the sentences paraphrases of each other.\nSentence 1: A cat sits.\nSentence 2: A cat sleeps.\nAnswer:",
    ),
    CoLA: (
        {"sentence": "Bill sleeps.", "label": 1},
        "Is this sentence linguistically acceptable?\nSentence: Bill sleeps.\nAnswer: ",
    ),
    RTE: (PAIR, "A cat sits.\nquestion: A cat sleeps. True or False?\nanswer:"),
    NLI: ({**PAIR, "label": "entailment"}, "A cat sits. entails the A cat sleeps. True or False? Answer:"),
    MMLU: (CHOICES, "Question: Which?\n(A) w\n(B) x\n(C) y\n(D) z\nAnswer:"),
}
EXAMPLES = {
    SST2: "Review : a fine film \nSentiment : positive\n",
    MRPC: PROMPTS[MRPC][1] + " Yes\n",
    CoLA: PROMPTS[CoLA][1] + "Yes\n",
    RTE: PROMPTS[RTE][1] + " False\n",
    NLI: PROMPTS[NLI][1] + " True\n",
    MMLU: PROMPTS[MMLU][1] + " C\n",
}


def many(row, count=14):
    return [row] * count


def reviews(tmp_path, labels=(1, 0, 1, 0)):
    rows = many({"sentence": "kept", "label": 0}, 10)
    rows += [{"sentence": f"film {i}.", "label": label} for i, label in enumerate(labels)]
    return write(tmp_path / "reviews.jsonl", rows)


@pytest.mark.parametrize("task", PROMPTS, ids=lambda task: task.__name__)
def test_prompts_and_examples_are_the_published_ones(task, tmp_path):
    row, prompt = PROMPTS[task]
    path = write(tmp_path / "items.jsonl", many(row))
    fake = Prescribed({"": " nothing"})
    measured(task(path), fake)
    assert fake.prompts == [prompt] * 4 and fake.tokens == 5
    fake = Prescribed({"": " nothing"})
    measured(task(path, shots=2), fake)
    assert fake.prompts[0] == EXAMPLES[task] * 2 + prompt


def test_entailment_asks_everything_in_one_token(tmp_path):
    path = write(
        tmp_path / "rte.jsonl", [{**PAIR, "label": 0}, {**PAIR, "label": "not_entailment"}, {**PAIR, "sentence1": "No."}]
    )
    fake = Prescribed({"A cat sits.": " True", "No.": " Perhaps"})
    found = numbers(Entailment(path), fake)
    assert fake.prompts[0] == "A cat sits. entails the A cat sleeps.. True or False? answer:" and fake.tokens == 1
    assert found["accuracy/generated"] == pytest.approx(1 / 3) and found["accuracy_of_valid/generated"] == 0.5
    assert found["invalid/generated"] == pytest.approx(1 / 3)


def test_both_scorings_from_one_pass(tmp_path):
    said = {"film 0": " positive", "film 1": " Negative!", "film 2": " who knows", "film 3": " positive"}
    liked = {"film 0": "positive", "film 1": "negative", "film 2": "positive", "film 3": "negative"}
    probe = SST2(reviews(tmp_path))
    rows = measured(probe, Prescribed(said, liked))
    assert rows.tolist() == [[1, 1, 1], [0, 0, 0], [1, -1, 1], [0, 1, 0]] and rows.dtype == torch.float64
    found = probe.summarise(rows)
    assert found["accuracy/generated"] == 0.5 and found["invalid/generated"] == 0.25
    # class 1: TP 1, FP 1, FN 1; class 0: TP 1, FP 0, FN 1
    assert found["f1/generated"] == pytest.approx(0.5 * 1 / 2 + 0.5 * 2 / 3)
    assert found["f1/likelihood"] == found["accuracy/likelihood"] == found["mcc/likelihood"] == 1.0
    assert set(found) == {
        *(f"{name}/generated" for name in ("f1", "accuracy", "mcc", "invalid")),
        *(f"{name}/likelihood" for name in ("f1", "accuracy", "mcc")),
    }
    assert probe.shown in found and len(probe.columns) == rows.shape[1]


PARSED = [
    (SST2, " Negative, not positive", 0, 1),
    (SST2, " unpositively", -1, 1),
    (SST2, "", -1, -1),
    (SST2, " negative\nReview :x\nSentiment : positive", 0, 1),
    (MRPC, " I do not know", -1, 0),
    (MRPC, " No. Yes", 0, 1),
    (CoLA, "YES", 1, 1),
    (RTE, " True, not false", 1, 0),
    (NLI, " False, not true", 0, 1),
    (MMLU, " A\n", 0, 0),
    (MMLU, " (B) x", 1, -1),
    (MMLU, " a triangle", -1, -1),
    (MMLU, " extra\nB", 1, 0),
    (MMLU, " D", 3, -1),
]


@pytest.mark.parametrize(("task", "said", "default", "legacy"), PARSED)
def test_parsing(task, said, default, legacy, tmp_path):
    path = write(tmp_path / "items.jsonl", many(PROMPTS[task][0]))
    for wanted, probe in ((default, task(path)), (legacy, task(path, legacy=True))):
        assert measured(probe, Prescribed({"": said}))[:, 1].tolist() == [wanted] * 4


def test_legacy_rte_turns_labels_round(tmp_path):
    rows = many(PAIR, 10) + [{**PAIR, "sentence1": f"Case {i}.", "label": i % 2} for i in range(6)]  # 0 = entailment
    path = write(tmp_path / "rte.jsonl", rows)
    healthy = {f"Case {i}.": " False" if i % 2 else " True" for i in range(6)}
    fake = Prescribed(healthy, {part: text.strip() for part, text in healthy.items()})
    assert numbers(RTE(path), fake)["f1/generated"] == numbers(RTE(path), fake)["f1/likelihood"] == 1.0
    inverted = numbers(RTE(path, legacy=True, shots=1), fake)
    assert inverted["f1/generated"] == inverted["f1/likelihood"] == 0.0 and inverted["mcc/generated"] == -1.0
    assert fake.prompts[-1].startswith(PROMPTS[RTE][1] + " True\n"), "the released examples are inverted, too"


def test_ties_and_broken_models(tmp_path):
    path = write(tmp_path / "mmlu.jsonl", many(CHOICES, 11))
    tied = Prescribed({"": ""}, {"": "none of them"})
    assert measured(MMLU(path), tied)[0, 2] == 0 and measured(MMLU(path, legacy=True), tied)[0, 2] == -1
    assert MMLU(path).likeliest(torch.tensor([[1.0, float("nan"), 2.0, 3.0], [2.0, 1.0, 2.0, 3.0]])) == [-1, 1]


def test_likelihood_is_the_mean_nll_of_the_answer_after_a_blank(tmp_path):
    path = write(tmp_path / "mmlu.jsonl", [{**CHOICES, "question": f"Which of {i}?"} for i in range(13)])
    real, probe = scorer(), MMLU(path)
    rows = measured(probe, real)
    for item, row in zip(probe.items(), rows.tolist(), strict=True):
        nll = []
        for letter in "ABCD":
            ids = real.encoder.encode(f"{item.prompt} {letter}")[0]
            first = len(real.encoder.encode(item.prompt)[0])
            log_p = real.anatomy.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            nll.append(float(-torch.stack([log_p[i - 1, ids[i]] for i in range(first, len(ids))]).mean()))
        assert row[2] == nll.index(min(nll))


def test_which_items_are_asked(tmp_path):
    path = reviews(tmp_path, labels=[0, 1] * 20)
    assert [item.prompt[8:15] for item in SST2(path, items=3).items()] == ["film 0.", "film 1.", "film 2."]
    assert len(SST2(path, items=3, full=True).items()) == len(SST2(path).items()) == 40
    assert SST2(path, name="mine").name == "mine" and SST2(path).name == "sst2"


def test_long_prompts_lose_their_beginning_and_examples_are_left_out(tmp_path):
    rows = [{"sentence": "word " * 12, "label": 1} for _ in range(10)]
    rows += [{"sentence": "word " * 400, "label": 1}, {"sentence": "short", "label": 1}]
    fake = Prescribed({"": " Yes"})
    measured(CoLA(write(tmp_path / "cola.jsonl", rows), shots=10), fake)
    encode = fake.encoder.encode
    long, short = (len(encode(prompt)[0]) for prompt in fake.prompts)
    assert long <= fake.anatomy.positions - 6 < len(encode("word " * 400)[0]) and fake.prompts[0].endswith("\nAnswer: ")
    assert short <= fake.anatomy.positions - 6 and 1 <= fake.prompts[1].count("Answer: Yes\n") < 10
    assert fake.prompts[1].startswith("Is this") and "short\nAnswer: " in fake.prompts[1]


@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama", True)])
def test_batches_padding_and_order_change_nothing(family, bos, tmp_path):
    rows = [{"sentence": "Paris is big. " * (1 + i % 5), "label": i % 2} for i in range(19)]
    path = write(tmp_path / "cola.jsonl", rows)
    real = scorer(family, bos)
    one = measured(CoLA(path, shots=1), real, 1)
    real.encoder.tokenizer.padding_side = "left"
    try:
        assert torch.equal(measured(CoLA(path, shots=1), real, 64), one)
    finally:
        real.encoder.tokenizer.padding_side = "right"
    assert torch.equal(measured(CoLA(path, shots=1), scorer(family, bos, tokens_at_once=200), 4), one)


def test_nothing_is_left_behind(tmp_path):
    real = scorer("llama", True)
    real.anatomy.model.train()
    real.anatomy.model.requires_grad_(True)
    before = state_of(real)
    measured(SST2(reviews(tmp_path), shots=3), real)
    assert state_of(real) == before


MISTAKES = {
    "another schema": (
        [{"text": "x", "mark": 1}],
        "row 1 has the fields text, mark; the probe sst2 reads records with the fields sentence, label",
    ),
    "missing field": ([{"sentence": "x", "label": 0}, {"sentence": "y"}], "row 2, field 'label' is missing"),
    "hidden label": ([{"sentence": "x", "label": -1}], "row 1, field 'label' holds -1; a label is 0, 1"),
    "two signs": ([{"sentence": "x", "label": "--1"}], "row 1, field 'label' holds '--1'"),
    "endless number": ([{"sentence": "x", "label": "1" * 5000}], "row 1, field 'label' holds '1111"),
    "truth value": ([{"sentence": "x", "label": True}], "row 1, field 'label' holds True"),
    "no text": ([{"sentence": ["x"], "label": 1}], "row 1, field 'sentence' holds a list"),
    "no object": ([{"sentence": "x", "label": 1}, 3], "row 2 is a number"),
    "too few": (
        [{"sentence": "x", "label": 1}] * 10,
        "holds 10 records, too few for the probe sst2; the first 10 are kept for examples",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_rows_are_named(mistake, tmp_path):
    rows, sentence = MISTAKES[mistake]
    with pytest.raises(EditError) as found:
        SST2(write(tmp_path / "items.jsonl", rows)).items()
    assert sentence in str(found.value) and "items.jsonl" in str(found.value)


def test_bad_files_are_named(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes('{"sentence": "naïve", "label": 1}'.encode("latin-1"))
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "items.txt").write_text("x")
    for name, sentence in {
        "latin.jsonl": "row 1, field 'sentence' is not UTF-8 text",
        "empty.jsonl": "is empty; the probe sst2 reads records with the fields sentence, label",
        "items.txt": "is no kind of file that is read here; the probe sst2 reads",
        "none.jsonl": "There is no file",
    }.items():
        with pytest.raises(EditError, match=sentence):
            SST2(str(tmp_path / name)).items()
    for options in ({"shots": 11}, {"shots": -1}, {"items": 0}):
        with pytest.raises(EditError, match=next(iter(options))):
            SST2("x.jsonl", **options)


def test_csv_and_json_lists_and_hub_subsets(tmp_path, monkeypatch):
    (tmp_path / "items.csv").write_text("sentence,label\n" + "a film,1\n" * 12)
    (tmp_path / "items.json").write_text(json.dumps(many({"sentence": "a film", "label": 1}, 12)))
    for name in ("items.csv", "items.json"):
        assert [item.label for item in SST2(str(tmp_path / name)).items()] == [1, 1]
    asked = []
    monkeypatch.setattr(
        "datasets.load_dataset",
        lambda *names, **options: (
            asked.append((names, options)) or {"validation": many({"sentence": "a film", "label": 0}, 11)}
        ),
    )
    assert len(SST2("nyu-mll/glue/sst2:validation").items()) == 1
    assert asked == [(("nyu-mll/glue",), {"name": "sst2"})]


@pytest.mark.parametrize(
    ("task", "file", "size"),
    [
        (SST2, "sst2", 856),
        (MRPC, "mrpc", 258),
        (CoLA, "cola", 644),
        (RTE, "rte", 262),
        (NLI, "nli", 2489),
        (MMLU, "mmlu", 1516),
    ],
)
def test_real_items_on_a_real_model(task, file, size, shared):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lit_edit.anatomy import Anatomy
    from lit_edit.prompts import Encoder
    from lit_edit.scoring import Scorer

    folder = shared / "models" / "stories260K"
    anatomy = Anatomy.of(AutoModelForCausalLM.from_pretrained(folder))
    real = Scorer(anatomy, Encoder(AutoTokenizer.from_pretrained(folder), anatomy.positions))
    path = str(shared / "data" / "probes" / f"{file}.jsonl")
    assert len(task(path, full=True).items()) == size - 10
    probe = task(path, items=12)
    rows = measured(probe, real)
    assert torch.equal(rows, measured(probe, real, 5))
    assert set(rows[:, 2].int().tolist()) <= set(range(len(probe.answers)))
    assert all(-1 <= value <= 1 for value in probe.summarise(rows).values())
