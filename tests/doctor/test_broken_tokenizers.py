"""Tokenizers broken on purpose, one for every check that looks at the tokenizer."""

import copy

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lit_edit.doctor.finding import Verdict
from lit_edit.doctor.subjects import PROMPTS
from lit_edit.prompts import Encoder
from tests.doctor.cases import finding, opened, with_logits
from tests.tiny import TEXT, tiny_model, tiny_tokenizer


class Slow:
    """A tokenizer that reports no offsets."""

    is_fast = False

    def __init__(self):
        self.all_special_ids = []

    def __len__(self):
        return 320


class Shifted:
    """A tokenizer whose offsets belong to the token before."""

    def __init__(self):
        self.real = tiny_tokenizer()

    def __getattr__(self, name):
        return getattr(self.real, name)

    def __len__(self):
        return len(self.real)

    def __call__(self, text, **options):
        found = self.real(text, **options)
        if "offset_mapping" in found:
            found["offset_mapping"] = [(0, 0), *found["offset_mapping"][:-1]]
        return found


def fresh(**tokens):
    """A copy of the tiny tokenizer that may be changed."""
    return PreTrainedTokenizerFast(tokenizer_object=copy.deepcopy(tiny_tokenizer().backend_tokenizer), **tokens)


def bare(lower=False, words=True, alphabet=()):
    """A character-level BPE tokenizer: with ``words=False`` it merges over blanks."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    replacement = pre_tokenizers.Metaspace(prepend_scheme="never", split=words)
    tokenizer.pre_tokenizer, tokenizer.decoder = replacement, decoders.Metaspace(prepend_scheme="never")
    text = [*TEXT, 'Ada Lovelace was born in Paris, wasn\'t she? 1815 42.7 % 1,000 "The" New York iPhone: Zürich'] * 3
    text = [line.replace("東京", "").replace("ō", "o") for line in text]
    tokenizer.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=320, special_tokens=["<unk>", "<eos>"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>")


def a_model_that_wants_bos(_):
    def know(logits, kwargs):
        """Behind BOS, the next token is known."""
        ids = kwargs["input_ids"]
        known = torch.nn.functional.one_hot(ids.roll(-1, 1), logits.shape[-1]) * 50.0
        if known.shape != logits.shape:  # only picked positions came through the head
            known = known[:, -logits.shape[1] - 1 : -1]
        return torch.where((ids[:, :1] == 1)[..., None], logits + known, logits)

    return opened(with_logits(tiny_model("llama"), know), fresh(eos_token="<eos>", bos_token="<bos>"))


def ends_differ(_):
    model = tiny_model("llama")
    model.generation_config.eos_token_id = [5]
    return opened(model)


def no_end(_):
    model = tiny_model("llama")
    model.generation_config.eos_token_id = None
    return opened(model, fresh())


def answers_vary(monkeypatch):
    real = Encoder.with_target

    def varying(self, prompt, target):
        ids, spans, first = real(self, prompt, target)
        return [*ids, 7] if prompt.endswith(",") else ids, spans, first

    monkeypatch.setattr(Encoder, "with_target", varying)
    return opened()


BROKEN = {
    ("tokenizer", "kind"): [
        (lambda _: opened(tokenizer=Slow()), "cannot", "without character offsets"),
        (lambda _: opened(tokenizer=Shifted()), "off", "wrong character offsets"),
    ],
    ("tokenizer", "BOS"): [(a_model_that_wants_bos, "note", "text is likelier with it")],
    ("tokenizer", "EOS"): [
        (no_end, "note", "none"),
        (ends_differ, "note", "the checkpoint ends texts at [5]"),
    ],
    ("tokenizer", "padding token"): [
        (lambda _: opened(tokenizer=fresh(pad_token="[PAD]")), "off", "[PAD] (320) has no embedding")
    ],
    ("tokenizer", "answers"): [
        (lambda _: opened(tokenizer=bare(words=False)), "off", "prompts end in other tokens"),
        (answers_vary, "note", "other tokens behind another prompt"),
    ],
    ("tokenizer", "round trip"): [
        (lambda _: opened(tokenizer=bare(lower=True)), "off", "plain text"),
        (lambda _: opened(tokenizer=bare()), "note", "other scripts"),
    ],
    **{("subject", name): [(lambda _: opened(tokenizer=Shifted()), "off", "while decoding says")] for name in PROMPTS},
}


@pytest.mark.parametrize(
    ("check", "broken", "verdict", "phrase"), [(check, *case) for check, cases in BROKEN.items() for case in cases]
)
def test_a_broken_tokenizer_is_found_out(check, broken, verdict, phrase, monkeypatch):
    found = finding(*check, broken(monkeypatch))
    assert (found.verdict, found.group, found.name) == (verdict, *check), found
    assert phrase in found.found, found
    assert found.advice.endswith("."), "and what to do about it"


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("check", BROKEN)
def test_a_healthy_tokenizer_is_not(check, bos):
    assert finding(*check, opened(tokenizer=tiny_tokenizer(bos))).verdict is Verdict.OK


def test_a_subject_that_the_tokenizer_does_not_keep_is_not_passed_off_as_found():
    found = finding("subject", "in CJK", opened(tokenizer=bare()))
    assert found.verdict is Verdict.NOTE and "not checked" in found.found


def test_more_tokens_than_embeddings():
    tokenizer = fresh(eos_token="<eos>", pad_token="<eos>")
    tokenizer.add_tokens(["<tool>", "<call>"])
    found = finding("shape", "vocabulary", opened(tokenizer=tokenizer))
    assert found.verdict is Verdict.OFF and "ids up to 321" in found.found and "resize_token_embeddings(322)" in found.advice


def test_bos_is_shown_as_it_is():
    assert finding("tokenizer", "BOS", opened(tokenizer=tiny_tokenizer(True))).values["added"] == [1]
    assert "is not added" in finding("tokenizer", "BOS", opened(tokenizer=tiny_tokenizer(False))).found
    assert "adds none" in finding("tokenizer", "BOS", opened(tokenizer=fresh(eos_token="<eos>"))).found


def test_an_end_that_is_appended_to_texts_is_dropped():
    tokenizer = fresh(eos_token="<eos>")
    template = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 0)])
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    found = finding("tokenizer", "EOS", opened(tokenizer=tokenizer))
    assert found.values["appended"] and "appends it" in found.found


@pytest.mark.parametrize("name", PROMPTS)
def test_the_subjects_last_token_is_shown_in_brackets(name):
    found = finding("subject", name, opened())
    prompt, subject, context = PROMPTS[name]
    shown = found.found
    whole = context.replace("{}", prompt).replace("{}", subject)
    assert shown.replace("[", "").replace("]", "") == whole, "nothing is added, nothing lost"
    end = whole.index(subject) + len(subject)
    # The bracket closes at the subject's end, or behind what its last token holds besides.
    closed = shown.index("]") - 1
    assert closed >= end and shown.index("[") < end
    assert found.values["index"] == found.values["decoded_index"]
