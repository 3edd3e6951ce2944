"""Packs of prefix trees: what is shared is there once, and every family says in a pack what it says in rows, or is not packed."""

import pytest
import torch

from lit_edit import scoring
from lit_edit.anatomy import Anatomy
from lit_edit.passes.forward import last_mlp_at, logits_at
from lit_edit.passes.packing import pack_inputs, packed_logits_at, packs_exactly, plant
from lit_edit.prompts import Encoder, right_pad
from lit_edit.scoring import Scorer
from tests.tiny import FAMILIES, seeded, tiny_model, tiny_tokenizer

UNPACKED = {"mpt"}
"""Families whose attention counts distances in the sequence (ALiBi)."""


def made(family, **overrides):
    """A tiny model whose sliding window, if it has one, is longer than a packed row."""
    wide = {"sliding_window": 100} if "sliding_window" in FAMILIES[family] else {}
    return Anatomy.of(tiny_model(family, **wide, **overrides))


def rows_of(vocabulary, count=40):
    """Rows as a scoring has them: templates with many subjects, duplicates, prefixes, one-token prompts, long and lone ones."""
    generator = seeded()

    def more(size):
        return torch.randint(2, vocabulary, (size,), generator=generator).tolist()

    templates = [more(size) for size in (3, 6, 9)]
    rows = []
    for number in range(count):
        ids = templates[number % 3] + more(1 + number % 4)
        rows += [(ids + more(1), len(ids)), (ids + more(1 + number % 3), len(ids))]
    rows += [rows[0], rows[7], (rows[5][0] + more(6), 4)]  # duplicates, and a row that begins with another
    rows += [(more(2), 1), (more(5), 1), (templates[1][:3], 2)]  # one-token prompts, a prefix of a template
    rows += [(more(90), 70), (more(100), 1), (more(64), 60), (more(65), 60), (more(66), 60)]  # around and beyond the longest
    return rows


@torch.no_grad()
def plain(anatomy, rows):
    """Mean NLL of every row by a forward pass of its own, and the argmax at every scored token."""
    found = []
    for ids, first in rows:
        log_p = anatomy.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
        log_p, labels = log_p[first - 1 : -1], torch.tensor(ids[first:])
        found.append((-log_p.gather(1, labels[:, None]).mean(), log_p, labels))
    return found


def agree(anatomy, rows, scores, slack):
    for index, (nll, log_p, labels) in enumerate(plain(anatomy, rows)):
        torch.testing.assert_close(scores.nll[index].double(), nll, rtol=slack, atol=slack)
        said = torch.tensor(scores.predicted[index])
        assert float((log_p.amax(-1) - log_p.gather(1, said[:, None])[:, 0]).max()) <= 10 * slack, "the argmax, but for ties"
        assert scores.right[index] == tuple((said == labels).tolist()) and int(scores.tokens[index]) == len(labels)
        assert bool(scores.correct[index]) == all(scores.right[index])


@pytest.fixture
def passes(monkeypatch):
    """Counts passes by kind."""
    counts = {"packed": 0, "rows": 0}

    def counting(name, function):
        def call(*args):
            counts[name] += 1
            return function(*args)

        return call

    monkeypatch.setattr(scoring, "packed_logits_at", counting("packed", packed_logits_at))
    monkeypatch.setattr(scoring, "logits_at", counting("rows", logits_at))
    return counts


def test_rows_share_what_they_begin_with():
    rows = [(1, 2, 3), (1, 2, 4), (1, 2, 4, 5), (6,), (6, 7)]
    (pack,) = plant(rows, 16)
    assert pack.ids == [1, 2, 3, 4, 5, 6, 7] and pack.parents == [0, 0, 1, 1, 3, 5, 5]
    assert pack.paths == {0: [0, 1, 2], 1: [0, 1, 3], 2: [0, 1, 3, 4], 3: [5], 4: [5, 6]}


@pytest.mark.parametrize("size", [9, 16, 40])
def test_packs_hold_every_row_once_and_no_more_than_fits(size):
    generator = seeded()
    rows = {tuple(torch.randint(0, 3, (1 + n % 9,), generator=generator).tolist()) for n in range(200)}
    rows = sorted(rows)
    packs = plant(rows, size)
    assert all(len(pack.ids) == len(pack.parents) <= size for pack in packs)
    assert sorted(number for pack in packs for number in pack.paths) == list(range(len(rows)))
    for pack in packs:
        for number, path in pack.paths.items():
            assert tuple(pack.ids[column] for column in path) == rows[number]
            assert [pack.parents[column] for column in path] == [path[0], *path[:-1]]
    assert sum(len(pack.ids) for pack in packs) < sum(map(len, rows))


def test_a_token_sees_its_ancestors_and_itself():
    inputs = pack_inputs(plant([(1, 2, 3), (1, 2, 4), (5,)], 8) + plant([(9,)], 8), 0, torch.device("cpu"), torch.float32)
    assert inputs["input_ids"].tolist() == [[1, 2, 3, 4, 5], [9, 0, 0, 0, 0]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 2, 0], [0, 0, 0, 0, 0]]
    sees = (inputs["attention_mask"] == 0).int()
    wanted = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 1]]
    assert sees.shape == (2, 1, 5, 5) and sees[0, 0].tolist() == wanted
    assert torch.equal(sees[1, 0], torch.eye(5).int()) and float(inputs["attention_mask"].min()) < -1e38


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_own_numbers(family, dtype, passes):
    anatomy = made(family)
    anatomy.model.to(dtype)
    scorer, rows = Scorer(anatomy, Encoder(tiny_tokenizer())), rows_of(320)
    agree(anatomy, rows, scorer.rows(rows), 1e-5)
    assert (passes["packed"] > 0) == (family not in UNPACKED)
    assert passes["rows"] > 0, "long rows are not packed"


