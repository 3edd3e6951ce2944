"""One stream over several ranks: what one rank would write, to rounding, and the same bits on all of them."""

import pytest
from rig import compare, left_behind
from safetensors.torch import load_file
from streams import Streams, distance, equal


@pytest.fixture(scope="module")
def streams(forks, tmp_path_factory):
    return Streams.build(tmp_path_factory.mktemp("streams"), forks)


@pytest.fixture(scope="module")
def alone(streams):
    return streams.ended(1, "one")[0]


APART = ("--model.targets.requests_at_once", "1")


def apart(streams):
    """What one rank holds that optimises every request on its own."""
    if not (streams.folder / "apart").exists():
        streams.ended(1, "apart", *APART)
    return load_file(streams.folder / "apart" / "held-0")


@pytest.mark.parametrize("size", [2, 4])
def test_several_ranks_leave_behind_bit_by_bit_what_one_rank_does(streams, size):
    """Each request on its own: then nothing is rounded otherwise, however the work is dealt."""
    one = apart(streams)
    held = streams.ended(size, f"apart-{size}", *APART)
    for other in held:
        equal(one, other)
    several, single = (left_behind(streams.folder / name / "run") for name in (f"apart-{size}", "apart"))
    compare({**several, **measured(single)}, single)
    assert close(measured(several), measured(single)), "records of other ranks stand in other rows of a matrix product"


def measured(found):
    return {part: found[part] for part in ("numbers", "validations", "summary", "curves")}


def close(one, other):
    """Equal but for the rounding of measured numbers."""
    if isinstance(one, float):
        return other == pytest.approx(one, rel=1e-5, abs=1e-6, nan_ok=True)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(close(a, b) for a, b in zip(one, other, strict=True))
    return one == other


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_requests_that_share_a_pass_are_rounded_as_one(streams, alone, size):
    """A batch of five is one part, and is cut for several ranks: float32 sums of other lengths, and the same on all ranks."""
    held = streams.ended(size, f"of-{size}")
    for other in held[1:]:
        equal(held[0], other)
    regrouped = apart(streams)
    assert 0 < distance(alone, held[0]) < 3 * distance(alone, regrouped) < 3e-4
    one, several = (left_behind(streams.folder / name / "run") for name in ("one", f"of-{size}"))
    assert several["counters"] == one["counters"]
    assert [record["cases"] for record in several["journal"]] == [record["cases"] for record in one["journal"]]
    assert several["numbers"].keys() == one["numbers"].keys() and several["curves"].keys() == one["curves"].keys()
