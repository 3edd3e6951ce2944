"""The replay of LyapLock agrees with the recordings, compares all of them, and notices what does not agree."""

import pytest

from lit_edit.verify import lyaplock
from lit_edit.verify.recording import find


@pytest.fixture
def recording(shared):
    return next(found for found in find(shared / "golden" / "a") if found.tensors("LyapLock") is not None)


def test_recorded_runs_agree_whole(recording):
    rows = lyaplock.run(recording)
    assert not [row for row in rows if row.missed]
    assert not recording.tensors("LyapLock").left_out()
    compared = {row.quantity for row in rows}
    assert {
        "queue, Z [full replay]",
        "queue, a [recorded K, R, C]",
        "W_after C on the scale of W_0 C [recorded K, R, C]",
    } <= compared


def test_a_recorded_queue_off_by_a_thousandth_is_a_miss(recording):
    recording.meta["info"]["LyapLock"]["queue"][2]["3"]["Z"] *= 1.001
    recording.__dict__["meta"]["hyper_parameters"]["LyapLock"]["fact_token"] = "elsewhere"  # closed form only
    missed = [row for row in lyaplock.run(recording) if row.missed]
    assert [(row.quantity, row.worst) for row in missed] == [("queue, Z [recorded K, R, C]", "queue[2], layer 3")]
