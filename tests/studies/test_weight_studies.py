"""Studies of weights: the model is what it was before, what is told about it, and what is refused."""

import inspect
import json
import math
from pathlib import Path

import matplotlib.image
import pytest
import torch
import yaml
from weighing import CPU, measured

from lit_edit.__main__ import main
from lit_edit.errors import EditError
from lit_edit.figures import PALETTE
from lit_edit.probes import WorldSkill
from lit_edit.probes.base import AnswerProbe
from lit_edit.studies.folder import StudyFolder
from lit_edit.studies.perturb import Perturb
from lit_edit.studies.runner import run
from lit_edit.studies.truncate import Truncate
from lit_edit.studies.weights import UNEDITED

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.parametrize(("kind", "settings"), [(Truncate, {"percents": [20, 40, 60]}), (Perturb, {"groups": 3})])
def test_points_hang_on_nothing_but_themselves(models, text, kind, settings):
    one, other = (kind(models["gpt2"], [text], seeds=[3], **settings) for _ in range(2))
    points = [*one.points()[:4], *one.points()[-3:]]
    forwards, backwards = measured(one, points), measured(other, points[::-1])
    assert {key: forwards[key] for key in backwards} == backwards
    text_of = {key: json.dumps(result["rows"]) for key, result in forwards.items()}
    assert len(set(text_of.values())) == len(points), "every point is another model"


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
