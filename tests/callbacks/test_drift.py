"""SpectralDrift through real runs: what is logged and drawn, and what an interruption leaves of it."""

import csv
import json

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from stream import editor, stream
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import save_tiny

from lit_edit.algebra import leading
from lit_edit.algebra.drift import MEASURES
from lit_edit.callbacks import JournalKeeper, Report, SpectralDrift, StreamCheckpoint
from lit_edit.editors import FT, MEMIT, ROME
from lit_edit.errors import EditError
from lit_edit.guards import PRUNE
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO
from lit_edit.spectrum import energy_rank, protected_share, triple_drift
from lit_edit.workbench import Rejected

FROM_THE_SECOND = {"delta_cosine", "key_cosine_max", "key_cosine_mean", "key_memory_share"}
"""Measures that need an earlier batch."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("gpt2"), "gpt2"))


def fit(model, folder, watcher, ckpt=None, callbacks=(), count=8, module=None, logger=None):
    """A run that SpectralDrift watches and that keeps a checkpoint of every batch."""
    folder.mkdir(exist_ok=True)
    module = module or editor(model, folder.parent / "cache")
    save = StreamCheckpoint(
        str(folder / "checkpoints"), save_last=True, every_n_train_steps=1, save_on_exception=True, enable_version_counter=False
    )
    run = L.Trainer(
        default_root_dir=str(folder),
        plugins=[SafetensorsCheckpointIO()],
        callbacks=[*callbacks, JournalKeeper(str(folder)), watcher, Report(str(folder)), save],
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=CSVLogger(folder, name="", version="resumed" if ckpt else "csv") if logger is None else logger,
        log_every_n_steps=1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    run.fit(module, datamodule=stream(folder, count), ckpt_path=ckpt)
    return module


def logged(folder, version="csv"):
    """Drift measures by step, ``{step: {name: text}}``."""
    with (folder / version / "metrics.csv").open() as file:
        rows = [
            (int(r["step"]), {k: v for k, v in r.items() if k.startswith("drift/") and v != ""}) for r in csv.DictReader(file)
        ]
    return {step: found for step, found in rows if found}


class _Seen(Callback):
    """Weights after every batch, and the keys that were written to."""

    def __init__(self):
        self.weights, self.keys = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights.append({i: pl_module.master(i).detach().double().clone() for i in pl_module.layers})
        self.keys.append({i: keys.double() for i, keys in pl_module.outcome.keys.items()})


def test_everything_is_logged_and_right(model, tmp_path):
    seen, watcher = _Seen(), SpectralDrift(2, tau=0.2)
    module = fit(model, tmp_path / "run", watcher, callbacks=[seen], count=10)
    found = logged(tmp_path / "run")
    assert sorted(found) == [1, 3, 4], "every second batch, and the end"
    for step, values in found.items():
        assert set(values) == {f"drift/{name}/layer_{layer}" for name in MEASURES for layer in (0, 1)}
        for layer in (0, 1):
            value = {name: float(values[f"drift/{name}/layer_{layer}"]) for name in MEASURES}
            first, now = module.original(layer).double(), seen.weights[step][layer]
            change, last = now - first, now - (seen.weights[step - 1][layer])
            before = seen.weights[step - 1][layer] - (seen.weights[step - 2][layer] if step > 1 else first)
            spectrum = module.spectra[layer]
            rank = energy_rank(spectrum.sigma, 0.2)
            s = torch.linalg.svdvals(now)
            old = torch.cat([keys[layer] for keys in seen.keys[:step]])
            new = seen.keys[step][layer]
            cosines = ((new / new.norm(dim=1, keepdim=True)) @ (old / old.norm(dim=1, keepdim=True)).T).amax(1)
            expected = {
                "norm": now.norm(),
                "delta_norm": change.norm(),
                "last_delta_norm": last.norm(),
                "last_delta_sigma_max": torch.linalg.matrix_norm(last, 2),
                "sigma_max": s[0],
                "condition_number": s[0] / s[-1],
                "delta_sigma_max": torch.linalg.matrix_norm(change, 2),
                "delta_cosine": (last * before).sum() / last.norm() / before.norm(),
                "key_cosine_max": cosines.max(),
                "key_cosine_mean": cosines.mean(),
                "key_memory_share": 1.0,
                "protected_share": protected_share(change, spectrum.subspace(rank)),
                "triple_drift": triple_drift(spectrum, now, rank),
            }
            for name, right in expected.items():
                assert value[name] == pytest.approx(float(right), rel=2e-4, abs=2e-5), name
            # REVIVE at 0.1 protects fewer directions than are looked at here.
            assert 0 < value["protected_share"] < 1 and value["key_cosine_max"] > value["key_cosine_mean"] > 0
    assert watcher.last == {name: pytest.approx(float(value)) for name, value in found[4].items()}


def test_tensorboard_gets_scalars_and_figures(model, tmp_path):
    folder = tmp_path / "run"
    board = TensorBoardLogger(folder, name="", version="tb")
    fit(model, folder, SpectralDrift(1, full_every=2), logger=[board], count=6)
    events = EventAccumulator(str(folder / "tb"), size_guidance={"images": 0, "scalars": 0}).Reload()
    assert [point.step for point in events.Scalars("drift/ls_matched/layer_1")] == [0, 1, 2]
    assert [point.step for point in events.Scalars("drift/delta_cosine/layer_1")] == [1, 2]
    for name in ("spectrum", "overlap"):
        images = events.Images(f"drift/{name}/layer_0")
        assert [image.step for image in images] == [1, 2], "every second look, and the end"
        assert all(image.width > 300 and image.height > 200 and len(image.encoded_image_string) > 2000 for image in images)
        assert images[0].encoded_image_string != images[1].encoded_image_string


def test_large_matrices_get_the_rest_at_full_looks_only(model, tmp_path, monkeypatch):
    monkeypatch.setattr(leading, "EXACT_SIDE", 8)
    monkeypatch.setattr("lit_edit.algebra.drift.EXACT_SIDE", 8)
    fit(model, tmp_path / "run", SpectralDrift(1, tau=0.1, full_every=3), count=10)
    found = logged(tmp_path / "run")
    assert [step for step, values in found.items() if "drift/effective_rank/layer_0" in values] == [2, 4]
    assert all("drift/ls/layer_0" in values for values in found.values()) and len(found) == 5
    fit(model, tmp_path / "never", SpectralDrift(1, full_every=0), count=4)
    assert not any("drift/effective_rank/layer_0" in values for values in logged(tmp_path / "never").values())


class _Fail(Callback):
    def __init__(self, hook, at):
        setattr(self, hook, self._fail)
        self.at = at

    def _fail(self, trainer, *_):
        if trainer.global_step == self.at:
            raise RuntimeError("on purpose")


@pytest.mark.parametrize("hook", ["on_before_optimizer_step", "on_train_batch_end"])
@pytest.mark.parametrize("kind", ["thin", "dense"])
def test_a_resumed_run_logs_the_same(model, tmp_path, hook, kind):
    def made():
        changed = {"editor": FT(), "guards": []} if kind == "dense" else {}
        return editor(model, tmp_path / "cache", **changed)

    def watcher():
        return SpectralDrift(2, remembered_keys=3)

    fit(model, tmp_path / "whole", watcher(), count=12, module=made())
    whole = logged(tmp_path / "whole")
    folder = tmp_path / "part"
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(model, folder, watcher(), callbacks=[_Fail(hook, 4)], count=12, module=made())
    before = logged(folder)
    assert sorted(before) == ([1, 3] if hook == "on_before_optimizer_step" else [1]), "a look may be owed"
    latest = watcher()
    fit(model, folder, latest, str(folder / "checkpoints" / "last.ckpt"), count=12, module=made())
    parts = {**before, **logged(folder, "resumed")}
    assert sorted(parts) == sorted(whole) == [1, 3, 5]
    for step, values in whole.items():
        assert set(parts[step]) == set(values)
        for name, value in values.items():
            # Equal weights; products of matrices may still round by where in memory these lie.
            assert float(parts[step][name]) == pytest.approx(float(value), rel=1e-9, abs=1e-12), (step, name)
    assert latest.last == {name: pytest.approx(float(value), rel=1e-9, abs=1e-12) for name, value in whole[5].items()}
    names = {name.split("/")[1] for name in whole[5]}
    assert ("key_cosine_max" in names) == (kind == "thin") and "delta_cosine" in names
    if kind == "thin":
        assert float(whole[5]["drift/key_memory_share/layer_0"]) == pytest.approx(0.3)


def test_what_was_not_written_leaves_no_trace(model, tmp_path):
    """A rejected batch: no change, no keys; the next one is compared with the one before."""

    class Sometimes(MEMIT):
        def solve(self, layer, keys, residuals, weight, avoid=None):
            Sometimes.calls += 1
            if Sometimes.calls == 2:
                raise Rejected("on purpose")
            return super().solve(layer, keys, residuals, weight, avoid)

    Sometimes.calls = 0
    seen = _Seen()
    module = editor(model, tmp_path / "cache", editor=Sometimes(lam=10.0), layers=[1], guards=[])
    fit(model, tmp_path / "run", SpectralDrift(1), callbacks=[seen], count=6, module=module)
    found = logged(tmp_path / "run")
    assert float(found[1]["drift/last_delta_norm/layer_1"]) == 0.0
    assert not FROM_THE_SECOND & {name.split("/")[1] for name in found[1]}
    first, last = seen.weights[0][1] - module.original(1).double(), seen.weights[2][1] - seen.weights[1][1]
    expected = float((first * last).sum() / first.norm() / last.norm())
    assert float(found[2]["drift/delta_cosine/layer_1"]) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert seen.keys[1] == {}


def test_an_editor_that_writes_in_order_and_refuses_some(model, tmp_path):
    class Picky(ROME):
        def walk(self, bench, rows, targets_ND):
            if rows[0].request.case_id in ("1", "4"):
                raise Rejected("on purpose")
            return super().walk(bench, rows, targets_ND)

    seen = _Seen()
    fit(
        model, tmp_path / "run", SpectralDrift(1), callbacks=[seen], count=6,
        module=editor(model, tmp_path / "cache", editor=Picky(), layers=[1], guards=[]),
    )  # fmt: skip
    assert [len(keys[1]) for keys in seen.keys] == [1, 2, 1]
    last = seen.weights[1][1] - seen.weights[0][1]
    assert float(logged(tmp_path / "run")[1]["drift/last_delta_norm/layer_1"]) == pytest.approx(float(last.norm()), rel=1e-4)


def test_it_changes_nothing_and_looks_at_what_is_edited(model, tmp_path):
    """Weights, random state and modes of a watched run are those of an unwatched one; PRUNE's view is not looked at."""

    def run(folder, watcher):
        torch.manual_seed(3)
        module = fit(model, folder, watcher, module=editor(model, tmp_path / "cache", guards=[PRUNE()]))
        shown = {name: value.clone() for name, value in module.net.state_dict().items()}
        return shown, torch.get_rng_state(), [part.training for part in module.net.modules()], module

    plain, watched = run(tmp_path / "plain", SpectralDrift(0)), run(tmp_path / "watched", SpectralDrift(1))
    assert torch.equal(plain[1], watched[1]) and plain[2] == watched[2]
    assert all(torch.equal(value, watched[0][name]) for name, value in plain[0].items())
    assert float(logged(tmp_path / "watched")[3]["drift/norm/layer_0"]) == pytest.approx(float(watched[3].master(0).norm()))
    assert logged(tmp_path / "plain") == {}


def test_the_summary_keeps_the_latest(model, tmp_path):
    watcher = SpectralDrift(1)
    fit(model, tmp_path / "run", watcher)
    report = Report(str(tmp_path / "run"))
    assert watcher.last and all(isinstance(value, float) for value in watcher.last.values())
    assert json.loads(json.dumps(watcher.last)) == watcher.last and report.rows == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tau": 0.0}, "tau is 0;"),
        ({"tau": 1.0}, "tau is 1;"),
        ({"every_n_batches": -1}, "SpectralDrift's every_n_batches is -1"),
        ({"full_every": -2}, "SpectralDrift's full_every is -2"),
        ({"remembered_keys": -3}, "SpectralDrift's remembered_keys is -3"),
    ],
)
def test_mistakes_are_told(options, sentence):
    with pytest.raises(EditError, match=sentence):
        SpectralDrift(**options)
