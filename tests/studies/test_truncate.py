"""Truncated spectra: which components stay, how many, and that all of them are the model."""

import pytest
import torch
from tiny import normal
from weighing import CPU, measured

from lit_edit.probes import WorldSkill
from lit_edit.studies.base import Point
from lit_edit.studies.matrices import Matrix
from lit_edit.studies.truncate import Truncate, components, kept


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("which", ["down", "all"])
def test_all_components_are_the_unedited_model(models, text, family, which):
    study = Truncate(models[family], [text], percents=[100], matrices=which)
    start, whole = measured(study).values()
    assert [fact["components"] for fact in whole["matrices"]] == [fact["rank"] for fact in whole["matrices"]]
    assert all(0 < fact["change"] < 1e-6 for fact in whole["matrices"]), "decomposed and put together, up to rounding"
    torch.testing.assert_close(torch.tensor(whole["rows"]["text"]), torch.tensor(start["rows"]["text"]), rtol=1e-5, atol=1e-5)


def test_what_is_kept_is_the_best_approximation_and_its_complement(models, text):
    study = Truncate(models["gpt2"], [text], percents=[25, 75], keep=["top", "bottom"])
    for matrix in study._on(CPU).matrices:
        cut = {point.key: study.change(point, matrix) for point in study.points()[1:]}
        u, s, vt = torch.linalg.svd(matrix.weight_OI.double(), full_matrices=False)
        best = (u[:, :8] * s[:8]) @ vt[:8]
        torch.testing.assert_close(cut["top 25 %"][0].double(), best, rtol=0, atol=1e-5)
        torch.testing.assert_close(cut["top 25 %"][0] + cut["bottom 75 %"][0], matrix.weight_OI, rtol=0, atol=1e-5)
        facts = cut["top 25 %"][1]
        assert facts["components"] == 8 and facts["rank"] == 32
        assert facts["sigma"] == pytest.approx(float(s[:8].sum() / s.sum()), rel=1e-6)
        assert facts["sigma2"] == pytest.approx(float(s[:8].square().sum() / s.square().sum()), rel=1e-6)


def test_random_components_grow_with_the_percentage(models, text):
    matrix = Truncate(models["gpt2"], [text])._on(CPU).matrices[0]
    few, more = components(matrix, "random", 20, 0), components(matrix, "random", 60, 0)
    assert len(few) == 7 and len(more) == 20 and set(few.tolist()) < set(more.tolist())
    assert not torch.equal(few, components(matrix, "random", 20, 1))
    assert not torch.equal(more, torch.arange(20)) and not torch.equal(more, torch.arange(12, 32))


@pytest.mark.parametrize(
    ("rank", "percent", "count"), [(256, 5, 13), (100, 7, 7), (100, 29, 29), (3, 1, 1), (7, 0, 0), (7, 100, 7)]
)
def test_number_of_components(rank, percent, count):
    assert kept(rank, percent) == count


def test_no_more_components_than_the_rank():
    weight = (normal(12, 4) @ normal(4, 30, seed=1)).float()
    matrix = Matrix("low", weight)
    assert matrix.rank == 4
    assert components(matrix, "top", 100, None).tolist() == components(matrix, "bottom", 100, None).tolist() == [0, 1, 2, 3]
    assert components(matrix, "bottom", 50, None).tolist() == [2, 3], "the smallest that are there, not zeros"
    assert components(matrix, "random", 100, 0).tolist() == [0, 1, 2, 3]
    study = Truncate("unused", [WorldSkill("copying", items=3)])
    new, facts = study.change(Point("", {"keep": "top", "percent": 100.0, "seed": None}), matrix)
    assert (facts["components"], facts["sigma"]) == (4, 1.0)
    torch.testing.assert_close(new, weight, rtol=0, atol=1e-5)
