"""Rates, scores and how sure they are."""

import math

import pytest
import torch
from torch import multiprocessing

from lit_edit.batch.records import RecordScores
from lit_edit.metrics import EditScores, RecordRate, bootstrap, mean_interval, paired_change


def record(**values):
    return RecordScores({name.replace("__", "/") + "/teacher_forced": list(v) for name, v in values.items()})


def test_rates_are_means_over_records_of_means_over_prompts():
    scores = EditScores("final")
    scores.update([record(paraphrase__success=(1.0, 0.0)), record(paraphrase__success=(1.0,)), record(efficacy__accuracy=(1,))])
    found = {name: float(value) for name, value in scores.compute().items()}
    assert found == {
        "edit/final/paraphrase/success/teacher_forced": 0.75,
        "edit/final/efficacy/accuracy/teacher_forced": 1.0,
    }


def test_score_is_the_harmonic_mean_where_all_three_are_there():
    scores = EditScores("final")
    one = {"efficacy__success": (1.0,), "paraphrase__success": (0.5,)}
    scores.update([record(**one)])
    assert "edit/final/score/success/teacher_forced" not in scores.compute()
    scores = EditScores("final")
    scores.update([record(**one, neighbourhood__success=(0.25,))])
    assert float(scores.compute()["edit/final/score/success/teacher_forced"]) == pytest.approx(3 / (1 + 2 + 4))


def test_sums_carry_a_stream_over_a_restart():
    batches = [[record(efficacy__success=(1.0,))], [record(efficacy__success=(0.0,)), record(paraphrase__success=(1.0, 0.0))]]
    whole, part = EditScores("immediate"), EditScores("immediate")
    for batch in batches:
        whole.update(batch)
    part.update(batches[0])
    other = EditScores("immediate")
    other.take_up(part.sums())
    other.update(batches[1])
    assert other.compute() == whole.compute() and other.intervals() == whole.intervals()


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_intervals_of_rates_hold_the_truth_about_as_often_as_they_say(p):
    generator = torch.Generator().manual_seed(1)
    draws = (torch.rand(2000, 200, generator=generator) < p).double()
    hits = 0
    for row in draws:
        interval = mean_interval(float(row.sum()), float(row.square().sum()), len(row))
        hits += interval.low <= p <= interval.high
    assert 0.92 < hits / len(draws) < 0.97


def test_no_failure_in_few_tries_is_not_certainty():
    assert mean_interval(10.0, 10.0, 10.0).low < 0.92
    assert mean_interval(1.0, 1.0, 1.0) == mean_interval(0.0, 0.0, 0.0)


def mean(rows):
    return {"mean": float(rows[:, 0].mean())}


def test_bootstrap_agrees_with_the_normal_interval_and_repeats():
    rows = (torch.rand(400, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64) < 0.3).double()
    ours = bootstrap(rows, mean)["mean"]
    normal = mean_interval(float(rows.sum()), float(rows.sum()), len(rows))
    assert abs(ours.low - normal.low) < 0.01 and abs(ours.high - normal.high) < 0.01
    assert bootstrap(rows, mean) == bootstrap(rows, mean) != bootstrap(rows, mean, seed=1)


def test_pairing_tells_a_small_change_from_noise():
    generator = torch.Generator().manual_seed(3)
    before = (torch.rand(500, 1, generator=generator, dtype=torch.float64) < 0.6).double()
    after = before.clone()
    after[before[:, 0].nonzero()[:15, 0]] = 0.0  # three points lost
    change = paired_change(before, after, mean)["mean"]
    assert change.low < -0.03 < change.high < 0
    alone = [bootstrap(rows, mean)["mean"] for rows in (before, after)]
    assert alone[1].high > alone[0].low, "unpaired the two intervals overlap"
    assert paired_change(before, before, mean)["mean"].low == 0.0
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_change(before, after[1:], mean)


def test_a_number_that_is_not_there_gives_no_interval():
    change = paired_change(torch.zeros(5, 1), torch.zeros(5, 1), lambda rows: {"none": math.nan})["none"]
    assert math.isnan(change.low)


def _share(rank, values, queue, port):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    rate = RecordRate()
    rate.update(values[rank::2])
    queue.put((rank, float(rate.compute())))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_compute_what_one_does():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = [[1.0, 0.0], [1.0], [], [0.25], [0.0, 0.0, 1.0]]
    alone = RecordRate()
    alone.update(values)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_share, args=(rank, values, queue, port)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = dict(queue.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(60)
    assert found[0] == found[1] == pytest.approx(float(alone.compute()), abs=1e-15)
