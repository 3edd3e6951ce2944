"""The replay of DeltaEdit agrees with the recording, compares all of it, and notices what does not agree."""

import pytest
from spoiling import copied, spoil

from lit_edit.verify import deltaedit as verify
from lit_edit.verify.recording import find

SPOILT = {
    "residuals [recorded z, z_cur]": "edit7/layer3/resid",
    "delta [recorded K, R, C; float32 projector]": "edit20/layer3/delta",
    "delta_fro [recorded K, R, C; exact projector]": "edit0/layer2/delta_fro",
    "S [full replay]": "S/layer4",
    "z [full replay]": "edit21/z",
    "loss_traj, probability [full replay]": "edit5/loss_traj",
    "delta_traj, last step [recorded weights]": "edit21/delta_traj",
    "keys [full replay]": "edit9/layer4/keys",
    "z_cur [recorded weights]": "edit12/layer2/z_cur",
    "W_after [full replay]": "edit21/layer4/W_after",
}


@pytest.fixture
def folder(shared, tmp_path):
    return copied(shared, tmp_path, "DeltaEdit")


def test_recorded_numbers_agree_and_every_one_is_compared(folder):
    (recording,) = find(folder)
    rows = verify.run(recording)
    assert len(rows) > 30 and not [row.quantity for row in rows if row.missed]
    assert not recording.tensors("DeltaEdit").left_out()


def test_every_quantity_off_by_a_hundredth_is_a_miss(folder):
    spoil(folder, "DeltaEdit", set(SPOILT.values()))
    (recording,) = find(folder)
    missed = {row.quantity for row in verify.run(recording) if row.missed}
    assert set(SPOILT) <= missed
