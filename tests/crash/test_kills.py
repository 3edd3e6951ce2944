"""Runs killed with SIGKILL, at every place where they write and at any time, go on to the same bits.

The short form kills a run once at every place where it would hurt, in chains: the run that goes on is killed at the next one. The long
form (``-m long``; about forty minutes on one core) kills a run of its own at each of the some two hundred places it passes,
and a thousand runs at random times; ``CRASH_KILLS`` and ``CRASH_SEED`` set another number and other times, ``CRASH_FROM`` a place to begin
at. Both print what they hit (``-s``).
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter

import pytest
from rig import compare, left_behind

MUST = (
    "cache: half written",
    "cache: flushed, before it is renamed",
    "checkpoint: half written",
    "checkpoint: written, before it is flushed",
    "checkpoint: flushed, before it is renamed",
    "checkpoint: before it has its other name",
    "checkpoint: before it is removed",
    "journal: half written",
    "csv: half written",
    "walk: before a layer is written",
    "walk: before the weights are put back",
    "batch: before its step",
    "batch: applied, before the journal has it",
    "batch: in the journal, before it is committed",
    "validation: before its numbers",
)
"""Where a kill would hurt if anything did: a run that never passes one of these is no test."""


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_everything_goes_on_to_the_same_bits(rig):
    places = Counter(rig.places)
    assert set(MUST) <= set(places)
    chains, hit = 0, Counter()
    for place in MUST:
        often = places[place]
        found = rig.go(f"chain-{chains}", at=[place, max(1, often // 2)])
        if found["code"] == 0:  # the run that went on has passed too few of them, and ended
            compare(left_behind(rig.folder / f"chain-{chains}" / "run"), rig.whole)
            chains += 1
            found = rig.go(f"chain-{chains}", at=[place, max(1, often // 2)])
        assert (found["code"], found["place"]) == (-9, place), rig.said(f"chain-{chains}")
        hit[found["place"]] += 1
    rig.finish(f"chain-{chains}")
    assert hit.keys() == set(MUST)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_a_run_killed_at_any_single_place_goes_on_to_the_same_bits(rig):
    hit = Counter()
    for at in range(int(os.environ.get("CRASH_FROM", 1)), len(rig.places) + 1):
        found = rig.go(f"at-{at}", at=at)
        # Where files are listed or removed, the order may differ from run to run, the number of places does not.
        assert found["code"] == -9 and found["count"] == at, rig.said(f"at-{at}")
        hit[found["place"]] += 1
        rig.finish(f"at-{at}")
        if at % 20 == 0:
            print(f"{at} of {len(rig.places)} places", flush=True)
    told(hit)
    assert set(MUST) <= set(hit) or "CRASH_FROM" in os.environ


@pytest.mark.long
@pytest.mark.timeout(0)
def test_runs_killed_at_random_times_go_on_to_the_same_bits(rig):
    wanted, chosen = int(os.environ.get("CRASH_KILLS", 1000)), random.Random(int(os.environ.get("CRASH_SEED", 0)))
    hit, compared, chain = Counter(), 0, 0
    while sum(hit.values()) < wanted:
        found = rig.go(f"random-{chain}", after=chosen.uniform(0, rig.seconds))
        if found["code"] == -9:
            hit[found["place"] or "before anything"] += 1
            if sum(hit.values()) % 50 == 0:
                print(f"{sum(hit.values())} kills, {compared} runs compared", flush=True)
            continue
        assert found["code"] == 0, rig.said(f"random-{chain}")
        compare(left_behind(rig.folder / f"random-{chain}" / "run"), rig.whole)
        shutil.rmtree(rig.folder / f"random-{chain}")
        compared, chain = compared + 1, chain + 1
    rig.finish(f"random-{chain}")
    told(hit)
    print(f"{compared + 1} runs compared, {sum(hit.values())} kills")
    assert {place.split(":")[0] for place in hit} >= {"batch", "walk", "checkpoint", "validation", "csv"}


def told(hit: Counter) -> None:
    for place, often in hit.most_common():
        print(f"{often:6} killed after: {place}")
