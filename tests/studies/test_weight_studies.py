"""Studies of weights: what is cut and added, that it is put back, and what is told about it."""

import inspect
import json
import math
from pathlib import Path

import matplotlib.image
import pytest
import torch
import yaml
from tiny import TEXT, normal, save_tiny, tiny_model, tiny_tokenizer

from lit_edit.__main__ import main
from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError
from lit_edit.figures import PALETTE
from lit_edit.probes import Perplexity, Probe, WorldSkill
from lit_edit.probes.base import AnswerProbe
from lit_edit.spectrum import decompose, energy_rank
from lit_edit.studies.ability import Ability
from lit_edit.studies.base import Point
from lit_edit.studies.folder import StudyFolder
from lit_edit.studies.perturb import Perturb, energy_groups, within
from lit_edit.studies.runner import run
from lit_edit.studies.truncate import Truncate, components, kept
from lit_edit.studies.weights import UNEDITED, Matrix, matrices_of, replaced

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {family: str(save_tiny(tmp_path_factory.mktemp(family), family)) for family in ("gpt2", "llama")}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(TEXT))
    return Perplexity(str(path))


def measured(study, points=None):
    return {point.key: study.measure(point, CPU, Path()) for point in (study.points() if points is None else points)}


# ---------------------------------------------------------------------------------------------------------- energy groups


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


# ------------------------------------------------------------------------------------------------------------------- noise


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


# -------------------------------------------------------------------------------------------------------------- truncation


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


# ------------------------------------------------------------------------------------------- the model is what it was before


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_weights_random_numbers_and_modes_are_what_they_were(models, text, family):
    for study in (
        Truncate(models[family], [text], percents=[10, 100], seeds=[0], matrices="all"),
        Perturb(models[family], [text], strengths=[2.0], seeds=[0], groups=3, matrices="mlp"),
    ):
        model = study._on(CPU).anatomy.model
        model.get_submodule(study._on(CPU).anatomy.blocks_name)[1].train()
        torch.manual_seed(5)
        state, modes = torch.get_rng_state(), [module.training for module in model.modules()]
        before = {name: value.clone() for name, value in model.state_dict().items()}
        measured(study)
        assert torch.equal(torch.get_rng_state(), state)
        assert [module.training for module in model.modules()] == modes
        for name, value in model.state_dict().items():
            assert torch.equal(value.view(torch.uint8), before[name].view(torch.uint8)), name
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_failure_in_between_puts_the_weights_back():
    matrices = [Matrix(str(number), normal(4, 6, seed=number)) for number in range(3)]
    before = [matrix.weight_OI.clone() for matrix in matrices]
    with pytest.raises(RuntimeError, match="scoring"), replaced(matrices, lambda matrix: matrix.weight_OI * 2):
        assert torch.equal(matrices[2].weight_OI, 2 * before[2])
        raise RuntimeError("scoring")

    def third_fails(matrix):
        if matrix is matrices[2]:
            raise RuntimeError("decomposing")
        return -matrix.weight_OI

    with pytest.raises(RuntimeError, match="decomposing"), replaced(matrices, third_fails):
        raise AssertionError("never inside")
    assert all(torch.equal(matrix.weight_OI, old) for matrix, old in zip(matrices, before, strict=True))


@pytest.mark.parametrize(("kind", "settings"), [(Truncate, {"percents": [20, 40, 60]}), (Perturb, {"groups": 3})])
def test_points_hang_on_nothing_but_themselves(models, text, kind, settings):
    one, other = (kind(models["gpt2"], [text], seeds=[3], **settings) for _ in range(2))
    points = [*one.points()[:4], *one.points()[-3:]]
    forwards, backwards = measured(one, points), measured(other, points[::-1])
    assert {key: forwards[key] for key in backwards} == backwards
    text_of = {key: json.dumps(result["rows"]) for key, result in forwards.items()}
    assert len(set(text_of.values())) == len(points), "every point is another model"


