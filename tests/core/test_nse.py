"""NSE: the sub-block solve against its dense formula, and which requests are written on which weights."""

import inspect
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file

from lit_edit.delta import remove_columns
from lit_edit.editors import MEMIT
from lit_edit.editors.nse import NSE, Block
from lit_edit.errors import EditError
from lit_edit.moments import SecondMoment
from lit_edit.solver import Within
from lit_edit.spectrum import Subspace
from lit_edit.targets import Targets
from lit_edit.verify import nse as verify
from lit_edit.verify.recording import find
from lit_edit.workbench import Rejected
from tests.bench import Bed, rows_of
from tests.stream import editor, stream, trainer
from tests.tiny import normal, save_tiny

D, M, N, LAM = 24, 10, 6, 2.0


def second_moment(seed):
    basis = torch.linalg.qr(normal(D, D, seed=seed)).Q
    return ((basis * torch.logspace(-2, 1, D, dtype=torch.float64)) @ basis.T).float()


def ready(seed=0, threshold=0.7, earlier=(), limit=None):
    """An editor that has seen some keys, and its metric as a dense matrix."""
    editor, c = NSE(lam=LAM, neuron_threshold=threshold), second_moment(seed)
    editor.allocate(0, M, D)
    if limit is not None:
        editor.remembered(0).limit = limit
    editor.prepare(0, torch.zeros(M, D), SecondMoment(c, 1))
    metric = LAM * ((c + c.T) / 2).double()
    for keys in earlier:
        editor.remember(0, keys, None)
        metric = metric + keys.double().T @ keys.double()
    return editor, metric


def batches(count, seed=0):
    return list(normal(count, 5, D, seed=seed + 30).float())


def problem(seed):
    # Neurons of different sizes: otherwise a share of the scores is a share of the neurons.
    return normal(N, D, seed=seed + 100) * torch.logspace(-1, 1, D, dtype=torch.float64), normal(N, M, seed=seed + 200)


def chosen(keys, threshold):
    """The rule in words: largest first, while their sum is at most a share of the whole."""
    score = keys.abs().sum(0)
    kept, total = [], 0.0
    for neuron in sorted(range(D), key=lambda i: -float(score[i])):
        total += float(score[neuron])
        if kept and total > threshold * float(score.sum()):
            break
        kept.append(neuron)
    return sorted(kept)


def dense(metric, keys, residuals, s):
    """The formula on the block of the selected neurons."""
    k = keys.T[s]
    block = metric[s][:, s] + k @ k.T
    delta = torch.zeros(M, D, dtype=torch.float64)
    delta[:, s] = torch.linalg.solve(block, k @ residuals).T
    return delta


ROUTES = ("outside_closed", "inside_block")
HISTORIES = {"none": ((), None), "thin": (batches(2), None), "folded": (batches(3), 8)}


@pytest.mark.parametrize("threshold", [1e-6, 0.3, 0.7, 0.97])
@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("seed", range(3))
def test_both_ways_are_the_dense_formula_on_the_block(seed, route, history, threshold, monkeypatch):
    earlier, limit = HISTORIES[history]
    editor, metric = ready(seed, threshold, earlier, limit)
    assert (editor.remembered(0).folded.numel() > 0) == (history == "folded")
    monkeypatch.setattr(editor, "within", getattr(editor, route))
    keys, residuals = problem(seed)
    delta, s = editor.solve(0, keys, residuals, None), chosen(keys, threshold)
    assert 0 < len(s) < D and sorted(torch.nonzero(editor.selected(keys))[:, 0].tolist()) == s
    torch.testing.assert_close(delta.dense(), dense(metric, keys, residuals, s), rtol=1e-9, atol=1e-11)
    others = [i for i in range(D) if i not in s]
    assert delta.is_low_rank and delta.factors[1].shape[0] == N
    assert float(delta.dense()[:, others].abs().max()) == 0.0 and float(delta.dense()[:, s].abs().min()) > 0


@pytest.mark.parametrize("threshold", [1.0, 3.0])
def test_a_threshold_of_one_keeps_every_neuron(threshold):
    editor, metric = ready(1, threshold, batches(2))
    keys, residuals = problem(1)
    assert bool(editor.selected(keys).all())
    ours = editor.solve(0, keys, residuals, None).dense()
    torch.testing.assert_close(ours, dense(metric, keys, residuals, list(range(D))), rtol=1e-9, atol=1e-11)


def test_the_cheaper_way_is_taken():
    editor, _ = ready()
    mask = torch.ones(D, dtype=torch.bool)
    mask[3] = False
    assert isinstance(editor.within(0, mask), Within)  # 12 * 24^2 < 23^3
    mask[:8] = False
    assert isinstance(editor.within(0, mask), Block)
    assert editor.within(0, torch.ones(D, dtype=torch.bool)) is editor.metric(0)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("seed", range(5))
