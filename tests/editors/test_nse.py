"""NSE through a model: which requests are written on which weights, and in how many passes."""

import inspect
from pathlib import Path

import pytest
import torch
import yaml
from resuming import stops_and_goes_on_with_the_same_bits

from lit_edit.editors import MEMIT
from lit_edit.editors.nse import NSE
from lit_edit.errors import EditError
from lit_edit.targets import Targets
from lit_edit.workbench import Rejected
from tests.bench import Bed, rows_of

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


def test_a_run_under_a_trainer_can_stop_and_go_on_with_the_same_bits(tmp_path):
    stops_and_goes_on_with_the_same_bits(tmp_path, lambda: NSE(lam=10.0, alpha=0.0, neuron_threshold=0.8))


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