def test_which_matrices(models):
    for family, attention, mlp in (("gpt2", 2, 2), ("llama", 4, 3)):
        anatomy = Anatomy.of(tiny_model(family))
        down = matrices_of(anatomy, None, "down")
        assert [matrix.name for matrix in down] == [anatomy.weight_name(layer) for layer in range(3)]
        assert all(torch.equal(matrix.weight_OI, anatomy.weight(layer)) for layer, matrix in enumerate(down)), "[d_out, d_in]"
        assert len(matrices_of(anatomy, [2, 0], "mlp")) == 2 * mlp and len(matrices_of(anatomy, None, "all")) == 3 * (
            mlp + attention
        )
        assert not any("att" in matrix.name for matrix in matrices_of(anatomy, None, "mlp"))
        down[1].weight_OI[0, 3] = 7.0
        assert float(anatomy.weight(1)[0, 3]) == 7.0, "a view"
    assert {tuple(m.weight_OI.shape) for m in matrices_of(Anatomy.of(tiny_model("gpt2")), [0], "all")} == {
        (96, 32),
        (32, 32),
        (128, 32),
        (32, 128),
    }


# --------------------------------------------------------------------------------------------------------------- statistics


class Fixed(Probe):
    columns = ("value",)
    shown = "value/known"

    def __init__(self, name: str, higher_is_better: bool = True) -> None:
        self.name, self.higher_is_better = name, higher_is_better

    def items(self):
        return range(40)

    def measure(self, scorer, items):
        raise NotImplementedError

    def summarise(self, outcomes):
        return {self.shown: float(outcomes.mean())}


def rows(value: float, spread: float = 0.0) -> torch.Tensor:
    return torch.full((40, 1), value, dtype=torch.float64) + spread * normal(40, 1)


def test_ability_retained_is_the_mean_of_shares():
    probes = [Fixed("more"), Fixed("less", higher_is_better=False), Fixed("nothing to lose")]
    ability = Ability(probes, {"more": rows(0.8), "less": rows(20.0), "nothing to lose": rows(0.0)}, resamples=50)
    same = ability.retained([ability.sample({"more": rows(0.8), "less": rows(20.0), "nothing to lose": rows(0.5)})])
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
    worse = ability.sample({"more": rows(0.4), "less": rows(80.0), "nothing to lose": rows(0.0)})
    assert ability.retained([worse]).value == pytest.approx((0.5 + 0.25) / 2)
    broken = ability.sample({"more": rows(0.0), "less": rows(math.nan), "nothing to lose": rows(0.0)})
    assert ability.retained([broken]).value == 0.0
    assert ability.retained([worse, broken]).value == pytest.approx(0.375 / 2)
    assert ability.spread([worse, broken]) == pytest.approx(0.375 / 2**0.5) and math.isnan(ability.spread([worse]))
    over_seeds = ability.retained([worse, broken])
    assert (over_seeds.low, over_seeds.high) == (0.0, pytest.approx(0.375)), "seeds are drawn, too"


def test_intervals_are_of_paired_changes():
    noisy = rows(0.5, spread=0.2)
    ability = Ability([Fixed("a")], {"a": noisy}, resamples=300)
    shifted = ability.number("a", [ability.sample({"a": noisy - 0.1})])
    mean = float(noisy.mean()) - 0.1
    assert (shifted.value, shifted.low, shifted.high) == tuple(pytest.approx(mean, abs=1e-9) for _ in range(3)), "items cancel"
    other = ability.number("a", [ability.sample({"a": rows(mean).clone()})])
    half = 1.96 * float(noisy.std()) / 40**0.5
    assert other.low == pytest.approx(mean - half, abs=half / 3) and other.high == pytest.approx(mean + half, abs=half / 3)


def test_the_most_frequent_answer():
    probe = AnswerProbe("p", [("a", "x"), ("b", "x"), ("c", "y"), ("d", "z")])
    ability = Ability([probe], {"p": torch.ones(4, 1, dtype=torch.float64)}, resamples=20)
    assert ability.guess("p") == ability.guesses() == 0.5
    assert Ability([Fixed("a"), probe], {"a": rows(1.0), "p": torch.ones(4, 1)}, resamples=20).guesses() is None


