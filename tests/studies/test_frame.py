"""The frame of all studies: points that are measured once, folders that are gone on with, workers, tables, the command."""

import csv
import io
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from squares import Squares

from lit_edit.__main__ import main
from lit_edit.errors import EditError
from lit_edit.studies import STUDIES
from lit_edit.studies.cli import study_class
from lit_edit.studies.folder import StudyFolder, as_csv
from lit_edit.studies.runner import device_of, run

CPU = ["cpu"]


def folder_of(path, *args, **kwargs) -> StudyFolder:
    return StudyFolder(path, Squares(*args, **kwargs), "squares")


def logs(path: Path) -> dict[str, list[list[str]]]:
    return {
        file.parent.name: [line.split() for line in file.read_text().splitlines()] for file in sorted(path.glob("points/*/log"))
    }


@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [("told", EditError, "point '3 squared': 3 has no square; the finished"), ("error", ZeroDivisionError, "by nothing")],
)
def test_a_failing_point_keeps_the_finished_ones(tmp_path, how, kind, says):
    with pytest.raises(kind, match=says):
        run(folder_of(tmp_path, [1, 2, 3, 4], broken={"3": how}), CPU, progress=False)
    again = folder_of(tmp_path, [1, 2, 3, 4])
    assert list(again.done) == ["1 squared", "2 squared"] and [point.key for point in again.missing()] == [
        "3 squared",
        "4 squared",
    ]
    run(again, CPU, progress=False)
    assert [result["square"] for result in again.results().values()] == [1, 4, 9, 16]
    assert [len(lines) for lines in logs(tmp_path).values()] == [1, 1, 2, 1], "finished points are not measured again"
    run(folder_of(tmp_path, [1, 2, 3, 4]), CPU, progress=False)
    assert [len(lines) for lines in logs(tmp_path).values()] == [1, 1, 2, 1]


def test_every_point_is_on_disk_before_the_next_begins(tmp_path):
    seen = []

    class Looking(Squares):
        def measure(self, point, device, folder):
            seen.append(len((tmp_path / "points.jsonl").read_text().splitlines()) if seen else 0)
            return super().measure(point, device, folder)

    run(StudyFolder(tmp_path, Looking([5, 6, 7]), "squares"), CPU, progress=False)
    assert seen == [0, 1, 2]


def test_points_of_other_settings_are_refused_by_name(tmp_path):
    run(folder_of(tmp_path, [1]), CPU, progress=False)
    with pytest.raises(EditError, match=r"whose factor is 1 instead of 2; .*choose another --run_dir"):
        folder_of(tmp_path, [1], factor=2)
    with pytest.raises(EditError, match='whose study is "squares" instead of "cubes"'):
        StudyFolder(tmp_path, Squares([1]), "cubes")
    assert folder_of(tmp_path, [1]).done


def test_points_may_be_added_and_left_out(tmp_path):
    run(folder_of(tmp_path, [1, 2]), CPU, progress=False)
    more = folder_of(tmp_path, [3, 2, 1])
    run(more, CPU, progress=False)
    assert list(more.results()) == ["3 squared", "2 squared", "1 squared"], "in the order of the study"
    fewer = folder_of(tmp_path, [2])
    fewer.write()
    assert list(json.loads((tmp_path / "results.json").read_text())["results"]) == ["2 squared"]
    assert not folder_of(tmp_path, [1, 2, 3]).missing(), "what was left out is still there"


def test_a_point_whose_settings_changed_is_measured_anew(tmp_path):
    run(folder_of(tmp_path, [1]), CPU, progress=False)
    file = tmp_path / "points.jsonl"
    record = json.loads(file.read_text())
    record["settings"] = {"number": 7}
    del record["sha256"]  # as an earlier version wrote it
    file.write_text(json.dumps(record) + "\n")
    assert [point.key for point in folder_of(tmp_path, [1]).missing()] == ["1 squared"]


