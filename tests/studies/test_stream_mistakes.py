"""Studies of streams: what is refused before anything runs, and that the shipped configurations are not."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from handmade import FIGURES

from lit_edit.__main__ import main
from lit_edit.errors import EditError
from lit_edit.studies.order import Order
from lit_edit.studies.pareto import Pareto
from lit_edit.studies.spectra import Spectra
from lit_edit.studies.tau import Tau

ROOT = Path(__file__).resolve().parents[2]


WRONG = {
    "an option that there is not": ({"arms": {"mine": {"model.editro": 1}}}, "arm 'mine, seed 0' cannot be run:"),
    "a missing fragment": (
        {"arms": {"mine": {"model.guards": "guards/nix.yaml"}}},
        "model.guards names guards/nix.yaml, which is",
    ),
    "a value out of range": (
        {"arms": {"fine": {}, "mine": {"model.editor.init_args.lam": -1.0}}},
        "arm 'mine, seed 0' cannot be run: MEMIT's lam is -1",
    ),
    "seeds without effect": ({"options": {}, "arms": {"mine": {}}}, "nothing in arm 'mine' depends on its seed"),
    "a seed twice": ({"seeds": [1, 1]}, "seeds [1, 1] name one twice"),
    "no arm": ({"arms": {}}, "needs at least one arm"),
    "two arms in one folder": ({"arms": {"a b": {}, "a_b": {}}}, "'a b, seed 0' and 'a_b, seed 0'"),
    "a base that is not there": ({"base": "nix.yaml"}, "nix.yaml"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes_end_in_one_sentence_that_names_the_arm(mistake, place, tmp_path, capsys):
    changed, told = WRONG[mistake]
    config = {**yaml.safe_load((place / "study.yaml").read_text()), "base": str(place / "base.yaml"), **changed}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    assert main(["study", "collapse", "--config", str(tmp_path / "study.yaml"), "--run_dir", str(tmp_path / "study")]) == 2
    captured = capsys.readouterr().err
    assert told in captured and captured.count("\n") == 1, captured
    assert not (tmp_path / "study" / "points").exists(), "nothing was run"


def test_two_arms_of_one_name_are_refused_where_yaml_would_drop_one(place, tmp_path, capsys):
    (tmp_path / "study.yaml").write_text(f"base: {place}/base.yaml\narms:\n  mine: {{}}\n  other: {{}}\n  mine: {{}}\n")
    assert main(["study", "collapse", "--config", str(tmp_path / "study.yaml"), "--run_dir", str(tmp_path / "study")]) == 2
    assert "study.yaml, line 5: there are two entries called 'mine'" in capsys.readouterr().err


def test_sweeps_refuse_what_would_mislead(base, tmp_path):
    limited = tmp_path / "limited.yaml"
    limited.write_text("data: {limit: 5}\n")
    with pytest.raises(EditError, match="every order would cut off other facts"):
        Order(str(limited), {"a": {}}, [0, 1])
    with pytest.raises(EditError, match="none of them twice"):
        Pareto(base, [1.0, 1.0], {"no guard": None})
    with pytest.raises(EditError, match="none of them twice"):
        Spectra(base, {"a": {}}, [1.0, 1.0], {"no guard": None, "other": []})
    with pytest.raises(EditError, match="at least two are needed"):
        Spectra(base, {"a": {}}, [1.0], {"no guard": None})
    with pytest.raises(EditError, match="needs a tau"):
        Tau(base, [0.1], {"energy": "sigma"})
    with pytest.raises(EditError, match="must not be called 'no guard'"):
        Tau(base, [0.1], variants={"no guard": {}})


def test_classes_named_by_their_import_path_are_handed_on_as_they_were_typed():
    from lit_edit.studies.cli import parser_of, study_class, study_of

    methods = {"one": {"model.corpus": {"class_path": "lit_edit.world.corpus.WorldCorpus"}}}
    guards = {"none": [], "some": [{"class_path": "lit_edit.guards.REVIVE", "init_args": {"tau": 0.2}}]}
    kind = study_class("methods")
    parser = parser_of("methods", kind)
    typed = ["--base", "quickstart", "--methods", json.dumps(methods), "--guards", json.dumps(guards)]
    study = study_of(kind, parser, parser.parse_args(typed))
    plain, guarded = (arm.options for arm in study.arms())
    assert plain["model.corpus"]["class_path"] == "lit_edit.world.corpus.WorldCorpus"
    (guard,) = guarded["model.guards"]
    assert type(guard) is dict and guard["class_path"] == "lit_edit.guards.REVIVE" and guard["init_args"]["tau"] == 0.2
    json.dumps([point.settings for point in study.points()])


@pytest.mark.parametrize("name", FIGURES)
def test_shipped_configurations_name_runs_that_can_be_built(name, tmp_path, monkeypatch):
    from lit_edit.studies.cli import parser_of, study_class, study_of

    monkeypatch.chdir(ROOT)
    config = ROOT / "configs" / "studies" / f"{name}.yaml"
    if name == "spectra":  # its models are trained by who runs it
        monkeypatch.chdir(tmp_path)
        (tmp_path / "checkpoints").mkdir()
        (ROOT / "checkpoints" / "cache").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / "cache").symlink_to(ROOT / "checkpoints" / "cache")
        for changes in yaml.safe_load(config.read_text())["models"].values():
            if (path := Path(changes["model.pretrained"])).parent.name:
                path.symlink_to(ROOT / "checkpoints" / "world-gpt2")
    kind = study_class(name)
    parser = parser_of(name, kind)
    study = study_of(kind, parser, parser.parse_args(["--config", str(config)]))
    points = study.points()
    assert len(points) >= 5
    by_settings = {json.dumps(point.settings["options"], sort_keys=True, default=str): point for point in points}
    study.begin([*by_settings.values()][:: max(1, len(by_settings) // 5)], [torch.device("cpu")])


def test_a_file_that_the_two_readers_of_yaml_see_differently_is_refused(place, tmp_path, capsys):
    text = f'{{"base": "{place}/base.yaml", "arms": {{"mine": {{}}}}}}\n'
    (tmp_path / "study.yaml").write_bytes(b"\xef\xbb\xbf" * 2 + text.encode())
    assert main(["study", "collapse", "--config", str(tmp_path / "study.yaml"), "--run_dir", str(tmp_path / "study")]) == 2
    captured = capsys.readouterr().err
    assert "study.yaml is no YAML: " in captured or "study.yaml: it is no YAML: " in captured
    assert captured.count("\n") == 1 and not (tmp_path / "study").exists()
