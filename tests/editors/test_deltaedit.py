"""DeltaEdit: AlphaEdit in order, until interference is unusual; then values keep out of what was written."""

import inspect
import math
from pathlib import Path

import pytest
import torch
import yaml
from resuming import stops_and_goes_on_with_the_same_bits

from lit_edit.editors import AlphaEdit
from lit_edit.editors.deltaedit import DeltaEdit, Probable
from lit_edit.errors import EditError
from lit_edit.targets import Step
from tests.bench import Bed, rows_of
from tests.tiny import normal

EASY = {"threshold": 0.5, "ridge": 0.5, "stop_probability": 1.0}
ALWAYS = {**EASY, "var": 0.0, "floor": 1e-9, "warmup": 3}
"""Orthogonal mode for every request from the fourth on: none has exactly the mean interference."""


class OneByOne(AlphaEdit):
    in_order = True


class Spy(DeltaEdit):
    """Notes what it sees and decides."""

    def __init__(self, **options):
        super().__init__(**options)
        self.strengths, self.modes, self.moves = [], [], []

    def unusual(self, strength):
        self.strengths.append(float(strength))
        self.modes.append(super().unusual(strength))
        return self.modes[-1]

    def targets(self, bench, rows):
        found = super().targets(bench, rows)
        self.moves.append((found.values_ND - found.start_ND)[0].double())
        return found


@pytest.mark.parametrize("size", [1, 4])
def test_without_unusual_interference_it_is_alphaedit_one_at_a_time(size):
    ours, plain = Bed(DeltaEdit(**EASY, warmup=100)), Bed(OneByOne(threshold=0.5, ridge=0.5))
    rows = rows_of(4)
    for bed in (ours, plain):
        for at in range(0, 4, size):
            bed.batch(rows[at : at + size])
    for layer in ours.layers:
        assert float((ours.weights[layer] - ours.original[layer]).norm()) > 0.05
        assert torch.equal(ours.weights[layer], plain.weights[layer])
        assert torch.equal(ours.editor.remembered(layer).keys, plain.editor.remembered(layer).keys)
    assert int(ours.editor.edits) == 4 and float(ours.editor.mean) > 0


def test_the_size_of_a_batch_does_not_matter():
    rows, beds = rows_of(6), [Bed(Spy(**ALWAYS)) for _ in range(2)]
    for bed, size in zip(beds, (2, 6), strict=True):
        for at in range(0, 6, size):
            bed.batch(rows[at : at + size])
    assert beds[0].editor.modes == beds[1].editor.modes == [False, False, True, True, True]
    assert beds[0].editor.strengths == pytest.approx(beds[1].editor.strengths, rel=1e-3)
    for layer in beds[0].layers:
        torch.testing.assert_close(beds[0].weights[layer], beds[1].weights[layer], rtol=1e-3, atol=1e-3)


def used(bed, rows):
    """Directions that B B^T has used, its key and interference, from plain parts of the library."""
    bench, last = bed.bench(), bed.layers[-1]
    written = (bed.weights[last] - bed.original[last]).double()
    inputs, outputs = bench.reader(rows).rows(last)
    noise = written @ inputs[0, 0].double()
    left, sigma, _ = torch.linalg.svd(torch.cat([noise[:, None], written], 1), full_matrices=False)
    return left, sigma.square(), float(noise.norm()), outputs[:, 0]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_in_orthogonal_mode_values_keep_out_of_the_directions_written_so_far(family):
    bed, rows = Bed(Spy(**ALWAYS, space=0.25), family=family, clamp=1.0), rows_of(5)
    for index, row in enumerate(rows):
        left, values, strength, out = used(bed, [row])
        bench = bed.batch([row])
        if index == 0:
            assert not bed.editor.strengths and "deltaedit/orthogonal" not in bench.scalars
            continue
        assert bed.editor.strengths[-1] == pytest.approx(strength, rel=1e-6)
        assert bench.scalars["deltaedit/orthogonal"] == float(index >= 3)
        if index < 3:
            continue
        # Rank grows by one with every edit, and the noise adds nothing to the span: fewer than a quarter of 32.
        count = int((values > 1e-9).sum())
        assert 0 < count == bench.scalars["deltaedit/closed_directions"] <= 8
        move = bed.editor.moves[-1]
        wanted = bed.anatomy.pull_back(bed.layers[-1], out, move[None].float())[0].double()
        assert float((left[:, :count].T @ wanted).norm()) < 1e-5 * float(wanted.norm())
    assert float(bed.editor.moves[-1].norm()) > 0.1


