"""What a finished run has written, with a part taken out: the parts add up, and every edit asked for is one that was written."""

import csv
import io
import shutil

import pytest
import torch
from weighing import CPU, measured

from lit_edit.__main__ import main
from lit_edit.errors import EditError
from lit_edit.journal.book import open_book
from lit_edit.journal.model import Unedited
from lit_edit.runs.run_folder import RunFolder
from lit_edit.spectrum import decompose, energy_rank
from lit_edit.studies.folder import StudyFolder
from lit_edit.studies.runner import run as run_study
from lit_edit.studies.withhold import Withhold


@pytest.fixture(scope="module")
def run(place):
    """Four batches of two edits."""
    folder = place / "run"
    words = ["fit", "--config", str(place / "base.yaml"), "--model.targets.lr", "2.0", "--run_dir", str(folder)]
    assert main(words) == 0
    return folder


@pytest.fixture
def study(run, text):
    return Withhold([str(run)], [text], taus=[0.3])


def test_every_part_is_what_its_formula_says(study, run):
    book = open_book(run)
    model = Unedited.of(run, book.layers)
    written = book.weights(model.original, 4)
    cut = {point.settings["kind"]: point for point in study.points()[1:]}
    assert list(cut) == ["written", "dominant", "shrunk", "random"]
    for layer, matrix in zip(book.layers, study._on(CPU).matrices, strict=True):
        change = {kind: study.change(point, matrix)[0] - matrix.weight_OI.double() for kind, point in cut.items()}
        facts = {kind: study.change(point, matrix)[1] for kind, point in cut.items()}
        whole = written[layer].double() - model.original[layer].double()
        torch.testing.assert_close(change["written"], whole, rtol=0, atol=1e-12)
        spectrum = decompose(matrix.weight_OI)
        rank = energy_rank(spectrum.sigma, 0.3)
        left, right = spectrum.left[:, :rank].double(), spectrum.right[:, :rank].double()
        outside = (torch.eye(len(left)) - left @ left.T) @ whole @ (torch.eye(len(right)) - right @ right.T)
        torch.testing.assert_close(change["dominant"], outside, rtol=0, atol=1e-5)
        assert 0 < rank == facts["dominant"]["rank"] == facts["random"]["rank"]
        assert facts["dominant"]["removed"] == pytest.approx(1 - float((outside.norm() / whole.norm()) ** 2), abs=1e-5)
        assert float(change["shrunk"].norm()) == pytest.approx(float(change["dominant"].norm()), rel=1e-6)
        shrunk = change["shrunk"] / change["shrunk"].norm()
        torch.testing.assert_close(shrunk, whole / whole.norm(), rtol=0, atol=1e-6)
        assert not torch.allclose(change["random"], change["dominant"]), "other directions"


def test_all_that_was_written_is_the_model_at_the_end_of_the_run(study, run):
    start, whole = measured(study, study.points()[:2]).values()
    asked = study.edits(0).items()
    cases = [request for record in open_book(run).records for request in record["requests"]]
    assert len(asked) == 8 and dict(asked) == {one["prompt"].replace("{}", one["subject"]): one["target"] for one in cases}
    assert "{}" not in "".join(prompt for prompt, _ in asked)
    validations = RunFolder.open(run).validations
    efficacy = validations["efficacy/accuracy/teacher_forced"][-1][1]
    assert sum(row[0] for row in whole["rows"]["efficacy"]) / 8 == pytest.approx(efficacy)
    assert len(start["rows"]["efficacy"]) == 8 and start["rows"]["text"] != whole["rows"]["text"]


def test_the_edits_asked_for_are_spread_over_what_was_written(run, text):
    every = Withhold([str(run)], [text]).edits(0).items()
    assert Withhold([str(run)], [text], asked=4).edits(0).items() == every[::2]
    assert Withhold([str(run)], [text], batches=1).edits(0).items() == every[:2]


def test_earlier_batches_are_weights_of_their_own(run, text):
    early, late = Withhold([str(run)], [text], batches=1), Withhold([str(run)], [text])
    matrix = early._on(CPU).matrices[0]
    late._on(CPU)
    point = early.points()[1]
    assert not torch.equal(early.change(point, matrix)[0], late.change(point, matrix)[0])
    assert early.common()["heads"] != late.common()["heads"]


def test_two_runs_are_two_draws(run, text, tmp_path):
    study = Withhold([str(run), str(run)], [text], taus=[0.3, 0.6], seeds=[0, 1])
    folder = StudyFolder(tmp_path, study, "withhold")

    run_study(folder, ["cpu"], progress=False)
    folder.write()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert [row["part"] for row in rows] == ["unedited", "written", *["dominant"] * 2, *["random"] * 2, *["shrunk"] * 2]
    assert {row["runs"] for row in rows} == {"1", "2"} and float(rows[0]["ability"]) == 1
    removed = {row["part"]: float(row["removed"]) for row in rows if row["tau"] == "0.6"}
    assert removed["shrunk"] == removed["dominant"] > 0 and removed["random"] > 0
    assert {"ability.png", "probes.png"} <= {file.name for file in tmp_path.iterdir()}


def test_what_cannot_be_compared_is_refused(run, text, tmp_path):
    with pytest.raises(EditError, match="need at least one value"):
        Withhold([], [text])
    with pytest.raises(EditError, match="holds 4 batches, so 9"):
        Withhold([str(run)], [text], batches=9)
    with pytest.raises(EditError, match=r"tau is 1\.5"):
        Withhold([str(run)], [text], taus=[1.5])
    with pytest.raises(EditError, match="--asked is 0"):
        Withhold([str(run)], [text], asked=0)
    with pytest.raises(EditError, match="holds no journal"):
        Withhold([str(tmp_path)], [text])
    other = shutil.copytree(run, tmp_path / "other")
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("  dtype: float32", "  dtype: bfloat16"))
    assert (other / "config.yaml").read_text() != config
    with pytest.raises(EditError, match="different models or layers"):
        Withhold([str(run), str(other)], [text])
