"""The tokenizer: one token per word of the world, bytes for everything else."""

import pytest

from lit_edit.world.facts import World
from lit_edit.world.tokenizer import END, build_tokenizer, words


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(World())


def test_deterministic(tokenizer):
    assert build_tokenizer(World()).backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_words_of_the_world_are_single_tokens(tokenizer):
    assert all(len(ids) == 1 for ids in tokenizer([f" {word}" for word in words(World())])["input_ids"])


@pytest.mark.parametrize("text", [" The birthplace of Ann is", " naïve — 漢字 🙂", " tabs\tand\nlines", " 12 x"])
def test_round_trip_of_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_name_has_the_same_tokens_first_or_later(tokenizer):
    person = World().subjects[0]
    first = tokenizer(f"{person} speaks")["input_ids"]
    assert len(first) == 3
    assert tokenizer(f"At home {person} speaks")["input_ids"][2:] == first


def test_nothing_is_added_and_offsets_point_into_the_text(tokenizer):
    person = World().subjects[0]
    text = f"The profession of {person} is"
    coded = tokenizer(text, return_offsets_mapping=True)
    assert tokenizer.bos_token_id not in coded["input_ids"]
    assert [text[a:b].strip() for a, b in coded["offset_mapping"]] == text.split()
    assert tokenizer.bos_token == tokenizer.eos_token == tokenizer.pad_token == END
