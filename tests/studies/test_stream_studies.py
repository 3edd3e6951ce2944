"""Studies of streams over tiny models: what they leave, what they share, and how they go on."""

import io
import json
import logging
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from handmade import GUARD, coloured
from lightning.pytorch.callbacks import Callback
from PIL import Image

from lit_edit.__main__ import main
from lit_edit.anatomy import Anatomy
from lit_edit.figures import PALETTE
from lit_edit.models.identity import load_pretrained
from lit_edit.spectrum import leading_share
from lit_edit.studies.collapse import Collapse
from lit_edit.studies.folder import StudyFolder
from lit_edit.studies.runner import run
from lit_edit.studies.spectra import Spectra
from lit_edit.studies.streams import by_method
from lit_edit.studies.told import told_to


class Break(Callback):
    """Ends a run after its second batch, unless a file is there."""

    def __init__(self, unless: str) -> None:
        self.unless = unless

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2 and not Path(self.unless).exists():
            raise RuntimeError("the power went out")


class Pressed(Callback):
    """Somebody presses Ctrl-C during the second batch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            raise KeyboardInterrupt


def measured(result):
    """A result without clock times."""
    kept = {key: value for key, value in result.items() if key not in ("seconds_per_edit", "batches")}
    return {**kept, "batches": {name: curve for name, curve in result["batches"].items() if not name.startswith("time/")}}


@pytest.fixture(scope="module")
def finished(place):
    """The study, run with one worker; what it printed, and what its figure folder holds."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", printed)
        code = main(
            ["study", "collapse", "--config", str(place / "study.yaml"), "--run_dir", str(place / "one"), "--workers", "[cpu]"]
        )
    assert code == 0, printed.getvalue()
    return place / "one", printed.getvalue()


def test_a_study_leaves_points_table_and_pictures(finished):
    folder, _ = finished
    content = json.loads((folder / "results.json").read_text())
    assert list(content["results"]) == ["MEMIT, seed 0", "MEMIT, seed 1", "guarded, seed 0", "guarded, seed 1"]
    for result in content["results"].values():
        assert [at for at, _ in result["validations"]["efficacy/success/teacher_forced"]] == [0, 4, 8]
        assert [at for at, _ in result["batches"]["drift/relative_norm/layer_1"]] == [2, 4, 6, 8]
        assert result["finished"] and result["rejected"] == 0 and result["edits"] == 8
    methods = by_method(content["results"])
    assert methods["MEMIT"][0]["after"] != methods["MEMIT"][1]["after"], "another order for another seed"
    assert (folder / "results.csv").read_text().startswith("measure,method,unedited,value,low,high,95 % over")
    with Image.open(folder / "collapse.png") as picture:
        assert coloured(picture, PALETTE[0]) > 300 and coloured(picture, PALETTE[1]) > 300
    assert "<svg" in (folder / "collapse.svg").read_text()
    assert not list(folder.glob("points/*/checkpoints")), "checkpoints of finished arms are removed"


def test_what_a_run_says_goes_to_its_log_and_not_into_the_bar(finished):
    folder, printed = finished
    assert "4/4" in printed and "GPU available" not in printed and "Seed set" not in printed and "max_epochs" not in printed
    assert (
        "8 edits in batches of 2, MEMIT(lam=10) + REVIVE(tau=0.2), layers"
        in (folder / "points" / "guarded_seed_1" / "log.txt").read_text()
    )