@pytest.mark.parametrize("family", ["gpt2", "llama", "falcon", "gemma3_text"])
def test_sdpa_takes_packs_as_well(family, passes):
    anatomy = made(family, attn_implementation="sdpa")
    rows = rows_of(320)
    agree(anatomy, rows, Scorer(anatomy, Encoder(tiny_tokenizer())).rows(rows), 1e-5)
    assert passes["packed"]


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
def test_a_window_shorter_than_a_row_is_noticed(family, passes):
    anatomy = Anatomy.of(tiny_model(family))
    rows = rows_of(320)
    scores = Scorer(anatomy, Encoder(tiny_tokenizer())).rows(rows)
    assert not passes["packed"]
    agree(anatomy, rows, scores, 1e-5)


def test_a_model_that_takes_no_positions_is_not_packed(passes, monkeypatch):
    anatomy = made("gpt2")
    forward = anatomy.model.forward

    def without(input_ids, attention_mask=None, use_cache=None):
        return forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    monkeypatch.setattr(anatomy.model, "forward", without)
    anatomy = Anatomy.of(anatomy.model)
    assert packs_exactly(anatomy, 128, 64, 0) is False and not anatomy.packs
    rows = rows_of(320)
    agree(anatomy, rows, Scorer(anatomy, Encoder(tiny_tokenizer())).rows(rows), 1e-5)
    assert not passes["packed"]


def test_bfloat16_models_are_scored_within_their_rounding(passes):
    anatomy = made("llama")
    anatomy.model.to(torch.bfloat16)
    rows = rows_of(320)
    scores = Scorer(anatomy, Encoder(tiny_tokenizer())).rows(rows)
    assert passes["packed"]
    nll = torch.stack([nll for nll, *_ in plain(anatomy, rows)])
    assert float((scores.nll.double() - nll).abs().max()) < 0.2 and float((scores.nll.double() - nll).abs().mean()) < 0.05


def test_whether_to_pack_is_asked_of_the_model_as_it_was_loaded(passes):
    anatomy, rows = made("gpt2"), rows_of(320)
    scorer = Scorer(anatomy, Encoder(tiny_tokenizer()))
    weight = anatomy.weight(2)
    kept = weight.clone()
    weight.fill_(torch.nan)  # an edit that broke the model must not change the way that its numbers are computed
    assert bool(scorer.rows(rows).nll.isnan().all()) and passes["packed"]
    assert packs_exactly(anatomy, 128, 64, 0) is None, "numbers that are not finite say nothing"
    weight.copy_(1.5 * kept)
    agree(anatomy, rows, scorer.rows(rows), 1e-5)


def test_a_few_rows_are_not_worth_a_pack(passes):
    scorer = Scorer(made("gpt2"), Encoder(tiny_tokenizer()))
    scorer.rows([([5, 6, 7], 2)])
    scorer.rows([([5, 6, 7, 8], 2), ([5, 6, 7, 9], 2)])
    assert not passes["packed"]


@pytest.mark.parametrize("tokens_at_once", [1, 32, 50, 128, 400])
def test_any_budget_gives_the_same_numbers(tokens_at_once, passes):
    anatomy, rows = made("gpt2"), rows_of(320)
    agree(anatomy, rows, Scorer(anatomy, Encoder(tiny_tokenizer()), tokens_at_once).rows(rows), 1e-5)
    assert bool(passes["packed"]) == (tokens_at_once > 1)


@pytest.mark.parametrize("seed", range(3))
def test_scores_do_not_depend_on_the_order_of_rows(seed):
    scorer, rows = Scorer(made("gpt2"), Encoder(tiny_tokenizer())), rows_of(320)
    order = torch.randperm(len(rows), generator=seeded(seed)).tolist()
    mixed, straight = scorer.rows([rows[at] for at in order]), scorer.rows(rows)
    torch.testing.assert_close(mixed.nll, straight.nll[order], rtol=1e-6, atol=1e-6)
    assert mixed.predicted == tuple(straight.predicted[at] for at in order)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_mlp_runs_where_it_is_read_only(family):
    anatomy = Anatomy.of(tiny_model(family))
    inputs = right_pad([[5, 17, 300, 42, 7], [8, 9, 10]], 0, anatomy.device)
    rows, columns = torch.tensor([0, 1]), torch.tensor([4, 2])
    whole, seen = logits_at(anatomy, inputs, rows, columns), []
    handle = anatomy.down(-1).register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape[:-1].numel()))
    try:
        with last_mlp_at(anatomy, rows, columns):
            torch.testing.assert_close(logits_at(anatomy, inputs, rows, columns), whole, rtol=1e-5, atol=1e-5)
    finally:
        handle.remove()
    assert seen == [10 if family in ("opt", "mpt") else 2]  # OPT has no MLP of its own, MPT's adds the residual itself
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in anatomy.model.modules())


def test_packs_are_filled_side_by_side():
    rows = [(n, *range(100, 106)) for n in range(4)] + [(50 + n,) for n in range(8)]
    assert [len(pack.ids) for pack in plant(rows, 9)] == [9, 9, 9, 9]