def test_a_damaged_line_is_named(tmp_path):
    run(folder_of(tmp_path, [1, 2, 3]), CPU, progress=False)
    file = tmp_path / "points.jsonl"
    lines = file.read_text().splitlines()
    for damage in ("{", "[]", '{"key": "2 squared"}'):
        file.write_text("\n".join([lines[0], damage, lines[2], ""]))
        with pytest.raises(EditError, match=r"points\.jsonl is damaged in line 2 .*remove that line"):
            folder_of(tmp_path, [1, 2, 3])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda line: line.replace(b'"square": 4', b'"square": 5'), "its checksum does not fit"),
        (lambda line: line.replace(b'"key": "2 squared"', b'"key": ["2"]'), "its checksum does not fit"),
        (lambda line: b'{"key": [], "settings": {}, "result": {}, "seconds": 1}', "no record of a point"),
        (lambda line: b"\xfb" + line[1:], "can't decode byte 0xfb"),
        (lambda line: b"[" * 100_000, "nested deeper"),
    ],
)
def test_a_point_that_was_altered_does_not_count(tmp_path, damage, told):
    run(folder_of(tmp_path, [1, 2, 3]), CPU, progress=False)
    file = tmp_path / "points.jsonl"
    one, two, three = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([one, damage(two), three, b""]))
    with pytest.raises(EditError, match=rf"points\.jsonl is damaged in line 2 \(.*{told}.*; remove that line"):
        folder_of(tmp_path, [1, 2, 3])
    file.write_bytes(b"\n".join([one, three, b""]))
    assert [point.key for point in folder_of(tmp_path, [1, 2, 3]).missing()] == ["2 squared"]


def test_points_of_an_earlier_version_count(tmp_path):
    run(folder_of(tmp_path, [1, 2]), CPU, progress=False)
    file = tmp_path / "points.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({k: v for k, v in record.items() if k != "sha256"}) + "\n" for record in records))
    assert not folder_of(tmp_path, [1, 2]).missing()


def test_an_unfinished_last_line_is_measured_anew(tmp_path):
    run(folder_of(tmp_path, [1, 2]), CPU, progress=False)
    file = tmp_path / "points.jsonl"
    whole = file.read_text()
    file.write_text(whole[:-9])
    again = folder_of(tmp_path, [1, 2])
    assert list(again.done) == ["1 squared"]
    assert file.read_text() == whole.splitlines()[0] + "\n", "the next line must not begin behind the unfinished one"
    run(again, CPU, progress=False)
    assert list(folder_of(tmp_path, [1, 2]).done) == ["1 squared", "2 squared"]


def test_two_points_of_one_name_are_refused(tmp_path):
    with pytest.raises(EditError, match="two points of the study squares"):
        folder_of(tmp_path, [1, 1])


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EditError, match="cannot be written"):
        folder_of(tmp_path / "file" / "deeper", [1])


def test_two_workers_find_what_one_finds_and_share_the_work(tmp_path):
    one, two = folder_of(tmp_path / "one", [1, 2, 3, 4, 5]), folder_of(tmp_path / "two", [1, 2, 3, 4, 5])
    run(one, CPU, progress=False)
    run(two, ["cpu", "cpu"], progress=False)
    assert one.results() == two.results() and list(one.results()) == list(two.results())
    lines = [line for own in logs(tmp_path / "two").values() for line in own]
    assert {pid for pid, _, _ in lines} - {str(os.getpid())} == {pid for pid, _, _ in lines}, "in processes of their own"
    assert len(lines) == 5 and len({pid for pid, _, _ in lines}) <= 2
    for pid in {pid for pid, _, _ in lines}:
        numbers = sorted(int(number) for own, number, _ in lines if own == pid)
        assert numbers == list(range(1, len(numbers) + 1)), "a worker keeps its study, and what that has loaded"


