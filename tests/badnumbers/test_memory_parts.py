"""Whatever can be halved gives the numbers of the whole where memory is short; a single item that is too large is named."""

import pytest
import torch
from memory import ERRORS, Starved, tight
from tiny import tiny_model, tiny_tokenizer

from lit_edit.anatomy import Anatomy
from lit_edit.corpus import SampledCorpus
from lit_edit.errors import EditError, OutOfMemory
from lit_edit.keys import KeyPass
from lit_edit.metrics.zsre import TokenRow, legacy_margins
from lit_edit.micro_batches import Room, enough_memory, halving, is_out_of_memory
from lit_edit.moments import MomentSum, collect
from lit_edit.passes.descent import DescentOptions, descend, mean_of_tokens
from lit_edit.passes.forward import greedy
from lit_edit.passes.generation import generate
from lit_edit.passes.gradients import capture
from lit_edit.probes.base import AnswerProbe
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest
from lit_edit.scoring import Scorer
from lit_edit.spectrum import decompose

SUBJECTS = ("France", "Ada Lovelace", "Marie Curie", "Kyōto", "Zürich", "The Eiffel Tower", "Vienna", "Germany")
CONTEXTS = ("I was there. {}", "The old city is seen and so on. {}")
NEAR = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def anatomy():
    return Anatomy.of(tiny_model("gpt2", n_inner=48))


@pytest.fixture(scope="module")
def encoder():
    return Encoder(tiny_tokenizer())


@pytest.fixture(scope="module")
def requests(encoder):
    return [encoder.rows(EditRequest("She was seen in {}", name, "Old Berlin"), CONTEXTS) for name in SUBJECTS]


def fails_with(anatomy, work, what, error="cuda"):
    """A model that takes no token ends the work in one sentence."""
    with (
        tight(anatomy.model, 0, error),
        pytest.raises(OutOfMemory, match=rf"^memory does not suffice for {what} \(.*\); .*help"),
    ):
        work()


# ------------------------------------------------------------------------------------------------ the mechanism


def test_what_counts_as_out_of_memory():
    for error in (*(make() for make in ERRORS.values()), MemoryError(), RuntimeError("CUDA error: out of memory\nmore")):
        assert is_out_of_memory(error)
        with (
            pytest.raises(OutOfMemory, match=r"^memory does not suffice for it \(.+\); less helps$"),
            enough_memory("it", "less helps"),
        ):
            raise error
    for other in (RuntimeError("shapes do not fit"), ValueError("out of memory"), EditError("out of memory")):
        assert not is_out_of_memory(other)
        with pytest.raises(type(other)), enough_memory("it"):
            raise other


def test_what_did_not_fit_is_not_tried_again_and_the_parts_stay_the_same():
    tried = []

    def run(items):
        tried.append(len(items))
        if len(items) > 3:
            raise ERRORS["cuda"]()
        return sum(items)

    room = Room()
    first = halving(list(range(10)), run, "it", room=room)
    assert tried == [10, 5, 2, 3, 2, 3] and room.too_much == 5
    tried.clear()
    assert halving(list(range(10)), run, "it", room=room) == first and tried == [2, 3, 2, 3]
    assert [items for items, _ in first] == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]


def test_an_item_that_costs_what_did_not_fit_is_tried_all_the_same():
    room = Room()
    room.too_much = 1
    assert halving([7], sum, "it", room=room) == [([7], 7)]


# ------------------------------------------------------------------------------------------------ second moments

DOCUMENTS = [[(7 * i + j) % 300 + 5 for j in range(4 + i % 5)] for i in range(40)]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("block", [None, 1], ids=["at the start", "behind the first layer"])
def test_second_moments(anatomy, error, block):
    def moments():
        return collect(anatomy, DOCUMENTS, [0, 1], 240, tokens_at_once=64)

    whole = moments()
    with tight(anatomy.model, 20, error, block) as sizes:
        parts = moments()
    failed = [size for size in sizes if size < 0]
    assert 0 < len(failed) < len(sizes) / 3, "what did not fit is tried again"
    for layer, moment in whole.items():
        assert parts[layer].count == moment.count == 240
        torch.testing.assert_close(parts[layer].mean, moment.mean, **NEAR)
        assert parts[layer].change == pytest.approx(moment.change, rel=1e-3)
        assert parts[layer].effective == pytest.approx(moment.effective, rel=1e-4)
    fails_with(anatomy, moments, "the keys of one document", error)


def test_a_sum_that_has_been_added_to_is_not_begun_anew():
    total = MomentSum(48, torch.device("cpu"))
    total.panel = 16
    keys = torch.ones(5, 48)
    with Starved("aten.mm", 2), pytest.raises(torch.OutOfMemoryError):  # in one of the two thin products
        total.add(keys, 2)
    assert not total.total.any() and not total.sketches.any() and not total.squares.any() and total.count == 0
    with Starved("aten.mm", 6), pytest.raises(OutOfMemory, match=r"a second moment .* fewer blocks in --model.layers"):
        total.add(keys, 2)  # in the second panel
    assert total.total.any()


def test_text_for_second_moments(anatomy, encoder):
    fails_with(
        anatomy, lambda: next(SampledCorpus(length=8).token_rows(anatomy, encoder)), "sampling text for the second moments"
    )


# ------------------------------------------------------------------------------------------------ editing