def test_without_the_mode_values_do_meet_those_directions():
    """The counterpart: the same stream in normal mode is not orthogonal by itself."""
    bed, rows = Bed(Spy(**EASY, warmup=100)), rows_of(4)
    for row in rows:
        left, values, *_ = used(bed, [row])
        bed.batch([row])
    count, move = int((values > 1e-9).sum()), bed.editor.moves[-1]
    assert float((left[:, :count].T @ move).norm()) > 0.05 * float(move.norm())


def test_the_averages_are_those_of_the_recursion_and_rest_in_orthogonal_mode():
    bed, rows = Bed(Spy(**EASY, var=2.0, warmup=4, decay=0.7)), rows_of(9)
    mean = variance = 0.0
    for index, row in enumerate(rows):
        bed.batch([row])
        if index:
            s = bed.editor.strengths[-1]
            before = s if index == 1 else mean
            unusual = index >= 4 and abs(s - mean) > 2.0 * math.sqrt(variance)
            assert bed.editor.modes[-1] == unusual
            if not unusual:
                mean = 0.7 * before + 0.3 * s
                variance = 0.7 * variance + 0.3 * (s - mean) ** 2
        assert float(bed.editor.mean) == pytest.approx(mean, rel=1e-12)
        assert float(bed.editor.variance) == pytest.approx(variance, rel=1e-12, abs=1e-30)
        assert int(bed.editor.edits) == index + 1
    assert {True, False} == set(bed.editor.modes[3:]), "the stream has to show both modes, or the test shows little"


@pytest.mark.parametrize(("edits", "expected"), [(19, False), (20, True)])
def test_the_first_requests_are_never_unusual(edits, expected):
    editor = DeltaEdit(var=1.0)
    editor.allocate(0, 4, 4)
    editor.edits, editor.variance = torch.tensor(edits), torch.tensor(4.0, dtype=torch.float64)
    editor.mean = torch.tensor(10.0, dtype=torch.float64)
    assert editor.unusual(torch.tensor(12.1)) == expected and editor.unusual(torch.tensor(7.8)) == expected
    assert not editor.unusual(torch.tensor(11.9))


def test_directions_are_the_leading_ones_over_the_floor_and_no_more_than_their_share():
    basis = torch.linalg.qr(normal(12, 12)).Q
    values = torch.tensor([9.0, 5.0, 3.0, 2.0, 0.3, 0.2, *[0.01] * 6], dtype=torch.float64)
    matrix = basis * values.sqrt()
    for space, floor, count in ((0.25, 0.1, 3), (0.4, 0.1, 4), (0.4, 2.5, 3), (0.4, 20.0, 0), (0.9, 1e-3, 1)):
        found = DeltaEdit(space=space, floor=floor).occupied(matrix)
        assert found.shape == (12, count)
        torch.testing.assert_close(found @ found.T, basis[:, :count] @ basis[:, :count].T, rtol=0, atol=1e-9)


def test_a_floor_over_everything_closes_nothing():
    beds = [Bed(Spy(**{**ALWAYS, "floor": 1e9})), Bed(Spy(**{**ALWAYS, "warmup": 100}))]
    for bed in beds:
        bed.batch(rows_of(4))
    assert [bed.editor.modes[-1] for bed in beds] == [True, False]
    torch.testing.assert_close(beds[0].weights[1], beds[1].weights[1], rtol=0, atol=0)


