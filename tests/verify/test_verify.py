"""The replay agrees with the recordings, and notices what does not."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_edit.verify import family, memit, memit_seq, revive, spectra, walk
from lit_edit.verify.cli import CHECKS, main
from lit_edit.verify.recording import find
from lit_edit.verify.table import Row, Tally, Tolerance, relative, render

MODEL = "tiny-llama"


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "golden" / "a"


@pytest.fixture
def copied(golden, tmp_path):
    """One model's folder (model and covered files only) with its records, to be spoilt."""
    target = tmp_path / "set" / MODEL
    target.mkdir(parents=True)
    shutil.copy(golden / "records.json", target.parent)
    for name in ("meta.json", *(file for check in CHECKS for file in check.files)):
        if (golden / MODEL / name).exists():  # text measures are recorded for one model only
            shutil.copy(golden / MODEL / name, target)
    shutil.copytree(golden / MODEL / "model", target / "model")
    return target


def spoil(path, name, change):
    tensors = load_file(path)
    tensors[name] = change(tensors[name])
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


OTHERS = [pytest.param(model, marks=pytest.mark.slow) for model in ("tiny-gptj", "tiny-llama")]


@pytest.mark.parametrize("model", ["tiny-gpt2", *OTHERS])
def test_recorded_numbers_agree(golden, model, capsys):
    code = main([str(golden / model)])
    out = capsys.readouterr().out
    assert code == 0, "\n".join(line for line in out.splitlines() if "MISS" in line)
    for word in ("second moments", "MEMIT_seq", "REVIVE", "spectra", "none left out"):
        assert word in out


SPOILT = {
    "keys": "batch1/layer3/keys",
    "z_cur": "batch2/layer4/z_cur",
    "residuals": "batch1/layer2/resid",
    "delta": "{last}/layer3/delta",
    "delta_fro": "batch2/layer3/delta_fro",
    "W_after": "batch3/layer4/W_after",
    "W_after_fro": "batch4/layer2/W_after_fro",
    "z": "batch1/z",
    "z_reached": "batch3/z_reached",
    "loss_traj, total": "batch4/req1/loss_traj",
    "loss_traj, kl": "batch4/req1/loss_traj",
}


@pytest.mark.parametrize(("method", "check", "last"), [("MEMIT", memit, "batch3"), ("MEMIT_seq", memit_seq, "batch1")])
def test_every_quantity_off_by_a_hundredth_is_a_miss(copied, method, check, last):
    """The full replay takes nothing from the spoilt tensors, so that each of them shows under its own name."""
    names = {quantity: name.format(last=last) for quantity, name in SPOILT.items()}
    for name in set(names.values()):
        spoil(copied / f"{method}.safetensors", name, lambda value: value * 1.01)
    (recording,) = find(copied)
    worst = {row.quantity: row.worst for row in check.run(recording) if row.missed}
    for quantity, name in names.items():
        assert worst.get(f"{quantity} [full replay]") == name
    assert any(quantity.startswith("residuals [recorded z") for quantity in worst)
    assert any(quantity.startswith("keys [recorded weights") for quantity in worst)


def test_a_trajectory_off_by_a_hundredth_is_a_miss(copied):
    spoil(copied / "MEMIT.safetensors", "batch0/req3/delta_traj", lambda value: value * 1.01)
    (recording,) = find(copied)
    method = memit.method(recording)
    recording.__dict__["batches"] = recording.batches[:1]  # the first batch is enough
    tally = Tally(recording, "MEMIT")
    walk.replay(method, tally)
    missed = {row.quantity: row.worst for row in tally.rows() if row.missed}
    assert len(missed) == 3 and all(worst.startswith("batch0/req3/delta_traj") for worst in missed.values())


