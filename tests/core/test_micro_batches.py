"""Work in parts: of like length, halved where memory runs out, and with the numbers of the whole."""

import pytest
import torch

from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError
from lit_edit.micro_batches import TooLarge, by_length, halving, within
from lit_edit.passes.target_rows import Problem
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest
from lit_edit.targets import PredictedFor, TargetOptions, optimise
from tests.tiny import tiny_model, tiny_tokenizer

FACTS = (
    ("The capital of {} is", "France", "Berlin"),
    ("{} was created by", "Ada Lovelace", "Sony in Paris"),
    ("It is known that {}'s mother tongue is", "Marie Curie", "Dutch"),
    ("{}", "Zürich", "old"),
    ("{}, seen in", "Kyōto", "Rome"),
)


@pytest.fixture
def requests():
    encoder = Encoder(tiny_tokenizer())
    return [encoder.rows(EditRequest(*fact), ("I was there. {}",)) for fact in FACTS]


@pytest.fixture
def anatomy():
    return Anatomy.of(tiny_model("llama").requires_grad_(False))


OPTIONS = TargetOptions(steps=5, lr=0.1)


def same(a, b):
    for name in ("values_ND", "start_ND", "loss_N", "probability_N"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-5)


def test_parts_cover_everything_once_and_hold_like_lengths():
    lengths = [3, 40, 3, 41, 39, 4, 12]
    parts = by_length(lengths, rows=6, most=3, worth=30)
    assert sorted(at for part in parts for at in part) == list(range(7))
    assert all(part == sorted(part) and len(part) <= 3 for part in parts)
    for part in parts:
        of = sorted(lengths[at] for at in part)
        assert of[-1] <= 1.15 * of[0] or (len(part) - 1) * 6 * of[0] < 30


def test_short_parts_are_filled_up_before_they_are_worth_a_pass():
    assert by_length([2, 9, 30], rows=1, most=8, worth=1000) == [[0, 1, 2]]


def test_out_of_memory_halves_and_gives_the_same_numbers(anatomy, requests, monkeypatch):
    whole = optimise(anatomy, requests, 1, OPTIONS, 0)
    run, seen = Problem.run, []

    def tight(problem, *args):
        seen.append(len(problem.requests_N))
        if len(problem.requests_N) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return run(problem, *args)

    monkeypatch.setattr(Problem, "run", tight)
    same(optimise(anatomy, requests, 1, OPTIONS, 0), whole)
    assert max(seen) > 2 and {1, 2} & set(seen)


def test_running_out_of_memory_in_the_middle_leaves_no_trace_in_the_stop_rule(anatomy, requests, monkeypatch):
    class Once(PredictedFor):
        def __call__(self, seen):
            return self._count(seen, torch.ones_like(seen.total, dtype=torch.bool))

    whole = optimise(anatomy, requests, 1, OPTIONS, 0, stop=Once(4))
    run, left = Problem.run, [3]

    def tight(problem, *args):
        if len(problem.requests_N) == len(requests):
            left[0] -= 1
            if not left[0]:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        return run(problem, *args)

    monkeypatch.setattr(Problem, "run", tight)
    same(optimise(anatomy, requests, 1, OPTIONS, 0, stop=Once(4)), whole)
    assert left[0] == 0


def test_a_budget_of_memory_is_kept(anatomy, requests):
    whole = optimise(anatomy, requests, 1, OPTIONS, 0)
    sizes = []
    budget = TargetOptions(steps=5, lr=0.1, memory=3e-4)  # GiB: more than one of the requests needs, less than all
    found = optimise(anatomy, requests, 1, budget, 0, on_step=lambda step: sizes.append(len(step.requests)))
    same(found, whole)
    assert max(sizes) < len(requests)
    with pytest.raises(EditError, match=r"memory does not suffice for the target of one request .*model\.targets\.memory"):
        optimise(anatomy, requests, 1, TargetOptions(steps=5, memory=1e-7), 0)
    with pytest.raises(EditError, match="amount in GiB"):
        TargetOptions(memory=0)


def test_what_is_kept_for_the_backward_pass_is_counted():
    x = torch.ones(2**18, requires_grad=True)  # 1 MiB
    with within(2.5 / 1024):
        (x * 2).exp().exp()
    with pytest.raises(TooLarge), within(1.5 / 1024):
        (x * 2).exp().exp()
    with within(None):
        (x * 2).exp().exp()


def test_other_errors_pass():
    def broken(items):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        halving([1, 2], broken, "it")


def test_weights_are_there_anyway_and_do_not_count_as_kept():
    layer = torch.nn.Linear(256, 256, bias=False).requires_grad_(False)  # 256 KiB; autograd keeps it transposed
    rows = torch.ones(2, 4, 256, requires_grad=True)
    with within(16 / 2**20):
        (layer(rows) * rows).sum().backward()
    with pytest.raises(TooLarge), within(8 / 2**20):
        (layer(rows) * rows).sum()