def test_a_resumed_editor_goes_on_with_the_same_bits():
    rows, whole = rows_of(8), Bed(Spy(**{**EASY, "var": 2.0, "warmup": 4, "decay": 0.7}))
    for at in (0, 2):
        whole.batch(rows[at : at + 2])
    stored = {name: value.clone() for name, value in whole.editor.state_dict().items()}
    assert {"edits", "mean", "variance"} <= set(stored)
    resumed = Bed(Spy(**{**EASY, "var": 2.0, "warmup": 4, "decay": 0.7}))
    resumed.weights = dict(whole.weights)
    resumed.editor.load_state_dict(stored)
    for bed in (whole, resumed):
        for at in (4, 6):
            bed.batch(rows[at : at + 2])
    assert whole.editor.modes[3:] == resumed.editor.modes and True in resumed.editor.modes
    assert all(torch.equal(whole.weights[layer], resumed.weights[layer]) for layer in whole.layers)
    for name, value in whole.editor.state_dict().items():
        assert torch.equal(value, resumed.editor.state_dict()[name])


class Spoil(Spy):
    """Solves for the second request of a batch with NaN."""

    def solve(self, layer, keys, residuals, weight, avoid=None):
        delta = super().solve(layer, keys, residuals, weight, avoid)
        if len(self.moves) == 2 and layer == 1:
            delta.left.mul_(float("nan"))
        return delta


def test_a_refused_request_leaves_no_trace_in_the_statistics():
    rows = rows_of(4)
    bed, without = Bed(Spoil(**EASY)), Bed(Spy(**EASY))
    bench = bed.batch(rows)
    assert [row.request.subject for row, _ in bench.refused] == [rows[1].request.subject]
    without.batch([rows[0], rows[2], rows[3]])
    assert int(bed.editor.edits) == 3 and len(bed.editor.remembered(0)) == 3
    for name, value in without.editor.state_dict().items():
        assert torch.equal(value, bed.editor.state_dict()[name]), name
    assert all(torch.equal(bed.weights[layer], without.weights[layer]) for layer in bed.layers)


def passes(bound):
    """Forward passes of one optimisation, and the probability at its end."""
    bed, seen = Bed(DeltaEdit(**{**EASY, "stop_probability": bound}), steps=12, stop_loss=1e-9), []
    bench = bed.batch(rows_of(1), tell=lambda phase, done, _: seen.append(done) if phase == "targets" else None)
    return seen[-1], float(bench.losses[0].probability_N)


def test_an_optimisation_ends_once_the_answer_is_probable():
    longest, last = passes(1.0)
    first, start = passes(1e-12)
    assert longest == 12 and first == 1 and start < last
    bound = (start + last) / 2
    count, end = passes(bound)
    assert 1 < count < 12 and end > bound


def test_each_request_is_probable_on_its_own():
    ones = torch.ones(3)
    step = Step(torch.tensor([0, 2, 5]), ones[:, None], *([ones] * 4), torch.tensor([0.97, 0.99, 0.98]), ones, ones)
    assert Probable(0.98)(step).tolist() == [False, True, False]


def test_a_run_under_a_trainer_can_stop_and_go_on_with_the_same_bits(tmp_path):
    stops_and_goes_on_with_the_same_bits(tmp_path, lambda: DeltaEdit(threshold=1e-3, ridge=1.0, var=0.5, warmup=3))


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"threshold": 0.0}, "threshold"),
        ({"ridge": 0.0}, "ridge"),
        ({"var": -1.0}, "var"),
        ({"space": 0.0}, "space"),
        ({"space": 1.0}, "space"),
        ({"decay": 1.0}, "decay"),
        ({"warmup": -1}, "warmup"),
        ({"stop_probability": 0.0}, "stop_probability"),
        ({"floor": -1.0}, "floor"),
    ],
)
def test_values_that_make_no_sense(wrong, word):
    with pytest.raises(EditError, match=f"DeltaEdit's {word}"):
        DeltaEdit(**wrong)


def test_the_fragment_names_every_option_with_its_default():
    path = Path(__file__).parents[2] / "configs" / "editors" / "deltaedit.yaml"
    options = yaml.safe_load(path.read_text())["init_args"]
    assert options == {name: p.default for name, p in inspect.signature(DeltaEdit).parameters.items()}