@pytest.mark.parametrize(
    ("name", "quantity"),
    [
        ("batch3/layer3/delta", "delta"),
        ("batch2/layer4/delta_fro", "delta_fro"),
        ("batch3/layer2/W_after", "W_after"),
        ("batch1/layer2/W_after_fro", "W_after_fro"),
    ],
)
def test_a_closed_form_off_by_one_in_a_hundred_thousand_is_a_miss(copied, name, quantity):
    spoil(copied / "MEMIT.safetensors", name, lambda value: value * (1 + 1e-5))
    (recording,) = find(copied)
    tally = Tally(recording, "MEMIT")
    family.closed_form(memit.method(recording), tally, "here", "delta")
    assert [(row.quantity, row.worst) for row in tally.rows() if row.missed] == [(f"{quantity} here", name)]


@pytest.mark.parametrize(
    ("name", "basis"),
    [
        ("MEMIT/batch0/layer3/tau0.1/safe_full", "full"),
        ("AlphaEdit/batch0/layer3/tau0.3/safe_full", "full"),
        ("MEMIT/batch0/layer3/tau0.05/safe_compact", "compact"),
    ],
)
def test_a_safe_delta_off_by_a_hundredth_is_a_miss(copied, golden, name, basis):
    shutil.copy(golden / MODEL / "AlphaEdit.safetensors", copied)
    spoil(copied / "REVIVE.safetensors", name, lambda value: value * 1.01)
    (recording,) = find(copied)
    missed = [(row.quantity, row.worst) for row in revive.run(recording) if row.missed]
    assert missed == [(f"safe delta, {basis} basis", name)]


@pytest.mark.parametrize(
    ("path", "check"),
    [
        (("layer2/sigma_W0", 3), spectra),
        (("layer2/tau0.1", "k_ge"), spectra),
        (("layer3/tau0.3", "k_released_code_rule"), spectra),
        (("spectral_metrics_MEMIT", "layer3/after_batch2", "condition"), spectra),
        (("spectral_metrics_MEMIT", "layer4/after_batch3", "tau0.1", "LS"), spectra),
        (("spectral_metrics_MEMIT", "layer2/after_batch1", "k8", "SS_left"), spectra),
        (("MEMIT/batch1/layer4/tau0.3", "norm_safe_full"), revive),
    ],
)
def test_a_spoilt_spectral_number_is_a_miss(copied, path, check):
    file = copied / "revive_and_spectral.json"
    content = json.loads(file.read_text())
    entry = content
    for key in path[:-1]:
        entry = entry[key]
    value = entry[path[-1]]
    entry[path[-1]] = value + 1 if isinstance(value, int) else value * 1.01
    file.write_text(json.dumps(content))
    (recording,) = find(copied)
    assert sum(row.missed for row in check.run(recording)) == 1


def test_the_exit_code_tells_a_miss(copied, capsys):
    spoil(copied / "stats.safetensors", "layer2/C", lambda value: value * 1.01)
    for path in copied.glob("*.safetensors"):
        if path.stem != "stats":
            path.unlink()
    (copied / "revive_and_spectral.json").unlink()
    assert main(["--misses", str(copied)]) == 1
    out = capsys.readouterr().out
    assert "C from the texts" in out and "layer2/C" in out and "MISS" in out and "not recorded here" not in out


def test_files_that_are_not_there_are_named_and_no_miss(copied, capsys):
    for path in copied.glob("*.safetensors"):
        path.unlink()
    (copied / "revive_and_spectral.json").unlink()
    assert main([str(copied.parent)]) == 0
    out = capsys.readouterr().out
    assert out.count("not recorded here") >= len(CHECKS) and "0 of 0 tensors" in out


def test_without_recorded_moments_they_are_collected_and_tolerances_are_those_of_a_model(copied):
    (copied / "stats.safetensors").unlink()
    (recording,) = find(copied)
    rows = [row for row in memit.run(recording) if row.quantity.startswith("delta [")]
    assert rows and all(row.tolerance.value == 1e-4 for row in rows)
    assert all(row.error < 1e-4 for row in rows if "recorded K" in row.quantity)


