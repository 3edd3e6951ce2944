"""PRUNE's generation tasks: prompts, judgement, and the released code's mistakes under ``legacy``."""

import pytest
import torch
from helpers import Prescribed, measured, numbers, scorer, state_of, write

from lit_edit.errors import EditError
from lit_edit.probes import OpenDomainQA, Reasoning, Summarisation
from lit_edit.probes.rouge import rouge, rouge_l


def problems(tmp_path, golds=("13", "1,250", "-4")):
    rows = [{"question": f"Sum {i}?", "answer": f"Add them.\nDone.\n#### {gold}"} for i, gold in enumerate(golds)]
    return write(tmp_path / "gsm8k.jsonl", rows)


def test_reasoning_prompt_and_numbers(tmp_path):
    fake = Prescribed({"Sum 0": " $130", "Sum 1": " 1250.", "Sum 2": " -4 or 5"})
    path = problems(tmp_path)
    assert measured(Reasoning(path), fake)[:, 0].tolist() == [0, 1, 1]
    assert fake.tokens == 5 and fake.prompts[0] == (
        "Q: Sum 0? A:Let's think step by step. Add them.\nDone.\n Therefore, the answer (arabic numerals) is:"
    )
    legacy = Reasoning(path, legacy=True)
    assert measured(legacy, fake)[:, 0].tolist() == [1, 0, 1], "a gold text inside another number counts, a comma does not"
    assert numbers(legacy, fake) == {"accuracy/generated": pytest.approx(2 / 3)}


def test_reasoning_without_a_number_is_named(tmp_path):
    with pytest.raises(EditError, match=r"row 2, field 'answer' holds 'Add them.\\nDone.\\n#### many' at its end"):
        Reasoning(problems(tmp_path, ("3", "many"))).items()


def test_rouge_by_hand():
    # unigrams: 4 common of 6 and 5; bigrams: "the cat", "the mat" of 5 and 4; subsequence: the cat the mat
    assert rouge("The cat sat on the mat", "the cat, the mat!!! x") == pytest.approx((8 / 11, 4 / 9, 8 / 11))
    assert rouge("", "a") == rouge("", "") == (0.0, 0.0, 0.0)
    assert rouge("a a a", "a") == pytest.approx((0.5, 0.0, 0.5)), "counts are clipped"
    assert rouge_l(["b", "a"], ["a", "b"]) == 0.5


def test_summarisation_and_its_13_characters(tmp_path):
    rows = [{"dialogue": f"Ann {i}: hi\nBob: hi", "summary": "Ann greets Bob"} for i in range(3)]
    path = write(tmp_path / "samsum.jsonl", rows)
    long = " Ann greets Bob and Bob greets Ann again and again and again and again and again"
    said = {"Ann 0": " Ann greets Bob", "Ann 1": f" no. TL;DR:{long}", "Ann 2": ""}
    fake = Prescribed(said)
    found = numbers(Summarisation(path), fake)
    assert fake.prompts[0] == "Ann 0: hi\nBob: hi\nTL;DR:" and fake.tokens == 25
    assert found["rouge/generated"] == pytest.approx(
        (found["rouge_1/generated"] + found["rouge_2/generated"] + found["rouge_l/generated"]) / 3
    )
    default = measured(Summarisation(path), fake)
    assert default[0].tolist() == [1, 1, 1] and default[2].tolist() == [0, 0, 0]
    legacy = measured(Summarisation(path, legacy=True), fake)
    # " Ann greets Bob" ended early: the end token "<eos>" and 8 more characters go
    assert legacy[0].tolist() == pytest.approx(rouge(" Ann gr", "Ann greets Bob"))
    assert len(fake.encoder.encode(said["Ann 1"])[0]) >= 25
    assert legacy[1].tolist() == pytest.approx(rouge(long[:-13], "Ann greets Bob"))
    assert legacy[2].tolist() == [0, 0, 0]