@pytest.mark.parametrize("error", ERRORS)
def test_keys_and_values_while_layers_change(anatomy, requests, error):
    def read(most):
        found = []
        reader = KeyPass(anatomy, requests, 0)
        before = {layer: anatomy.weight(layer).clone() for layer in (0, 1)}
        try:
            for layer in (0, 1):
                with tight(anatomy.model, most, error) as sizes:
                    found += [reader.keys(layer), reader.values(1), reader.written()]
                anatomy.weight(layer).mul_(1.5)
            with tight(anatomy.model, most // 2, error):  # still less, in the middle of a batch
                found += [*reader.rows(2), reader.values(2)]
        finally:
            for layer, weight in before.items():
                anatomy.weight(layer).copy_(weight)
        return found, sizes

    whole, passes = read(10**6)
    parts, smaller = read(100)
    assert max(passes) > 100 >= max(smaller) and len(smaller) > len(passes)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, **NEAR)
    fails_with(anatomy, lambda: KeyPass(anatomy, requests, 0).keys(0), "the keys of one prompt", error)


@pytest.mark.parametrize("answers_only", [True, False])
def test_gradients(anatomy, requests, answers_only):
    rows = [request.rewriting[0] for request in requests]

    def gradients():
        return capture(anatomy, rows, (0, 1), 0, answers_only)

    whole, loss = gradients()
    with tight(anatomy.model, 50) as sizes:
        parts, same = gradients()
    assert min(sizes) < 0 and same == pytest.approx(loss, rel=1e-5)
    for layer, tokens in whole.items():
        torch.testing.assert_close(parts[layer].inputs_TI, tokens.inputs_TI, **NEAR)
        torch.testing.assert_close(parts[layer].gradients_TO, tokens.gradients_TO, **NEAR)
    fails_with(anatomy, gradients, "the gradients of one request")


@pytest.mark.parametrize("enough", [0.0, 1e6], ids=["every epoch", "no update"])
def test_fine_tuning(anatomy, requests, enough):
    rows, name = [request.rewriting[0] for request in requests], anatomy.weight_name(0)
    options, losses = DescentOptions(steps=3, lr=1e-3, minibatch=6, enough=enough), []
    start = {name: anatomy.model.get_parameter(name)}

    def trained():
        losses.append([])
        return descend(anatomy, start, rows, 0, options, mean_of_tokens, lambda _, loss: losses[-1].append(loss))[name]

    whole = trained()
    with tight(anatomy.model, 120) as sizes:
        parts = trained()
    assert sum(size < 0 for size in sizes) == 1, "what did not fit is tried again"
    assert torch.equal(whole, start[name]) == bool(enough)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    fails_with(anatomy, trained, "the loss of one request")


# ------------------------------------------------------------------------------------------------ measuring

PAIRS = [(f"She was seen in {name} and {other}, then in", f"{other} of") for name in SUBJECTS for other in SUBJECTS[:4]]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("packed", [True, False])
def test_scores(anatomy, encoder, monkeypatch, packed, error):
    if not packed:
        monkeypatch.setattr("lit_edit.passes.rows.PACK", 2)
    whole = Scorer(anatomy, encoder).answers(PAIRS)
    scorer = Scorer(anatomy, encoder)
    with tight(anatomy.model, 120, error) as sizes:
        parts = scorer.answers(PAIRS)
        failed = sum(size < 0 for size in sizes)
        assert failed and scorer._rooms[packed].too_much < float("inf"), "in packs, or beside each other"
        scorer.answers(PAIRS)
    assert sum(size < 0 for size in sizes) == failed, "what did not fit is tried again"
    torch.testing.assert_close(parts.nll, whole.nll, **NEAR)
    assert parts.predicted == whole.predicted and parts.right == whole.right and torch.equal(parts.tokens, whole.tokens)
    fails_with(anatomy, lambda: Scorer(anatomy, encoder).answers(PAIRS), "the score of one text", error)


def test_probes(anatomy, encoder):
    probe = AnswerProbe("seen", PAIRS)
    whole = probe.measure(Scorer(anatomy, encoder), probe.items())
    with tight(anatomy.model, 120) as sizes:
        assert torch.equal(probe.measure(Scorer(anatomy, encoder), probe.items()), whole)
    assert min(sizes) < 0


@pytest.mark.parametrize("top_k", [None, 5], ids=["greedy", "sampled"])
def test_generated_texts(anatomy, encoder, top_k):
    prompts = [prompt for prompt, _ in PAIRS[::3]]

    def texts():
        return generate(anatomy, encoder, prompts, 4, top_k=top_k, seed=2)

    whole = texts()
    with tight(anatomy.model, 60) as sizes:
        assert texts() == whole
    assert min(sizes) < 0
    with tight(anatomy.model, 19), pytest.raises(OutOfMemory, match=r"for one text to continue .* fewer tokens"):
        texts()  # enough to find out about padding, and less than a prompt


def test_margins_of_zsre(anatomy, encoder):
    scorer, rows = Scorer(anatomy, encoder), [TokenRow(prompt, " Berlin") for prompt, _ in PAIRS]
    whole = legacy_margins(scorer, rows)
    with tight(anatomy.model, 120) as sizes:
        torch.testing.assert_close(legacy_margins(scorer, rows), whole, **NEAR)
    assert min(sizes) < 0
    fails_with(anatomy, lambda: legacy_margins(scorer, rows), "the score of one text")


def test_an_answer_and_a_spectrum(anatomy):
    fails_with(anatomy, lambda: greedy(anatomy, [5, 6], 3), "the answer to one prompt")
    with (
        Starved("linalg_eigh"),
        pytest.raises(OutOfMemory, match=r"the singular values of a matrix of 32 x 48 in float64 .*helps"),
    ):
        decompose(anatomy.weight(0))
