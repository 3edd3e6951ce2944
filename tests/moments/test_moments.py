"""Second moments: streamed equals in one piece, padding never counts, the budget is kept to the token."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_edit import moments
from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError
from lit_edit.moments import MomentSum, SecondMoment, collect
from lit_edit.passes.forward import reading
from tests.tiny import normal, seeded, tiny_model

LENGTHS = (3, 17, 9, 1, 30, 12, 5)
ROWS = [torch.randint(320, (n,), generator=seeded(n)).tolist() for n in LENGTHS]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def anatomy(request):
    return Anatomy.of(tiny_model(request.param))


@torch.no_grad()
def plainly(anatomy, layer, tokens):
    """One row at a time, no padding, cut at the budget."""
    kept, left = [], tokens
    with reading(anatomy.down(layer), lambda x: kept.append(x[0].double()), None):
        for row in ROWS:
            if left > 0:
                anatomy.model(torch.tensor([row[:left]]), use_cache=False)
                left -= len(row[:left])
    keys = torch.cat(kept)
    return keys.T @ keys / len(keys), len(keys)


@pytest.mark.parametrize("tokens", [1, 20, 40, 77, 10**6])
@pytest.mark.parametrize("at_once", [1, 32, 8192])
def test_streamed_is_the_plain_mean_over_exactly_so_many_tokens(anatomy, tokens, at_once):
    found = collect(anatomy, iter(ROWS), (0, 2), tokens, tokens_at_once=at_once)
    for layer, moment in found.items():
        mean, count = plainly(anatomy, layer, tokens)
        assert moment.count == count == min(tokens, sum(LENGTHS))
        torch.testing.assert_close(moment.mean.double(), mean, rtol=1e-4, atol=1e-5 * float(mean.abs().max()))
    assert set(found) == {0, 2}


def test_progress_is_told(anatomy):
    told = []
    collect(anatomy, ROWS, (1,), 50, tokens_at_once=32, on_tokens=lambda *pair: told.append(pair))
    assert told[-1] == (50, 50) and len(told) > 1 and [t for t, _ in told] == sorted(t for t, _ in told)


class Calls:
    """How often every block ran, and how many positions the model was given."""

    def __init__(self, anatomy):
        self.blocks, self.padded, self.texts = [0] * len(anatomy.blocks), 0, []
        self.handles = [block.register_forward_hook(self.block(index)) for index, block in enumerate(anatomy.blocks)]
        self.handles.append(anatomy.model.register_forward_pre_hook(self.text, with_kwargs=True))
        self.handles.append(anatomy.blocks[0].register_forward_pre_hook(self.start))
        self.started = 0

    def start(self, *_):
        self.started += 1

    def block(self, index):
        def count(*_):
            self.blocks[index] += 1

        return count

    def text(self, _module, _args, kwargs):
        self.padded += kwargs["input_ids"].numel()
        pairs = zip(kwargs["input_ids"], kwargs["attention_mask"].bool(), strict=True)
        self.texts += [tuple(row[mask].tolist()) for row, mask in pairs]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def test_a_pass_stops_before_the_last_down_projection(anatomy):
    ran = []
    with (
        Calls(anatomy) as calls,
        reading(anatomy.down(0), None, lambda _: ran.append(0)),
        reading(anatomy.down(1), None, lambda _: ran.append(1)),
    ):
        collect(anatomy, ROWS, (0, 1), 10**6)
    assert ran == [0] and calls.started == 1 and calls.blocks == [1, 0, 0]  # block 1 starts and is left
    collect(anatomy, ROWS, (1,), 10)  # nothing is left behind
    assert not anatomy.down(1)._forward_pre_hooks


def test_all_layers_share_one_pass():
    anatomy = Anatomy.of(tiny_model("gpt2", n_layer=6))
    layers = (1, 2, 3, 4, 5)
    with Calls(anatomy) as together:
        found = collect(anatomy, ROWS, layers, 60)
    with Calls(anatomy) as apart:
        alone = {layer: collect(anatomy, ROWS, (layer,), 60)[layer] for layer in layers}
    assert all(torch.equal(found[layer].mean, alone[layer].mean) for layer in layers)
    assert together.started == 1 and apart.started == len(layers)
    with Calls(anatomy) as published:  # one layer per pass through the whole network
        for _ in layers:
            anatomy.model(**moments.right_pad(ROWS, 0, anatomy.device), use_cache=False)
    # Blocks that ran to their end; of the last one, a pass skips the down-projection.
    assert sum(published.blocks) == 30 >= 4 * (sum(together.blocks) + 1)
    assert sum(apart.blocks) == 1 + 2 + 3 + 4 + 5 == 3 * sum(together.blocks)


LONG = [torch.randint(320, (1 + (7 * n) % 61,), generator=seeded(n)).tolist() for n in range(60)]


def test_which_tokens_count_is_settled_before_they_are_batched(anatomy, monkeypatch):
    found = []
    for window, at_once in ((1, 64), (16, 64), (256, 64), (256, 8192)):
        monkeypatch.setattr(moments, "WINDOW", window)
        with Calls(anatomy) as calls:
            moment = collect(anatomy, LONG, (1,), 1000, tokens_at_once=at_once)[1]
        found.append((moment, calls))
        assert moment.count == 1000 and calls.padded >= 1000
        assert sorted(calls.texts) == sorted(found[0][1].texts)
        torch.testing.assert_close(moment.mean, found[0][0].mean, rtol=1e-4, atol=1e-6)
        assert moment.change == pytest.approx(found[0][0].change, rel=1e-4)
        assert moment.effective == pytest.approx(found[0][0].effective, rel=1e-5)
    monkeypatch.setattr(moments, "WINDOW", 256)
    with Calls(anatomy) as bucketed:
        collect(anatomy, LONG, (1,), 10**6, tokens_at_once=256)
    tokens = sum(map(len, LONG))
    assert bucketed.padded < 1.15 * tokens
    monkeypatch.setattr(moments, "WINDOW", 4)
    with Calls(anatomy) as barely:
        collect(anatomy, LONG, (1,), 10**6, tokens_at_once=256)
    assert barely.padded > 1.3 * tokens, "the lengths differ enough for the test to tell"


def test_no_more_is_read_than_needed(anatomy):
    read = []
    collect(anatomy, (read.append(n) or LONG[n % 60] for n in range(10**9)), (0,), 1000)
    lengths = [len(LONG[n % 60]) for n in read]
    assert sum(lengths) >= 1000 > sum(lengths[:-1])


def test_an_empty_corpus_and_an_overflowing_model_are_refused(anatomy):
    with pytest.raises(EditError, match="no text"):
        collect(anatomy, [[]], (0,), 10)
    weight = anatomy.weight(0)
    before = weight.clone()
    weight.fill_(float("inf"))
    with pytest.raises(EditError, match="layer 1 is not finite"):
        collect(anatomy, ROWS, (1,), 10)
    weight.copy_(before)


def test_sum_and_eigenvalues():
    keys = normal(40, 6, dtype=torch.float32)
    total = MomentSum(6, torch.device("cpu"))
    for chunk in keys.split(7):
        total.add(chunk)
    moment = total.result()
    torch.testing.assert_close(moment.mean.double(), keys.double().T @ keys.double() / 40, rtol=1e-5, atol=1e-6)
    values, vectors = moment.eigen()
    assert moment.count == 40 and values.dtype == torch.float64 and bool((values.diff() >= 0).all())
    torch.testing.assert_close((vectors * values) @ vectors.T, moment.mean.double(), rtol=1e-9, atol=1e-9)
    lopsided = SecondMoment(moment.mean + torch.triu(torch.full((6, 6), 1e-7), 1), 40)
    torch.testing.assert_close(lopsided.eigen()[0], values, rtol=1e-4, atol=1e-6)


def test_float32_products_are_as_good_as_float64_in_one_go():
    keys = 3 + normal(6000, 1100, dtype=torch.float32)  # more columns than one panel, and nothing cancels
    total = MomentSum(1100, torch.device("cpu"))
    for chunk in keys.split(1500):
        total.add(chunk)
    exact = keys.double().T @ keys.double() / len(keys)
    mean = total.result().mean
    assert float(torch.linalg.norm(mean - exact) / torch.linalg.norm(exact)) < 2e-7
    assert torch.equal(mean, mean.T)


class NoTransfer(TorchDispatchMode):
    """Fails on whatever would make a device wait for the host, or the other way round."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero"), name
        assert name != "_to_copy" or "device" not in (kwargs or {}), "a copy to another device"
        return function(*args, **(kwargs or {}))