QUESTIONS = [
    {"question": "first", "answer": ["the Beatles", "Wings"], "output": ["They were in Liverpool."]},
    {"question": "second", "answer": ["Rome"], "doc": "Rome is old."},
    {"question": "third", "answer": ["New York"]},
]


def test_question_prompts_with_and_without_a_passage(tmp_path):
    fake = Prescribed({"": " x"})
    measured(OpenDomainQA(write(tmp_path / "nq.jsonl", QUESTIONS)), fake)
    refer = "Refer to the passage below and answer the following question."
    assert fake.tokens == 20 and fake.prompts == [
        f"{refer} Passage: They were in Liverpool. Question: first. Answer:",
        f"{refer} Passage: Rome is old. Question: second. Answer:",
        "Answer the following question. Question: third. Answer:",
    ]


def test_a_run_of_words_answers(tmp_path):
    path = write(tmp_path / "nq.jsonl", QUESTIONS)
    fake = Prescribed({"first": " It was The Beatles, of course.", "second": " Romeo", "third": " Answer: new york city"})
    assert numbers(OpenDomainQA(path), fake) == {"exact_match/generated": pytest.approx(2 / 3)}


def released(texts, golds):
    """The released loop, for comparison."""
    from lit_edit.probes.downstream import normalised

    flag, count = False, 0
    for predict in texts:
        words = normalised(predict.split("Answer:")[-1].replace("\n", " ")).split(" ")

        def right(text):
            return normalised(text) in {normalised(gold) for gold in golds}

        if right(words[0]) or right(words[-1]):
            count += 1
            continue
        for i in range(len(words) - 1):
            output = words[i]
            if right(output):
                count += 1
                continue
            for j in range(i + 1, len(words)):
                output = output + " " + words[j]
                if right(output):
                    count += 1
                    flag = True
                    break
            if flag:
                break
    return count / len(texts)


TEXTS = [
    "in Rome or Rome they say",
    "it is old Rome city now",
    "I say new york is big",
    "well I say new york is big",
    "go to Rome today",
    "Rome",
    "new york here",
    "no",
]


@pytest.mark.parametrize("order", [range(8), reversed(range(8)), [0, 1, 4, 5, 7], [4, 4, 3, 4, 4, 0]])
def test_the_flag_that_is_never_taken_back(order, tmp_path):
    texts = [TEXTS[i] for i in order]
    path = write(tmp_path / "nq.jsonl", [{"question": f"<{i}>", "answer": ["Rome", "New York"]} for i in range(len(texts))])
    fake = Prescribed({f"<{i}>": text for i, text in enumerate(texts)})
    wanted = released(texts, ["Rome", "New York"])
    for batch in (1, 3, 64):
        assert numbers(OpenDomainQA(path, legacy=True), fake, batch)["exact_match/generated"] == pytest.approx(wanted)
    honest = sum(text != "no" for text in texts) / len(texts)
    assert numbers(OpenDomainQA(path), fake)["exact_match/generated"] == pytest.approx(honest)


def test_how_many_are_asked_by_default(tmp_path):
    path = problems(tmp_path, ["1"] * 400)
    assert len(Reasoning(path).items()) == 358 and len(Reasoning(path, full=True).items()) == 400
    assert len(Reasoning(path, items=5).items()) == 5
    assert OpenDomainQA.published == 261 and Summarisation.published == 149


def test_batches_change_nothing_and_nothing_is_left_behind(shared):
    real = scorer("llama", True)
    real.anatomy.model.train()
    before = state_of(real)
    for task, file in ((Reasoning, "gsm8k"), (OpenDomainQA, "nq_open")):
        probe = task(str(shared / "data" / "probes" / f"{file}.jsonl"), items=7)
        assert torch.equal(measured(probe, real, 1), measured(probe, real, 4))
    assert state_of(real) == before
    real.encoder.tokenizer.padding_side = "left"
    try:
        before = state_of(real)
        assert measured(probe, real).shape == (7, 4) and state_of(real) == before
    finally:
        real.encoder.tokenizer.padding_side = "right"
