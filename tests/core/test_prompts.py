"""Rows of token ids: the subject's last token and the target's tokens, whatever the tokenizer puts around them."""

import copy

import pytest
import torch

from lit_edit.errors import EditError, MalformedRecord
from lit_edit.prompts import Encoder, right_pad, sample_contexts
from lit_edit.request import EditRequest
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(params=[False, True], ids=["plain", "bos"])
def encoder(request):
    return Encoder(tiny_tokenizer(request.param))


def text_of(encoder, ids):
    return encoder.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


PROMPTS = [
    ("The capital of {} is", "France", "Berlin"),
    ("{}'s mother tongue is", "Marie Curie", "English"),
    ("{}, seen in", "Ada Lovelace", "Rome"),
    ("In {} there are", "Kyōto", "old cities"),
    ("{} is big. Look at", "東京", "Zürich"),
    ("Paris is not {}, but Paris is", "Paris", "Rome"),  # the prompt names the subject again
    ("Rome, Rome and {}", "Rome", "Vienna"),
]


@pytest.mark.parametrize(("prompt", "subject", "target"), PROMPTS)
def test_the_subject_token_holds_the_subjects_last_character(encoder, prompt, subject, target):
    contexts = ("You were in Rome. {}", "{}")
    rows = encoder.rows(EditRequest(prompt, subject, target), contexts)
    assert len(rows.rewriting) == 3
    for row, context in zip(rows.rewriting, ("{}", *contexts), strict=True):
        head = context.split("{}")[0] + prompt.split("{}")[0]
        whole = context.replace("{}", prompt.replace("{}", subject)) + f" {target}"
        ids, spans = encoder.encode(whole)
        assert row.ids == tuple(ids[:-1])
        end = len(head) + len(subject)
        start, stop = spans[row.subject]
        assert start < end <= stop
        # Bytes of one character may be several tokens: it is the last that covers it.
        assert all(not (a < end <= b) for a, b in spans[row.subject + 1 :])
        assert text_of(encoder, ids[: row.subject + 1]).startswith(head + subject)
        # Targets: what the model should say after the prompt, token by token.
        positions, labels = zip(*row.labels, strict=True)
        assert text_of(encoder, labels) == f" {target}"
        assert list(positions) == list(range(len(row.ids) - len(labels), len(row.ids)))
    assert text_of(encoder, rows.kl.ids) == subject and rows.kl.subject == len(rows.kl.ids) - 1
    for read, row in zip(rows.reading, rows.rewriting, strict=True):
        assert read.ids == row.ids[: row.subject + 1] and read.subject == row.subject == len(read.ids) - 1


def test_bos_stands_in_front_and_shifts_everything_by_one():
    plain, bos = (Encoder(tiny_tokenizer(flag)).rows(EditRequest(*PROMPTS[0]), ()) for flag in (False, True))
    assert bos.rewriting[0].ids == (1, *plain.rewriting[0].ids)
    assert bos.rewriting[0].subject == plain.rewriting[0].subject + 1
    assert bos.kl.ids == (1, *plain.kl.ids)


def test_a_token_appended_at_the_end_is_dropped():
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 0)]
    )
    assert Encoder(tokenizer).encode("Rome is old")[0] == Encoder(tiny_tokenizer(True)).encode("Rome is old")[0]


def test_the_tokenizers_padding_side_does_not_matter():
    left = copy.deepcopy(tiny_tokenizer())
    left.padding_side = "left"
    left.truncation_side = "left"
    request = EditRequest(*PROMPTS[1])
    assert Encoder(left).rows(request, ("I was. {}",)) == Encoder(tiny_tokenizer()).rows(request, ("I was. {}",))
    assert left.padding_side == "left"


def test_blanks_around_the_answer_do_not_matter(encoder):
    assert encoder.rows(EditRequest("{} is", "Rome", "  old "), ()) == encoder.rows(EditRequest("{} is", "Rome", "old"), ())


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(EditError, match="fast tokenizer"):
        Encoder(Slow())


def ascii_words():
    """A tokenizer of whole words that throws away whatever is not ASCII."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"Rome": 0, "is": 1, "<eos>": 2, "<unk>": 3}, unk_token="<unk>"))
    words.normalizer = normalizers.Replace(Regex("[^ -~]"), "")
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return Encoder(PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>"))


def test_a_target_or_subject_without_a_token_is_refused():
    """A tokenizer may throw away characters, and with them the whole answer."""
    encoder = ascii_words()
    assert encoder.rows(EditRequest("{} is", "Rome", "Rome"), ()).rewriting[0].labels == ((1, 0),)
    with pytest.raises(MalformedRecord, match="no token of its own"):
        encoder.rows(EditRequest("{} is", "Rome", "東京"), ())
    with pytest.raises(MalformedRecord, match="subject"):
        encoder.rows(EditRequest("{} is", "東京", "Rome"), ())


def test_right_pad():
    inputs = right_pad([[5, 6, 7], [8]], 9, torch.device("cpu"))
    assert inputs["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_contexts_are_the_seeds_alone(encoder):
    model, starts = tiny_model("llama"), ("The", "I")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = sample_contexts(model, encoder, starts, count=4, lengths=(8,), seed=11)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert sample_contexts(model, encoder, starts, count=4, lengths=(8,), seed=11) == one
    assert sample_contexts(model, encoder, starts, count=4, lengths=(8,), seed=12) != one
    assert len(one) == 4 and all(template.endswith(". {}") and template.count("{") == 1 for template in one)
    assert [template.startswith(start) for template, start in zip(one, ("The", "I", "The", "I"), strict=True)] == [True] * 4


@pytest.mark.parametrize(
    ("prompt", "subject", "target", "field"),
    [
        ("no place", "Rome", "old", "prompt"),
        ("{} and {}", "Rome", "old", "prompt"),
        ("{} is", " ", "old", "subject"),
        ("{} is", "Rome", "", "target_new"),
    ],
)
def test_malformed_requests(prompt, subject, target, field):
    with pytest.raises(MalformedRecord, match=field) as caught:
        EditRequest(prompt, subject, target)
    assert caught.value.field == field
