"""Generated text is the model's own: nothing of its batch, its settings or the world's random state plays in."""

import math

import pytest
import torch
from transformers import GenerationConfig

from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError, MalformedRecord
from lit_edit.passes.forward import greedy
from lit_edit.passes.generation import _pads_well as pads_well
from lit_edit.passes.generation import continuation, cut, end_tokens, generate
from lit_edit.prompts import Encoder
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

PROMPTS = (
    "The Eiffel",
    "Ada Lovelace's mother tongue is",
    "I was born in Rome. You were born in Vienna. She is",
    "Because",
    "It was created by Sony. naïve 東京",
)


def set_up(family="gpt2", bos=False, **overrides):
    model = tiny_model(family, **overrides)
    for name, parameter in model.named_parameters():
        if "ln_" in name and name.endswith("weight"):
            parameter.data += 1  # else the head's bias alone would decide, whatever the prompt
    return Anatomy.of(model), Encoder(tiny_tokenizer(bos))


def alone(anatomy, encoder, prompt, tokens):
    """The oracle: one row, no padding, no cache."""
    ids = encoder.encode(prompt)[0]
    return continuation(encoder, ids, greedy(anatomy, ids, tokens, end_tokens(anatomy, encoder)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_is_one_at_a_time_is_greedy(family):
    anatomy, encoder = set_up(family, bos=family == "llama")
    together = generate(anatomy, encoder, PROMPTS, 8)
    assert together == [alone(anatomy, encoder, prompt, 8) for prompt in PROMPTS]
    assert together == [generate(anatomy, encoder, [prompt], 8)[0] for prompt in PROMPTS]
    assert pads_well(anatomy, encoder)
    assert len(set(together)) >= 3, "texts that do not depend on their prompts cannot show a mistake"


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "gemma3_text", "opt", "mpt", "falcon"])
def test_sampling_does_not_depend_on_the_batch(family):
    anatomy, encoder = set_up(family)
    together = generate(anatomy, encoder, PROMPTS, 6, top_k=5, seed=3)
    assert together == generate(anatomy, encoder, PROMPTS, 6, top_k=5, seed=3, tokens_at_once=1)
    assert together != generate(anatomy, encoder, PROMPTS, 6, top_k=5, seed=4)
    assert generate(anatomy, encoder, PROMPTS, 6, top_k=1) == generate(anatomy, encoder, PROMPTS, 6)


def test_a_family_that_padding_disturbs_gets_batches_of_equal_length(monkeypatch):
    anatomy, encoder = set_up()
    seen = []
    own = type(anatomy.model).generate

    def watch(self, *args, **kwargs):
        seen.append(kwargs["attention_mask"])
        return own(self, *args, **kwargs)

    monkeypatch.setattr(type(anatomy.model), "generate", watch)
    monkeypatch.setattr("lit_edit.passes.generation._pads_well", lambda *_: False)
    prompts = [*PROMPTS, PROMPTS[3], PROMPTS[0]]
    assert generate(anatomy, encoder, prompts, 4) == [alone(anatomy, encoder, prompt, 4) for prompt in prompts]
    assert all(bool(mask.all()) for mask in seen) and len(seen) == len({len(encoder.encode(p)[0]) for p in PROMPTS})


def test_padding_that_moves_a_rows_numbers_is_found():
    """A model that looks at the padding (as a convolution or a recurrence would)."""
    anatomy, encoder = set_up()

    def mix(_module, _args, out):
        if torch.is_tensor(out):
            return out + out.cumsum(1)
        return out[0] + out[0].cumsum(1), *out[1:]  # of older versions of transformers

    hook = anatomy.blocks[0].register_forward_hook(mix)
    try:
        assert not pads_well(anatomy, encoder)
        assert generate(anatomy, encoder, PROMPTS, 1) == [alone(anatomy, encoder, prompt, 1) for prompt in PROMPTS]
    finally:
        hook.remove()


