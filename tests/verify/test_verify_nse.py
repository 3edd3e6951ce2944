"""The replay of NSE agrees with the recording, compares all of it, and notices what does not agree."""

import pytest
from spoiling import copied, spoil

from lit_edit.verify import nse as verify
from lit_edit.verify.recording import find

SPOILT = {
    "residuals [recorded z, z_cur]": "batch1/pass0/layer3/resid",
    "delta_fro [recorded K, R, C; no history yet]": "batch0/pass1/layer2/delta_fro",
    "delta [recorded K, R, C; float32 cache]": "batch1/pass1/layer4/delta",
    "W_after [recorded K, R, C; exact history]": "batch3/layer3/W_after",
    "z [recorded weights]": "batch2/z",
    "loss_traj, nll [recorded weights]": "batch1/req2/loss_traj",
    "delta_traj, steps between [full replay]": "batch0/req1/delta_traj",
    "keys [full replay]": "batch2/pass1/layer2/keys",
    "z_cur [recorded weights]": "batch1/pass1/layer2/z_cur",
    "keys remembered [full replay]": "batch3/layer4/keys_cache",
    "W_after_fro [full replay]": "batch3/layer2/W_after_fro",
    "z, answers without a blank [original weights]": "batch0/z_as_released_without_leading_space",
}


@pytest.fixture
def folder(shared, tmp_path):
    return copied(shared, tmp_path, "NSE")


def test_recorded_numbers_agree_and_every_one_is_compared(folder):
    (recording,) = find(folder)
    rows = verify.run(recording)
    assert len(rows) > 30 and not [row.quantity for row in rows if row.missed]
    assert not recording.tensors("NSE").left_out()


def test_every_quantity_off_by_a_hundredth_is_a_miss(folder):
    spoil(folder, "NSE", set(SPOILT.values()))
    (recording,) = find(folder)
    missed = {row.quantity for row in verify.run(recording) if row.missed}
    assert set(SPOILT) <= missed