def test_handlers_of_libraries_write_to_the_log_and_then_where_they_did_before(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    logger = logging.getLogger("lit_edit_test_of_handlers")
    logger.propagate = False
    early, other = logging.StreamHandler(), logging.StreamHandler(io.StringIO())
    monkeypatch.setattr(logger, "handlers", [early, other])
    with pytest.raises(KeyError), told_to(tmp_path / "log.txt"):
        logger.warning("inside")
        late = logging.StreamHandler()
        logger.addHandler(late)
        logger.warning("again")
        warnings.warn("LightningCLI's args parameter is ...", stacklevel=1)
        raise KeyError
    logger.warning("outside")
    assert (tmp_path / "log.txt").read_text() == "inside\nagain\nagain\n"
    assert screen.getvalue().count("outside") == 1 and "inside" not in screen.getvalue()
    assert other.stream.getvalue() == "inside\nagain\noutside\n", "a stream that somebody chose stays"
    assert late.stream is not None and not late.stream.closed


def test_the_same_command_again_measures_nothing(finished, place, monkeypatch):
    monkeypatch.setattr(Collapse, "measure", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(Collapse, "begin", lambda *_: pytest.fail("prepared again"))
    assert main(["study", "collapse", "--config", str(place / "study.yaml"), "--run_dir", str(finished[0])]) == 0


@pytest.mark.slow
def test_two_workers_find_what_one_does_and_share_one_preparation(finished, place, tmp_path, monkeypatch):
    config = yaml.safe_load((place / "study.yaml").read_text())
    config["base"] = str(place / "base.yaml")
    config["options"]["model.cache_dir"] = str(tmp_path / "cache")
    del config["arms"]["MEMIT"]  # one arm a worker is enough
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    seen = {}
    begin = Collapse.begin

    def noted(self, points, devices):
        begin(self, points, devices)
        seen.update({path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")})

    monkeypatch.setattr(Collapse, "begin", noted)
    arguments = ["--config", str(tmp_path / "study.yaml"), "--run_dir", str(tmp_path / "two"), "--workers", "[cpu, cpu]"]
    assert main(["study", "collapse", *arguments]) == 0
    one, two = (json.loads((folder / "results.json").read_text())["results"] for folder in (finished[0], tmp_path / "two"))
    assert len(two) == 2 and {key: measured(one[key]) for key in two} == {key: measured(two[key]) for key in two}
    assert {path.parent.name for path in seen} == {"second-moment", "spectrum"} and len(seen) == 4
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} == seen


def test_an_interrupted_arm_goes_on_from_its_checkpoint(finished, place, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    flag = tmp_path / "power"
    callback = [{"class_path": f"{__name__}.Break", "init_args": {"unless": str(flag)}}]
    options = {"trainer.callbacks": callback, "data.seed": 0}
    study = Collapse(str(place / "base.yaml"), {"MEMIT": {"model.guards": None}}, None, options)
    folder = StudyFolder(tmp_path / "study", study, "collapse")
    with pytest.raises(RuntimeError, match="power"):
        run(folder, ["cpu"], progress=False)
    arm = tmp_path / "study" / "points" / "MEMIT"
    assert (arm / "checkpoints" / "last.ckpt").exists() and len((arm / "journal.jsonl").read_text().splitlines()) == 2
    flag.touch()
    folder = StudyFolder(tmp_path / "study", study, "collapse")
    run(folder, ["cpu"], progress=False)
    assert "csv-2" in {path.name for path in arm.iterdir()}, "it went on, and did not begin anew"
    whole = json.loads((finished[0] / "results.json").read_text())["results"]["MEMIT, seed 0"]
    assert measured({**folder.done["MEMIT"], "about": None}) == measured({**whole, "about": None})


def test_a_run_whose_batches_are_all_rejected_has_a_result(place, tmp_path):
    study = Collapse(str(place / "base.yaml"), {"MEMIT": {"model.max_change": 1e-9}}, unrelated="none")
    folder = StudyFolder(tmp_path / "study", study, "collapse")
    run(folder, ["cpu"], progress=False)
    result = folder.done["MEMIT"]
    assert result["rejected"] == 4 and result["edits"] == 0 and result["finished"]
    folder.write()
    row = next(row for row in study.table(folder.results()) if row["measure"] == "abilities")
    assert row["value"] == pytest.approx(1.0), "nothing was written, nothing is lost"


def test_ctrl_c_inside_a_run_ends_the_study_and_not_the_program(place, tmp_path):
    callback = f"{__name__}.Pressed"
    study = Collapse(str(place / "base.yaml"), {"one": {"trainer.callbacks": [{"class_path": callback}]}}, unrelated="none")
    folder = StudyFolder(tmp_path / "pressed", study, "collapse")
    with pytest.raises(KeyboardInterrupt):
        run(folder, ["cpu"], progress=False)
    assert not folder.done and list(tmp_path.glob("pressed/points/one/checkpoints/*.ckpt")), "it goes on from there"


def test_spectra_measures_how_steep_the_unedited_model_is(place, tmp_path):
    guards = {"no guard": None, "REVIVE": GUARD}
    study = Spectra(str(place / "base.yaml"), {"tiny": {}}, [10.0], guards, options={"data.limit": 2}, unrelated="none")
    folder = StudyFolder(tmp_path / "spectra", study, "spectra")
    run(folder, ["cpu"], progress=False)
    pretrained = yaml.safe_load((place / "base.yaml").read_text())["model"]["pretrained"]
    anatomy = Anatomy.of(load_pretrained(pretrained, None, torch.float32)[0])
    shares = [leading_share(anatomy.weight(layer).detach()) for layer in (0, 1)]
    for result in folder.results().values():
        assert result["leading_share"] == pytest.approx(sum(shares) / 2)