def test_settings_of_the_checkpoint_do_not_leak_in_and_stay():
    anatomy, encoder = set_up()
    plain = generate(anatomy, encoder, PROMPTS, 8)
    own = GenerationConfig(
        do_sample=True,
        temperature=3.0,
        top_k=300,
        num_beams=3,
        repetition_penalty=5.0,
        no_repeat_ngram_size=1,
        min_new_tokens=3,
        max_length=3,
        eos_token_id=0,
        suppress_tokens=list(range(100, 200)),
        forced_eos_token_id=0,
    )
    anatomy.model.generation_config = own
    said = own.to_dict()
    assert generate(anatomy, encoder, PROMPTS, 8) == plain
    assert anatomy.model.generation_config is own and own.to_dict() == said


def test_every_end_token_ends_a_text():
    anatomy, encoder = set_up()
    ids = encoder.encode(PROMPTS[2])[0]
    row = greedy(anatomy, ids, 8)
    end = next(token for at, token in enumerate(row) if at > 1 and token not in row[:at])
    absent = next(token for token in range(1, anatomy.vocabulary) if token not in row)
    anatomy.model.generation_config.eos_token_id = [absent, end]
    assert end_tokens(anatomy, encoder) == {0, absent, end}
    assert generate(anatomy, encoder, [PROMPTS[2]], 8) == [continuation(encoder, ids, row[: row.index(end)])]
    assert generate(anatomy, encoder, PROMPTS, 8) == [alone(anatomy, encoder, prompt, 8) for prompt in PROMPTS]


def test_until_cuts_at_the_first_of_its_strings():
    anatomy, encoder = set_up("gptj")
    plain = generate(anatomy, encoder, PROMPTS, 10)
    stops = [text[3:5] for text in plain[:2]] + [plain[2][4]]
    found = generate(anatomy, encoder, PROMPTS, 10, until=stops)
    assert found == [cut(text, stops) for text in plain]
    assert any(short != long for short, long in zip(found, plain, strict=True))
    assert cut("abc", ["c", "b"]) == "a" and cut("abc", ["x"]) == "abc" and cut("", ["x"]) == ""


def test_until_spares_the_tokens_behind_it(monkeypatch):
    anatomy, encoder = set_up("gptj")
    text = generate(anatomy, encoder, PROMPTS[:1], 40)[0]
    steps = []
    handle = anatomy.model.register_forward_hook(lambda *_: steps.append(1))
    generate(anatomy, encoder, PROMPTS[:1], 40, until=[text[0]])
    handle.remove()
    assert len(steps) == 1


def test_total_counts_the_prompt():
    anatomy, encoder = set_up("llama")
    lengths = [len(encoder.encode(prompt)[0]) for prompt in PROMPTS]
    most = sorted(lengths)[-2] + 3
    found = generate(anatomy, encoder, PROMPTS, most, total=True)
    wanted = [alone(anatomy, encoder, p, most - n) if n < most else "" for p, n in zip(PROMPTS, lengths, strict=True)]
    assert found == wanted and "" in found and max(lengths) >= most
    encoder.pad = 40  # a letter: what stands behind a finished row must not be taken for text
    assert generate(anatomy, encoder, PROMPTS, most, total=True) == wanted


def test_a_text_ends_where_the_model_has_no_position_left():
    anatomy, encoder = set_up(n_positions=24)
    short, long = "The", "The Eiffel Tower is"
    room = 24 - len(encoder.encode(long)[0])
    assert 0 < room < 20
    found = generate(anatomy, encoder, [long, short], 20)
    assert found == [alone(anatomy, encoder, long, room), alone(anatomy, encoder, short, 20)]
    with pytest.raises(MalformedRecord, match="the model takes 24"):
        generate(anatomy, encoder, [short, PROMPTS[2] * 2], 2)