@pytest.mark.parametrize(
    ("how", "says"),
    [("told", "point '2 squared': 2 has no square; the finished points are kept"), ("death", "a worker of the study died")],
)
def test_a_failing_worker_keeps_the_finished_points(tmp_path, how, says):
    run(folder_of(tmp_path, [1]), CPU, progress=False)
    with pytest.raises(EditError, match=says):
        run(folder_of(tmp_path, [1, 2], broken={"2": how}), ["cpu", "cpu"], progress=False)
    again = folder_of(tmp_path, [1, 2])
    assert list(again.done) == ["1 squared"]
    run(again, CPU, progress=False)
    assert not again.missing()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("abacus", "names no device: 'abacus'"),
        ("mps", "names mps, on which float64 solves do not run"),
        ("cuda:99", r"names cuda:99, but this machine shows \d+ CUDA devices"),
    ],
)
def test_devices_that_are_not_there(tmp_path, name, says):
    with pytest.raises(EditError, match=says):
        run(folder_of(tmp_path, [1]), [name], progress=False)
    assert device_of("cpu") == torch.device("cpu") and device_of("auto").type in ("cpu", "cuda")


def test_no_worker_at_all(tmp_path):
    with pytest.raises(EditError, match="needs at least one worker"):
        run(folder_of(tmp_path, [1]), [], progress=False)


def test_tables_are_written_under_all_their_columns(tmp_path):
    text = as_csv([{"method": "MEMIT, plain", "efficacy": 0.5}, {"method": "none", "note": None, "edits": 3}])
    assert list(csv.DictReader(io.StringIO(text))) == [
        {"method": "MEMIT, plain", "efficacy": "0.5", "note": "", "edits": ""},
        {"method": "none", "efficacy": "", "note": "", "edits": "3"},
    ]
    assert as_csv([]).strip() == ""
    folder = folder_of(tmp_path, [2])
    run(folder, CPU, progress=False)
    assert sorted(file.name for file in folder.write()) == ["results.csv", "results.json", "squares.png", "squares.svg"]
    assert (tmp_path / "results.csv").read_text() == "point,square\n2 squared,4\n"
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["study"] == "squares" and content["factor"] == 1 and content["question"] == "What are the squares?"
    assert content["table"] == [{"point": "2 squared", "square": 4}] and content["seconds"]["2 squared"] >= 0


def test_names_of_studies():
    with pytest.raises(EditError, match=r"there is no study 'trunkate'; there are truncate, perturb.*or give an import path"):
        study_class("trunkate")
    for other in ("json.dumps", "lit_edit.probes.WorldSkill", "no.such.module"):
        with pytest.raises(EditError, match="there is no study"):
            study_class(other)
    assert study_class("truncate").__name__ == "Truncate" and list(STUDIES)[:2] == ["truncate", "perturb"]


def test_a_study_from_outside_is_one_import_path(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parent)])
    arguments = ["study", "squares.Squares", "--numbers", "[3, 4]", "--run_dir", str(tmp_path / "run"), "--workers", "[cpu]"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "What are the squares?" in said and "3 squared       9" in said and str(tmp_path / "run" / "squares.png") in said
    assert main([*arguments, "--factor", "2"]) == 2
    assert "whose factor is 1 instead of 2" in capsys.readouterr().err


def test_the_command_keeps_what_is_finished(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parent)])
    arguments = ["study", "squares.Squares", "--numbers", "[3, 4]", "--run_dir", str(tmp_path), "--workers", "[cpu]"]
    assert main([*arguments, "--broken", '{"4": "told"}']) == 2
    assert "the same command goes on" in capsys.readouterr().err
    assert (tmp_path / "results.csv").read_text() == "point,square\n3 squared,9\n", "tables of what is there"
    assert main(arguments) == 0
    assert (tmp_path / "results.csv").read_text().endswith("4 squared,16\n")


def test_the_command_line_says_what_there_is(capsys):
    assert main(["study"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in STUDIES)
    assert main(["study", "no_such"]) == 2
    assert "there is no study 'no_such'" in capsys.readouterr().err
