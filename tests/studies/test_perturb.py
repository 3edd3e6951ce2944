"""Noise in groups of singular directions: the groups, its norm, and where it lies."""

from pathlib import Path

import pytest
import torch
from tiny import normal, tiny_model, tiny_tokenizer
from weighing import CPU, measured

from lit_edit.spectrum import decompose, energy_rank
from lit_edit.studies.base import Point
from lit_edit.studies.perturb import Perturb, energy_groups, within


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (24, 24)])
@pytest.mark.parametrize("groups", [2, 10])
@pytest.mark.parametrize("energy", ["sigma", "sigma2"])
def test_groups_partition_components_and_the_frobenius_norm(shape, groups, energy):
    weight = normal(*shape)
    found = decompose(weight)
    parts = energy_groups(found.sigma, groups, energy)
    assert len(parts) == groups and [i for part in parts for i in part] == list(range(min(shape)))
    squares = [
        float(
            (
                (found.left[:, p.start : p.stop].double() * found.sigma[p.start : p.stop])
                @ found.right[:, p.start : p.stop].double().T
            )
            .square()
            .sum()
        )
        for p in parts
    ]
    assert sum(squares) == pytest.approx(float(weight.square().sum()), rel=1e-6)
    mass = found.sigma if energy == "sigma" else found.sigma**2
    before = torch.cat([torch.zeros(1), mass.cumsum(0)[:-1]]) / mass.sum()
    for number, part in enumerate(parts):
        assert all(number / groups - 1e-9 <= before[i] < (number + 1) / groups + 1e-9 for i in part), "by the energy before it"


def test_the_first_of_ten_groups_is_what_the_guard_protects():
    sigma = decompose(normal(40, 90)).sigma
    assert len(energy_groups(sigma, 10)[0]) == energy_rank(sigma, 0.1)


def test_a_heavy_component_leaves_groups_empty_and_is_in_one():
    sigma = torch.tensor([7.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    assert energy_groups(sigma, 5) == [range(0, 1), range(1, 1), range(1, 1), range(1, 2), range(2, 4)]


@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_noise_has_its_norm_and_stays_in_its_directions(shape):
    spectrum = decompose(normal(*shape))
    for part in energy_groups(spectrum.sigma, 10):
        left, right = spectrum.left[:, part.start : part.stop], spectrum.right[:, part.start : part.stop]
        noise = within(left, right, 3.5, torch.Generator().manual_seed(1))
        assert float(noise.norm()) == pytest.approx(3.5, rel=1e-9)
        left, right = left.double(), right.double()
        torch.testing.assert_close(left @ (left.T @ noise @ right) @ right.T, noise, rtol=0, atol=1e-5)
        assert int(torch.linalg.matrix_rank(noise, rtol=1e-5)) == len(part), "all directions of the group, and no others"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_perturbations_have_equal_norm_in_the_model(models, text, family):
    study = Perturb(models[family], [text], strengths=[0.3, 1.0], seeds=[0], groups=5, matrices="all")
    for point in study.points()[1:]:
        result = study.measure(point, CPU, Path())
        assert all(fact["changed"] for fact in result["matrices"])
        for fact in result["matrices"]:
            assert fact["change"] == pytest.approx(point.settings["strength"], rel=1e-6)


def test_noise_lies_where_its_point_says(models, text):
    study = Perturb(models["llama"], [text], strengths=[0.5], seeds=[0, 1], groups=4)
    matrix = study._on(CPU).matrices[0]
    spectrum, weight = matrix.spectrum, matrix.weight_OI.double()
    noise = {
        (p.settings["kind"], p.settings["group"], p.settings["seed"]): study.change(p, matrix)[0] - weight
        for p in study.points()[1:]
    }
    parts = energy_groups(spectrum.sigma, 4)
    for (kind, group, _), delta in noise.items():
        if kind == "group":
            shares = [
                float(
                    (
                        spectrum.left[:, p.start : p.stop].double().T @ delta @ spectrum.right[:, p.start : p.stop].double()
                    ).norm()
                    / delta.norm()
                )
                for p in parts
            ]
            assert shares[group] == pytest.approx(1, abs=1e-6) and sum(shares) == pytest.approx(1, abs=1e-4)
        elif kind == "matched":
            assert int(torch.linalg.matrix_rank(delta, rtol=1e-4)) == len(parts[group])
        else:
            assert int(torch.linalg.matrix_rank(delta, rtol=1e-4)) == min(delta.shape)
    assert not torch.equal(noise["group", 0, 0], noise["group", 0, 1]), "another seed is other noise"
    strong = Point("", {**study.points()[1].settings, "strength": 1.0})
    torch.testing.assert_close(study.change(strong, matrix)[0] - weight, 2 * noise["group", 0, 0], msg="strength only scales")


def test_a_group_without_directions_leaves_the_matrix(tmp_path, text):
    model = tiny_model("llama")
    for block in model.model.layers:
        spectrum = decompose(block.mlp.down_proj.weight)
        sigma = torch.ones(32)
        sigma[0] = 30.0  # 30 of 61: the second fifth is empty, the first component ends behind it
        block.mlp.down_proj.weight.copy_((spectrum.left * sigma) @ spectrum.right.T)
    model.save_pretrained(tmp_path / "heavy")
    tiny_tokenizer().save_pretrained(tmp_path / "heavy")
    study = Perturb(str(tmp_path / "heavy"), [text], strengths=[0.5], seeds=[0], groups=5, controls=False, resamples=20)
    results = measured(study)
    empty = results["group 20-40 %, strength 0.5, seed 0"]
    assert empty["rows"] is None and all(
        fact == {**fact, "components": 0, "changed": False, "change": 0.0} for fact in empty["matrices"]
    )
    row = study.table(results)[2]
    assert (row["energy"], row["matrices"], row["ability"]) == ("20-40 %", 0, None)
    assert study.figures(results)["ability"].axes[0].get_lines()
