"""Ranks that die, hang, fail or come apart: the run ends soon, in a sentence, and goes on from its latest checkpoint."""

from __future__ import annotations

import signal
from collections import Counter

import pytest
from rig import left_behind
from safetensors.torch import load_file
from streams import Streams, equal

from lit_edit.runs.checkpoint_folder import newest

APART = ("--model.targets.requests_at_once", "1")  # bit-equal on any number of ranks
PLACES = (
    ("batch: before its targets", 2),
    ("walk: before a layer is written", 3),
    ("walk: before the weights are put back", 2),
    ("batch: before its step", 2),
    ("batch: applied, before the journal has it", 2),
    ("batch: in the journal, before it is committed", 3),
    ("validation: before its numbers", 2),
    ("batch: logged", 2),
)
SOON = 20.0
"""Seconds after which nobody may be waiting any more, on a machine that does other things as well."""


@pytest.fixture(scope="module")
def streams(forks, tmp_path_factory):
    found = Streams.build(tmp_path_factory.mktemp("deaths"), forks)
    found.ended(1, "whole", *APART)
    return found


def finish(streams, name, size):
    """Go on with a run over so many ranks, and compare it with one that nothing happened to."""
    held = streams.ended(size, name, *APART)
    whole = load_file(streams.folder / "whole" / "held-0")
    for other in held:
        equal(other, whole)
    found, wanted = (left_behind(streams.folder / one / "run") for one in (name, "whole"))
    assert found["counters"] == wanted["counters"] and found["journal"] == wanted["journal"]
    assert {name: [at for at, _ in curve] for name, curve in found["numbers"].items()} == {
        name: [at for at, _ in curve] for name, curve in wanted["numbers"].items()
    }, "no row is lost or doubled"


def killed(streams, name, size, who, at, number=signal.SIGKILL):
    """Kill one rank at a place; the others must end by themselves, soon, with a sentence."""
    answer = streams.over(size, name, *APART, of=who, at=list(at), signal=int(number), limit=60)
    codes, seconds = answer["codes"], answer["seconds"]
    heard = "\n".join(streams.heard(name, rank) for rank in range(size))
    assert None not in codes, heard
    assert codes[who] == -number, (codes, heard)
    for rank in range(size):
        if rank != who:
            assert codes[rank] == 2 and seconds[rank] - seconds[who] < SOON, (codes, seconds, heard)
            said = streams.heard(name, rank)
            assert "Traceback" not in said and f"rank {rank} of {size} lost the others (" in said
    return answer


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_and_another_number_of_ranks_goes_on(streams):
    killed(streams, "relay", 2, 1, PLACES[1])
    killed(streams, "relay", 4, 0, PLACES[4])
    killed(streams, "relay", 3, 2, ("batch: before its targets", 1))
    finish(streams, "relay", 2)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_ranks_killed_everywhere(streams):
    hit = Counter()
    for size in (2, 4):
        for at in PLACES:
            for who in {0, 1, size - 1}:
                name = f"dead-{size}-{who}-{len(hit)}"
                killed(streams, name, size, who, at)
                finish(streams, name, {2: 4, 4: 1}[size] if who else size)
                hit[at[0], who, size] += 1
    print(f"{sum(hit.values())} ranks killed")
    assert sum(hit.values()) >= 20


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_to_the_first_rank_leaves_a_checkpoint(streams, number):
    name = f"signal-{int(number)}"
    answer = streams.over(2, name, *APART, of=0, at=["walk: before a layer is written", 3], signal=int(number), limit=60)
    assert answer["codes"] == [{signal.SIGTERM: 143, signal.SIGINT: 1}[number], 2], streams.heard(name, 0)
    assert "go on with: --run_dir run --ckpt_path last" in streams.heard(name, 0)
    found = newest(streams.folder / name / "run" / "checkpoints")
    assert found is not None and found.batches == 1
    finish(streams, name, 2)


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run_within_the_timeout(streams):
    strategy = '{"class_path": "lit_edit.strategies.ReplicatedStrategy", "init_args": {"timeout": "0:00:05"}}'
    answer = streams.over(2, "hangs", *APART, "--trainer.callbacks+=meddlers.Stop", "--trainer.strategy", strategy, limit=60)
    said = streams.heard("hangs", 0)
    assert answer["codes"][0] == 2 and "rank 0 of 2 lost the others (" in said and "Traceback" not in said
    assert newest(streams.folder / "hangs" / "run" / "checkpoints").batches == 1
    finish(streams, "hangs", 2)


@pytest.mark.parametrize(
    ("meddler", "words"),
    [
        ("Nudge", "rank 1 differs from the others in the master of layer 1 ("),
        pytest.param("OtherFacts", "rank 1 differs from the others in the edit set (", marks=pytest.mark.slow),
        ("FullDisk", "cannot be written: No space left on device"),
        pytest.param(
            "OutOfMemory",
            "memory does not suffice for the targets of 5 requests at once (the device is full)",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_wrong_with_one_rank_ends_all_of_them_with_its_words(streams, meddler, words):
    answer = streams.over(2, meddler, *APART, f"--trainer.callbacks+=meddlers.{meddler}", limit=60)
    assert all(answer["codes"]) and None not in answer["codes"], answer
    assert max(answer["seconds"]) - min(answer["seconds"]) < SOON
    for rank in range(2):
        assert words in streams.heard(meddler, rank), streams.heard(meddler, rank)
    if meddler != "OtherFacts":  # which is seen before anything is written
        finish(streams, meddler, 2)
    else:
        assert (streams.folder / meddler / "run" / "journal.jsonl").exists() is False


def test_a_strategy_that_cannot_share_is_refused(streams):
    answer = streams.over(2, "ddp", "--trainer.strategy", "ddp", limit=60)
    assert answer["codes"] == [2, 2]
    assert "use --trainer.strategy replicated" in streams.heard("ddp", 0)


@pytest.mark.slow
def test_what_ranks_leave_behind_is_written_once(streams):
    held = streams.ended(3, "three", *APART)
    assert len(held) == 3
    logs = sorted(path.name for path in (streams.folder / "three").iterdir() if path.name.startswith("run"))
    assert logs == ["run"], "no rank opens a folder of its own"
    assert sorted(path.name for path in (streams.folder / "three" / "run").iterdir()) == sorted(
        path.name for path in (streams.folder / "whole" / "run").iterdir()
    )