def test_a_guard_that_constrains_leaves_the_best_that_is_allowed(seed, route, monkeypatch):
    """Among all changes of the selected neurons that stay out of the directions: stationary, and inside."""
    editor, metric = ready(seed, 0.8, batches(2))
    monkeypatch.setattr(editor, "within", getattr(editor, route))
    keys, residuals = problem(seed)
    u, v = (torch.linalg.qr(normal(d, k, seed=seed + 9)).Q for d, k in ((M, 3), (D, 4)))
    ours = editor.solve(0, keys, residuals, None, Subspace(u, v)).dense()
    mask = editor.selected(keys)
    assert float(ours[:, ~mask].abs().max()) == 0.0
    torch.testing.assert_close(u.T @ ours, torch.zeros(3, D, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(ours @ v, torch.zeros(M, 4, dtype=torch.float64), rtol=0, atol=1e-10)
    gradient = ours @ metric - (residuals.T - ours @ keys.T) @ keys
    allowed = torch.linalg.svd(v * mask[:, None], full_matrices=False).U
    free = remove_columns((gradient * mask).T, allowed).T
    free = free - u @ (u.T @ free)
    assert float(free.norm()) < 1e-9 * float(gradient.norm())


# --------------------------------------------------------------------------------------------------- through a model


class Rewound(MEMIT):
    """MEMIT with history whose targets are those of the original weights."""

    def targets(self, bench, rows):
        with bench.original_model():
            return bench.optimise(rows)


def changes(bed):
    return {layer: bed.weights[layer] - bed.original[layer] for layer in bed.layers}


def test_with_all_neurons_all_requests_and_one_pass_it_is_memit_with_history():
    options = {"alpha": 0.0, "upper_bound": float("inf"), "neuron_threshold": 1.0, "passes": 1}
    beds = [Bed(NSE(lam=1.0, **options)), Bed(Rewound(lam=1.0, history=True))]
    rows = rows_of(6)
    for bed in beds:
        for at in (0, 3):
            bed.batch(rows[at : at + 3])
    ours, memit = (changes(bed) for bed in beds)
    for layer in (0, 1):
        assert float(memit[layer].norm()) > 0.05
        torch.testing.assert_close(ours[layer], memit[layer], rtol=1e-4, atol=1e-6)
    single = Bed(Rewound(lam=1.0, history=False))
    for at in (0, 3):
        single.batch(rows[at : at + 3])
    assert float((changes(single)[1] - memit[1]).norm()) > 1e-3 * float(memit[1].norm()), "history has to matter here"


def test_targets_are_those_of_the_original_weights():
    bed, rows = Bed(NSE(lam=0.1, alpha=0.0)), rows_of(4)
    fresh = bed.bench().optimise(rows[2:])
    bed.batch(rows[:2])
    bench = bed.bench()
    aimed = bed.editor.aim(bench, rows[2:])
    assert torch.equal(aimed.values_ND, fresh.values_ND)
    assert all(torch.equal(bed.anatomy.weight(layer), bed.weights[layer]) for layer in bed.layers)
    assert not torch.equal(bench.optimise(rows[2:]).values_ND, fresh.values_ND)


def distances(bed, rows):
    bench = bed.bench()
    aimed = bed.editor.aim(bench, rows)
    return (aimed.values_ND - bench.reader(rows).values(bed.layers[-1])).norm(dim=1)


def between(values):
    """Two bounds that leave out the smallest and the largest value."""
    ordered = values.sort().values
    return float(ordered[:2].mean()), float(ordered[-2:].mean())


def test_requests_too_close_or_too_far_are_not_written_but_remembered():
    rows = rows_of(5)
    far = distances(Bed(NSE(alpha=0.0)), rows)
    alpha, upper = between(far)
    bed, some = (Bed(NSE(lam=1.0, alpha=alpha, upper_bound=upper, passes=1)) for _ in range(2))
    active = [i for i, d in enumerate(far.tolist()) if alpha < d < upper]
    assert len(active) == 3
    bench = bed.batch(rows)
    some.batch([rows[i] for i in active])
    assert bench.scalars["nse/active/pass_0"] == 3
    for layer in bed.layers:
        torch.testing.assert_close(changes(bed)[layer], changes(some)[layer], rtol=1e-4, atol=1e-6)
        assert len(bed.editor.remembered(layer)) == 5 and len(some.editor.remembered(layer)) == 3
    # A batch that asks for nothing changes nothing, and its keys are remembered all the same.
    idle = Bed(NSE(alpha=1e6, upper_bound=2e6))
    bench = idle.batch(rows)
    assert not bench.changes and bench.scalars["nse/active/pass_0"] == 0 and "nse/active/pass_1" not in bench.scalars
    assert len(idle.editor.remembered(0)) == 5


class Spy(NSE):
    """Notes what it is asked to solve."""

    def __init__(self, **options):
        super().__init__(**options)
        self.asked = []

    def solve(self, layer, keys, residuals, weight, avoid=None):
        self.asked.append((layer, keys))
        return super().solve(layer, keys, residuals, weight, avoid)


def test_a_second_pass_solves_for_what_the_first_has_not_reached():
    rows = rows_of(5)
    one = Bed(NSE(lam=20.0, alpha=0.0, upper_bound=float("inf"), neuron_threshold=0.6, passes=1))
    one.batch(rows)
    aimed = one.bench()
    with aimed.original_model():
        z = aimed.optimise(rows).values_ND
    left = (z - aimed.reader(rows).values(1)).norm(dim=1)
    alpha = float(left.median())
    two = Bed(Spy(lam=20.0, alpha=alpha, upper_bound=float("inf"), neuron_threshold=0.6))
    bench = two.batch(rows)
    assert [(layer, len(keys)) for layer, keys in two.editor.asked] == [(0, 5), (1, 5), (0, 2), (1, 2)]
    assert bench.scalars["nse/active/pass_1"] == 2
    reached = (z - bench.reader(rows).values(1)).norm(dim=1)
    again = left > alpha
    assert bool((reached[again] < left[again]).all()), "the second pass has to bring them closer"
    # Keys are remembered as the passes have left them, which is not how the first pass has seen them.
    reader = two.bench().reader(rows)
    for layer in two.layers:
        assert torch.equal(two.editor.remembered(layer).keys, reader.keys(layer))
    assert not torch.allclose(two.editor.remembered(1).keys, two.editor.asked[1][1], atol=1e-4)


def test_no_more_passes_than_allowed():
    bed = Bed(Spy(lam=1e4, alpha=0.0, upper_bound=float("inf"), passes=3))
    bed.batch(rows_of(2))
    assert len(bed.editor.asked) == 3 * len(bed.layers)


def test_what_is_not_finite_is_rejected_instead_of_skipped():
    bed, rows = Bed(NSE(alpha=0.0)), rows_of(2)
    bench = bed.bench()
    aimed = bed.editor.aim(bench, rows)
    broken = Targets(aimed.values_ND * torch.tensor([[1.0], [float("nan")]]), *list(vars(aimed).values())[1:])
    with pytest.raises(Rejected, match="not finite"):
        bed.editor.change(bench, rows, broken)


def fit(model, folder, ckpt=None, **options):
    folder.mkdir(exist_ok=True)
    module = editor(model, folder.parent / "cache", editor=NSE(lam=10.0, alpha=0.0, neuron_threshold=0.8))
    saving = ModelCheckpoint(str(folder), save_last=True, every_n_train_steps=1)
    run = trainer(folder, [saving], enable_checkpointing=True, **options)
    run.fit(module, datamodule=stream(folder), ckpt_path=ckpt)
    return module


def test_a_run_under_a_trainer_can_stop_and_go_on_with_the_same_bits(tmp_path):
    model = str(save_tiny(tmp_path / "model", "gpt2"))
    whole = fit(model, tmp_path / "whole")
    fit(model, tmp_path / "part", max_steps=2)
    resumed = fit(model, tmp_path / "part", tmp_path / "part" / "last.ckpt")
    assert whole.edits == resumed.edits == 8
    for layer in whole.layers:
        assert torch.equal(whole.master(layer), resumed.master(layer))
        assert not torch.equal(whole.master(layer), whole.original(layer))
    for name, value in whole.editor.state_dict().items():
        assert torch.equal(value, resumed.editor.state_dict()[name]), name


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"lam": 0.0}, "lam"),
        ({"alpha": -1.0}, "alpha"),
        ({"alpha": 3.0, "upper_bound": 3.0}, "upper_bound"),
        ({"upper_bound": float("nan")}, "upper_bound"),
        ({"neuron_threshold": 0.0}, "neuron_threshold"),
        ({"passes": 0}, "passes"),
    ],
)
def test_values_that_make_no_sense(wrong, word):
    with pytest.raises(EditError, match=f"NSE's {word}"):
        NSE(**wrong)