# ------------------------------------------------------------------------------------------------------- tables and figures


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Both studies on the embedded model, with few items and few points."""
    probes = [WorldSkill("sentiment", items=20), WorldSkill("arithmetic", items=20)]
    model, found = str(ROOT / "checkpoints" / "world-gpt2"), {}
    for name, study in {
        "truncate": Truncate(model, probes, percents=[0, 5, 20, 100], seeds=[0, 1], resamples=40),
        "perturb": Perturb(model, probes, strengths=[1.5], seeds=[0, 1], groups=2, resamples=40),
    }.items():
        folder = StudyFolder(tmp_path_factory.mktemp(name), study, name)
        run(folder, ["cpu"], progress=False)
        found[name] = (folder, folder.write())
    return found


def test_truncation_on_the_embedded_model(world):
    folder, _ = world["truncate"]
    table = {(row["keep"], row["percent"]): row for row in folder.study.table(folder.results())}
    assert list(table) == [("unedited", None), ("none", 0.0), ("all", 100.0)] + [
        (keep, p) for keep in ("top", "bottom", "random") for p in (5.0, 20.0)
    ]
    assert table["unedited", None]["ability"] == table["all", 100.0]["ability"] == 1.0
    assert table["none", 0.0]["ability"] < 0.3 and table["none", 0.0]["components"] == 0
    assert table["top", 20.0]["ability"] > 0.9 > table["bottom", 20.0]["ability"]
    assert table["random", 5.0]["seeds"] == 2 and table["top", 5.0]["components"] == 13
    assert table["top", 5.0]["sigma"] > table["random", 5.0]["sigma"] > table["bottom", 5.0]["sigma"]
    assert table["top", 5.0]["ability_low"] <= table["top", 5.0]["ability"] <= table["top", 5.0]["ability_high"]


def test_perturbation_on_the_embedded_model(world):
    folder, _ = world["perturb"]
    table = {(row["directions"], row["energy"]): row for row in folder.study.table(folder.results())}
    assert list(table) == [("unedited", None)] + [
        (kind, part) for kind in ("of the group", "random, as many") for part in ("0-50 %", "50-100 %")
    ] + [("all", None)]
    assert table["of the group", "0-50 %"]["ability"] < table["of the group", "50-100 %"]["ability"]
    assert table["of the group", "0-50 %"]["components"] == table["random, as many", "0-50 %"]["components"] < 128
    assert all(row["seeds"] == 2 and row["matrices"] == 4 for row in table.values() if row["directions"] != "unedited")


@pytest.mark.parametrize("name", ["truncate", "perturb"])
def test_figures_are_written_and_show_lines(world, name):
    folder, files = world[name]
    assert {"ability.png", "ability.svg", "probes.png", "probes.svg", "results.csv", "results.json"} == {
        file.name for file in files
    }
    for drawn, panels in (("ability", 1), ("probes", 2)):
        picture = matplotlib.image.imread(folder.path / f"{drawn}.png")[..., :3]
        height, width = picture.shape[:2]
        made = folder.study.figures(folder.results())[drawn]
        made.canvas.draw()  # the layout is made when drawing
        assert len(made.axes) == panels
        for panel in made.axes:
            box = panel.get_position()
            rows_, columns = (
                slice(int((1 - box.y1) * height), int((1 - box.y0) * height)),
                slice(int(box.x0 * width), int(box.x1 * width)),
            )
            inside = torch.from_numpy(picture[rows_, columns].copy())
            assert float((inside < 0.99).any(-1).float().mean()) > 0.005, "ink"
            own = torch.tensor([int(PALETTE[0][at : at + 2], 16) / 255 for at in (1, 3, 5)])
            assert int(((inside - own).abs().amax(-1) < 0.02).sum()) > 100, "in the colour of the first line"
            assert panel.get_xlabel() and panel.get_ylabel()
        said = (folder.path / f"{drawn}.svg").read_text()
        assert "unedited model" in said and "always the most frequent answer" in said


def test_unfinished_studies_have_tables_and_figures_of_what_is_there(world):
    for name in ("truncate", "perturb"):
        study, results = world[name][0].study, world[name][0].results()
        assert study.table({}) == [] and study.figures({}) == {}
        keys = list(results)
        for count in (1, 2, 4, len(keys) - 1):
            part = {key: results[key] for key in keys[:count]}
            assert study.table(part) and set(study.figures(part)) == {"ability", "probes"}
        late = {key: results[key] for key in keys[1:]}
        assert study.table(late) == [] and study.figures(late) == {}, "nothing to compare with yet"


def test_points_of_other_weights_are_not_compared(world):
    study, results = world["truncate"][0].study, world["truncate"][0].results()
    mixed = {key: {**result, "weights": "0" * 64} if key == "top 5 %" else result for key, result in results.items()}
    with pytest.raises(EditError, match=r"measured on different weights, so .*world-gpt2 has changed in between"):
        study.table(mixed)


# ------------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        (Truncate, {"percents": [5, 101]}, r"--percents holds 101; a share of the components lies between 0 and 100 %"),
        (Truncate, {"percents": [-1]}, "--percents holds -1"),
        (Truncate, {"percents": [math.nan]}, "--percents holds nan"),
        (Truncate, {"percents": []}, "there is nothing to measure"),
        (Truncate, {"seeds": []}, "there is nothing to measure"),
        (Truncate, {"probes": []}, "--probes is empty; a study of weights needs at least one"),
        (Truncate, {"probes": [WorldSkill("copying"), WorldSkill("copying", seed=1)]}, "two probes called 'copying'"),
        (Truncate, {"resamples": 3}, "--resamples is 3"),
        (Perturb, {"strengths": [0.0]}, "--strengths holds 0; the norm of the noise is a positive share"),
        (Perturb, {"strengths": [math.inf]}, "--strengths holds inf"),
        (Perturb, {"groups": 1}, "--groups is 1"),
        (Perturb, {"seeds": []}, "there is nothing to measure"),
    ],
)
def test_settings_that_make_no_study(kind, settings, says):
    with pytest.raises(EditError, match=says):
        kind(**{"pretrained": "unused", "probes": [WorldSkill("copying")], **settings})


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ([3], "--layers names block 3, but the model has blocks 0 to 2"),
        ([-1], "names block -1"),
        ([], "--layers is empty"),
        ([1, 1], "names a block twice"),
    ],
)
def test_layers_that_are_not_there(models, text, layers, says):
    with pytest.raises(EditError, match=says):
        Truncate(models["gpt2"], [text], layers=layers).measure(UNEDITED, CPU, Path())


def test_probes_without_items(models):
    with pytest.raises(EditError, match="the probe none has no items"):
        Truncate(models["gpt2"], [AnswerProbe("none", [])]).measure(UNEDITED, CPU, Path())


def test_other_probes_are_another_study(tmp_path):
    StudyFolder(tmp_path, Truncate("model", [WorldSkill("copying", items=5)]), "truncate")
    StudyFolder(tmp_path, Truncate("model", [WorldSkill("copying", items=5)], percents=[3]), "truncate")
    for other in (
        Truncate("model", [WorldSkill("copying", items=6)]),
        Truncate("model", [WorldSkill("copying", items=5, seed=1)]),
        Truncate("model", [WorldSkill("antonym", items=5)]),
        Truncate("model", [WorldSkill("copying", items=5)], layers=[0]),
        Truncate("other", [WorldSkill("copying", items=5)]),
    ):
        with pytest.raises(EditError, match="choose another --run_dir"):
            StudyFolder(tmp_path, other, "truncate")


# ------------------------------------------------------------------------------------------------------------ configurations


@pytest.mark.parametrize("kind", [Truncate, Perturb])
def test_configurations_name_and_comment_every_option(kind):
    content = (ROOT / "configs" / "studies" / f"{kind.__name__.lower()}.yaml").read_text()
    named, parameters = yaml.safe_load(content), inspect.signature(kind).parameters
    assert set(named) == {*parameters, "run_dir", "workers"}
    for name, parameter in parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            assert named[name] == parameter.default, "what stands in the configuration is the default"
    lines = content.splitlines()
    for number, line in enumerate(lines):
        if line and not line.startswith(("#", " ")):
            assert lines[number - 1].startswith("#"), f"line {number + 1} has no comment"


@pytest.mark.parametrize("name", ["truncate", "perturb"])
def test_the_command(name, models, tmp_path, capsys):
    fewer = {
        "truncate": ["--percents", "[50]", "--keep", "[top]"],
        "perturb": ["--groups", "2", "--strengths", "[1.0]", "--seeds", "[0]"],
    }
    probes = str(ROOT / "configs" / "probes" / "perplexity.yaml")
    arguments = [
        "study",
        name,
        "--config",
        str(ROOT / "configs" / "studies" / f"{name}.yaml"),
        "--workers",
        "[cpu]",
        "--run_dir",
        str(tmp_path),
    ]
    assert main([*arguments, "--pretrained", models["gpt2"], "--probes", probes, *fewer[name]]) == 0
    said = capsys.readouterr().out
    assert "unedited" in said and str(tmp_path / "ability.png") in said
    assert main([*arguments, "--probes", "[]"]) == 2
    assert "--probes is empty" in capsys.readouterr().err
    if name == "truncate":
        assert main([*arguments, "--percents", "[120]"]) == 2
        assert "--percents holds 120" in capsys.readouterr().err
