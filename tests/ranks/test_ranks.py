"""Processes that share work: what comes back, and what happens when one of them cannot go on."""

import pytest
import torch

from lit_edit.errors import EditError, Rejected
from lit_edit.parallel.ranks import Ranks

COUNTS = [0, 1, 2, 3, 5, 8]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_shares_come_back_whole_and_in_order_on_every_rank(forks, size):
    for rank, found in enumerate(forks.call("shared", size, COUNTS)):
        for count, one in zip(COUNTS, found, strict=True):
            assert one["objects"] == [10 * at for at in range(count)]
            mine = list(range(rank, count, size))
            assert one["asked"] == (mine or [0][:count]), "a rank without a share works for nobody"
            if count:
                place, double = one["rows"]
                assert place == list(range(count))
                assert double == [[at, size - 1 - at % size] for at in range(count)]


def test_tensors_and_objects_are_exchanged(forks):
    for found in forks.call("exchanged", 3):
        assert found == {
            "overwritten": [[1.0, 1.0]] * 3,
            "sum": 6.0,
            "of_last": [[7, 8], [[1.0, 1.0]]],
            "first": {"rank": 0},
            "everyone": [0, 1, 2],
        }


@pytest.mark.parametrize("who", [[0], [2], [0, 1, 2]])
def test_a_batch_that_one_rank_cannot_write_is_written_by_none(forks, who):
    reason = "no number" if len(who) == 3 else f"rank {who[0]}: rank {who[0]} found no number"
    assert forks.call("rejected", 3, who) == [[reason, "written"]] * 3


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("what", ["memory", "file"])
def test_ranks_end_with_the_words_of_the_one_that_failed(forks, who, what):
    own, words = (
        ("MemoryError: no room", "MemoryError: no room")
        if what == "memory"
        else ("EditError: the file is gone", "the file is gone")
    )
    for rank, (told, alone, seconds) in enumerate(forks.call("failed", 3, {"who": who, "what": what})):
        assert told == (own if rank == who else f"RankFailed: rank {who} cannot go on: {words}")
        assert alone and seconds < 10


def test_nobody_waits_for_a_rank_that_is_gone(forks):
    answer = forks.run(call="rank_cases:dead", ranks=3, given={"who": 1, "how": "exits"}, timeout=60)
    for rank in (0, 2):
        told, seconds = answer["found"][rank]
        assert told.startswith(f"rank {rank} of 3 lost the others (") and seconds < 10, told


def test_a_rank_that_hangs_ends_the_run_within_the_timeout(forks):
    answer = forks.run(call="rank_cases:dead", ranks=2, given={"who": 1, "how": "hangs", "seconds": 12}, timeout=4)
    told, seconds = answer["found"][0]
    assert told.startswith("rank 0 of 2 lost the others (") and 3 < seconds < 8, (told, seconds)


def test_one_rank_alone_does_it_all_itself():
    ranks = Ranks()
    assert ranks.first and ranks.strides(3) == [[0, 1, 2]]
    assert ranks.share("abc", lambda mine: [item.upper() for item in mine]) == ["A", "B", "C"]
    (rows,) = ranks.share_rows([[2, 0, 1]], lambda: (torch.tensor([2, 0, 1]),))
    assert rows.tolist() == [0, 1, 2]
    assert ranks.everyone(5) == [5] and ranks.of_first(6) == 6 and ranks.of(0, [rows])[0] is rows
    with pytest.raises(Rejected, match="no number"), ranks.together():
        ranks.agree(Rejected("no number"))
    with pytest.raises(EditError, match="gone"):
        ranks.agree(EditError("gone"))


class Several(Ranks):
    def __init__(self, size):
        self.size = self.workers = size


@pytest.mark.parametrize(
    ("size", "parts", "costs", "wanted"),
    [
        (1, [[0, 1], [2]], [1, 1], [[[0, 1], [2]]]),
        (2, [[0, 1], [2], [3]], [1, 1, 1], [[[0, 1]], [[2], [3]]]),
        (2, [[0], [1], [2]], [1, 5, 3], [[[1]], [[0], [2]]]),
        (2, [[0, 1, 2]], [1], [[[1, 2]], [[0]]]),
        (4, [[0, 1]], [1], [[[0]], [[1]], [], []]),
    ],
)
def test_parts_are_dealt_whole_and_even(size, parts, costs, wanted):
    assert Several(size).deal(parts, costs) == wanted


def test_dealing_loses_nothing_whatever_the_sizes():
    for size in range(1, 9):
        for count in range(1, 30, 4):
            parts = [list(range(at, min(at + 7, count))) for at in range(0, count, 7)]
            dealt = Several(size).deal(parts, [1.0 + index for index in range(len(parts))])
            assert len(dealt) == size and sorted(at for own in dealt for part in own for at in part) == list(range(count))
            if len(parts) >= size:
                assert sorted(part for own in dealt for part in own) == parts
            assert sum(bool(own) for own in dealt) == min(size, count)