def test_the_fragment_names_every_option_with_its_default():
    path = Path(__file__).parents[2] / "configs" / "editors" / "nse.yaml"
    options = yaml.safe_load(path.read_text())["init_args"]
    assert options == {name: p.default for name, p in inspect.signature(NSE).parameters.items()}


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
def copied(shared, tmp_path):
    """A recording with its records, to be spoilt."""
    golden, target = shared / "golden" / "a", tmp_path / "set" / "tiny-llama"
    shutil.copytree(golden / "tiny-llama" / "model", target / "model")
    shutil.copy(golden / "records.json", target.parent)
    for name in ("meta.json", "stats.safetensors", "float64_recomputation.json", "NSE.safetensors"):
        shutil.copy(golden / "tiny-llama" / name, target)
    return target


def test_recorded_numbers_agree_and_every_one_is_compared(copied):
    (recording,) = find(copied)
    rows = verify.run(recording)
    assert len(rows) > 30 and not [row.quantity for row in rows if row.missed]
    assert not recording.tensors("NSE").left_out()


def test_every_quantity_off_by_a_hundredth_is_a_miss(copied):
    tensors = load_file(copied / "NSE.safetensors")
    save_file(
        {name: value * (1.01 if name in SPOILT.values() else 1.0) for name, value in tensors.items()},
        copied / "NSE.safetensors",
    )
    (recording,) = find(copied)
    missed = {row.quantity for row in verify.run(recording) if row.missed}
    assert set(SPOILT) <= missed