def test_nothing_is_changed():
    anatomy, encoder = set_up("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    plain = generate(anatomy, encoder, PROMPTS, 5)
    model, tokenizer = anatomy.model.train(), encoder.tokenizer
    model.transformer.h[1].eval()
    model.lm_head.weight.requires_grad_(True)
    tokenizer.padding_side = "right"
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    torch.manual_seed(11)
    state, said = torch.get_rng_state(), tokenizer.backend_tokenizer.to_str()
    assert generate(anatomy, encoder, PROMPTS, 5) == plain
    first = generate(anatomy, encoder, PROMPTS, 5, top_k=5, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    assert generate(anatomy, encoder, PROMPTS, 5, top_k=5, seed=1) == first
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert tokenizer.padding_side == "right" and tokenizer.backend_tokenizer.to_str() == said


def test_modes_come_back_after_an_error(monkeypatch):
    anatomy, encoder = set_up()
    own = anatomy.model.generation_config

    def fail(*_, **__):
        raise RuntimeError("broken")

    monkeypatch.setattr(type(anatomy.model), "generate", fail)
    anatomy.model.train()
    with pytest.raises(RuntimeError, match="broken"):
        generate(anatomy, encoder, PROMPTS[:1], 2)
    assert anatomy.model.training and anatomy.model.generation_config is own


def test_draws_follow_the_renormalised_top_k():
    """One next token, 600 prompts alike: shares are those of the two likeliest tokens."""
    anatomy, encoder = set_up("llama")
    ids = encoder.encode("Sony")[0]
    logits = anatomy.model(torch.tensor([ids])).logits[0, -1].float()
    best = logits.topk(2)
    wanted = dict(
        zip((continuation(encoder, ids, [t]) for t in best.indices.tolist()), best.values.softmax(0).tolist(), strict=True)
    )
    found = generate(anatomy, encoder, ["Sony"] * 600, 1, top_k=2)
    assert set(found) == set(wanted) and len(wanted) == 2 and 0.02 < min(wanted.values()) < 0.4
    for text, p in wanted.items():
        assert abs(found.count(text) / 600 - p) < 4 * math.sqrt(p * (1 - p) / 600)


def test_batches_keep_to_the_budget():
    anatomy, encoder = set_up()
    sizes: list[int] = []
    handle = anatomy.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: sizes.append(kwargs["input_ids"].shape[0] * (kwargs["input_ids"].shape[1] + 4)), with_kwargs=True
    )
    try:
        many = [*PROMPTS] * 4
        small = generate(anatomy, encoder, many, 4, tokens_at_once=90)
    finally:
        handle.remove()
    assert max(sizes) <= 90 and small == generate(anatomy, encoder, many, 4)


def test_a_broken_model_still_answers():
    anatomy, encoder = set_up()
    anatomy.model.lm_head.weight.data.fill_(torch.nan)
    assert len(generate(anatomy, encoder, PROMPTS, 3)) == len(PROMPTS)
    assert len(generate(anatomy, encoder, PROMPTS, 3, top_k=5)) == len(PROMPTS)


def test_what_cannot_be_generated():
    anatomy, encoder = set_up()
    assert generate(anatomy, encoder, [], 3) == []
    for wrong in ({"tokens": 0}, {"tokens": 3, "top_k": 0}, {"tokens": 3, "until": ["", "x"]}):
        with pytest.raises(EditError, match=">= 1"):
            generate(anatomy, encoder, PROMPTS, **wrong)
    with pytest.raises(MalformedRecord, match="gives no token"):
        generate(anatomy, encoder, ["The", ""], 3)


def test_a_leading_blank_survives_a_tokenizer_that_drops_it():
    """SentencePiece-like tokenizers decode a lone first word without its blank."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<eos>": 0, "▁Rome": 1, "▁is": 2, "▁big": 3}, unk_token="<eos>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>"))
    assert encoder.tokenizer.decode([3]) == "big"
    assert continuation(encoder, [1, 2], [3]) == " big"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_no_random_state_moves():
    anatomy, encoder = set_up("llama")
    plain, drawn = generate(anatomy, encoder, PROMPTS, 6), generate(anatomy, encoder, PROMPTS, 6, top_k=5)
    anatomy.model.cuda()
    state = torch.cuda.get_rng_state()
    assert generate(anatomy, encoder, PROMPTS, 6) == plain
    assert generate(anatomy, encoder, PROMPTS, 6, top_k=5) == drawn
    assert torch.equal(torch.cuda.get_rng_state(), state)