def test_a_chunk_is_added_where_it_is():
    total = MomentSum(20, torch.device("cpu"))
    keys = normal(9, 20, dtype=torch.bfloat16)
    with NoTransfer():
        total.add(keys, 4)
    assert total.counts == [4, 5]


def test_how_well_a_moment_is_known():
    def known(count, seed):
        keys = normal(count, 30, seed=seed, dtype=torch.float32) @ torch.diag(torch.logspace(0, 1, 30))
        total = MomentSum(30, torch.device("cpu"))
        total.add(keys, count // 2)
        moment = total.result()
        first, whole = (part.double().T @ part.double() / len(part) for part in (keys[: count // 2], keys))
        exact = float(torch.linalg.norm(first - whole) / torch.linalg.norm(whole))
        return moment, exact

    ratios = []
    for seed in range(8):
        moment, exact = known(400, seed)
        ratios.append(moment.change / exact)
        assert 0.5 < ratios[-1] < 1.6
    assert sum(ratios) / 8 == pytest.approx(1.0, abs=0.15)
    assert known(40000, 0)[0].change < 0.2 * known(400, 0)[0].change  # 1/10 is expected

    # On average it is the error of the estimate itself.
    truth = torch.diag(torch.logspace(0, 1, 30, dtype=torch.float64)) ** 2
    errors = [float(torch.linalg.norm(known(400, s)[0].mean - truth) / torch.linalg.norm(truth)) for s in range(8)]
    told = [known(400, s)[0].change for s in range(8)]
    assert sum(told) == pytest.approx(sum(errors), rel=0.25)


def test_effective_tokens():
    total = MomentSum(4, torch.device("cpu"))
    keys = torch.ones(100, 4)
    total.add(keys, 50)
    assert total.result().effective == pytest.approx(100) and total.result().change == 0
    total.add(1000 * torch.ones(1, 4))
    assert total.result().effective == pytest.approx(1.0, abs=0.01)
    alone = MomentSum(4, torch.device("cpu"))
    alone.add(keys)
    assert math.isnan(alone.result().change), "one half tells nothing"