def test_extra_tensors_are_counted_as_left_out(copied, capsys):
    tensors = load_file(copied / "stats.safetensors")
    save_file({**tensors, "layer9/extra": torch.ones(2)}, copied / "stats.safetensors")
    for path in copied.glob("*.safetensors"):
        if path.stem != "stats":
            path.unlink()
    assert main([str(copied)]) == 0
    assert "left out stats: 1 x layer#/extra" in capsys.readouterr().out


def test_recorded_caches_are_compared_and_used(copied):
    """A recording that holds the cache itself is met through it: a spoilt one shows in the cache and in the delta."""
    path = copied / "MEMIT_seq.safetensors"
    keys = load_file(path)["batch0/layer2/keys"]
    for factor in (1.0, 1.01):
        tensors = load_file(path) | {"batch0/layer2/cache_c": factor * keys @ keys.T}
        path.unlink()  # old versions of safetensors write over the file that they have mapped
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
        (recording,) = find(copied)
        missed = {row.quantity for row in memit_seq.run(recording) if row.missed}
        assert ("cache [recorded K]" in missed) == ("delta [recorded K, R, C; float32 cache]" in missed) == (factor > 1)


def sentence(capsys):
    caught = capsys.readouterr()
    assert caught.out == "" and caught.err.count("\n") == 1
    return caught.err


def test_what_is_no_recording(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "no folder" in sentence(capsys)
    assert main([str(tmp_path)]) == 2
    assert "no recording" in sentence(capsys)


@pytest.mark.parametrize("file", ["MEMIT.safetensors", "stats.safetensors", "revive_and_spectral.json", "meta.json"])
def test_a_cut_file_is_damaged(copied, capsys, file, monkeypatch):
    few = tuple(check for check in CHECKS if check.name in ("second moments", "MEMIT", "REVIVE") or file in check.files)
    monkeypatch.setattr("lit_edit.verify.cli.CHECKS", few)  # the others take their time and do not read it
    path = copied / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert main([str(copied)]) == 2
    assert file in sentence(capsys)


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("batch0/layer2/keys", lambda x: x[:-1], "shape"),
        ("batch1/layer3/resid", lambda x: x * float("nan"), "NaN"),
    ],
)
def test_a_tensor_that_cannot_be_what_it_says_is_damage(copied, capsys, name, change, word):
    spoil(copied / "MEMIT.safetensors", name, change)
    assert main([str(copied)]) == 2
    message = sentence(capsys)
    assert name in message and word in message


def test_missing_model_records_and_hyper_parameters(copied, capsys):
    meta = json.loads((copied / "meta.json").read_text())
    del meta["hyper_parameters"]["MEMIT"]["v_lr"]
    (copied / "meta.json").write_text(json.dumps(meta))
    assert main([str(copied)]) == 2
    assert "v_lr" in sentence(capsys)
    (copied.parent / "records.json").unlink()
    assert main([str(copied)]) == 2
    assert "records.json" in sentence(capsys)
    shutil.rmtree(copied / "model")
    assert main([str(copied.parent)]) == 2
    assert "no recording" in sentence(capsys)


def test_relative_errors_and_rows():
    one = torch.ones(3)
    assert relative(1.01 * one, one) == pytest.approx(0.01, rel=1e-4)
    assert relative(one, torch.ones(4)) == float("inf")
    assert relative(one * 0, one * 0) == 0.0 and relative(one, one * 0) > 1
    allowed = Tolerance(1e-3, "test")
    assert not Row("m", "x", "q", 1e-3, allowed, 1).missed
    assert Row("m", "x", "q", float("nan"), allowed, 1).missed and Row("m", "x", "q", 2e-3, allowed, 1, worst="t").missed
    text = render([Row("m", "x", "q", 2e-3, allowed, 1, worst="t"), Row("m", "x", "r", note="why")])
    assert "MISS: m x, q: worst at t" in text and "why" in text
