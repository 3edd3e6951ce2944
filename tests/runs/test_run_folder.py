"""Reading what a run left behind: curves over edits, resumed runs, and folders that are no run."""

import json
import math

import pytest

from lit_edit.errors import EditError
from lit_edit.runs.run_folder import FORMAT, RunFolder


def score(value):
    return {"edit/so_far/efficacy/success/teacher_forced": value, "probe/copying/accuracy/teacher_forced": 0.5}


SUMMARY = {
    "format": FORMAT,
    "probes": {"copying": {"shown": "probe/copying/accuracy/teacher_forced", "higher_is_better": True}},
    "validations": [
        {
            "edits": 0,
            "scores": {"edit/before/efficacy/success/teacher_forced": 0.1, "probe/copying/accuracy/teacher_forced": 1.0},
        },
        {"edits": 3, "scores": score(None)},
        {
            "edits": 6,
            "scores": {"edit/final/efficacy/success/teacher_forced": 0.9, "probe/copying/accuracy/teacher_forced": None},
        },
    ],
}


def write(folder, summary=SUMMARY, batches=(2, 3, 3, 6), logs=None):
    """A run folder; the third batch was rejected."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text("run_dir: here\n")
    (folder / "summary.json").write_text(json.dumps(summary))
    records = [{"batch": at, "edits": edits, "rejected": "too large" if at == 2 else None} for at, edits in enumerate(batches)]
    (folder / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    lines = {"csv": ("0,1.0,", "1,2.0,0.5", "2,3.0,", "3,nan,0.25")} if logs is None else logs
    for name, rows in lines.items():
        (folder / name).mkdir()
        text = "step,drift/norm/layer_0,probe/copying/accuracy/teacher_forced\n" + "".join(f"{row}\n" for row in rows)
        (folder / name / "metrics.csv").write_text(text)
    return folder


def test_curves_are_over_edits_and_not_over_batches(tmp_path):
    run = RunFolder.open(write(tmp_path / "run"))
    assert run.name == "run" and run.config == {"run_dir": "here"} and len(run.journal) == 4
    (name,) = run.batches
    curve = run.batches[name]
    assert name == "drift/norm/layer_0", "what validations measured is not what batches logged"
    assert curve[:3] == [(2, 1.0), (3, 2.0), (3, 3.0)] and curve[3][0] == 6 and math.isnan(curve[3][1])


def test_the_unedited_model_and_all_protocols_make_one_curve(tmp_path):
    run = RunFolder.open(write(tmp_path / "run"))
    assert run.validations["efficacy/success/teacher_forced"] == [(0, 0.1), (6, 0.9)]
    assert run.validations["probe/copying/accuracy/teacher_forced"] == [(0, 1.0), (3, 0.5)]
    assert run.undefined == {"efficacy/success/teacher_forced": [3], "probe/copying/accuracy/teacher_forced": [6]}
    assert run.probes["copying"]["higher_is_better"] is True


def test_of_batches_done_twice_the_later_run_counts(tmp_path):
    logs = {"csv": ("0,1.0,", "1,2.0,", "2,3.0,"), "csv-2": ("2,30.0,",), "csv-10": ("3,40.0,", "4,99.0,")}
    run = RunFolder.open(write(tmp_path / "run", logs=logs))
    assert run.batches["drift/norm/layer_0"] == [(2, 1.0), (3, 2.0), (3, 30.0), (6, 40.0)], "and nothing the journal lacks"


def test_a_folder_that_is_no_run_is_refused_in_one_sentence(tmp_path):
    for missing, told in ((None, "there is no folder"), ("config.yaml", "it is no run"), ("summary.json", "--ckpt_path last")):
        folder = tmp_path / str(missing)
        if missing:
            (write(folder) / missing).unlink()
        with pytest.raises(EditError, match=told):
            RunFolder.open(folder)
    with pytest.raises(EditError, match=f"has format 99, this version reads {FORMAT}"):
        RunFolder.open(write(tmp_path / "new", {**SUMMARY, "format": 99}))


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("summary.json", "{", "summary.json is damaged"),
        ("summary.json", "[]", "holds no summary"),
        ("config.yaml", "a: [", "is no YAML"),
        ("config.yaml", "- a\n", "holds no configuration"),
        ("journal.jsonl", "{}\n{\n", "journal.jsonl is damaged in line 2"),
        ("journal.jsonl", b"\xff\n", "journal.jsonl cannot be read"),
    ],
)
def test_damaged_files_are_named(file, content, told, tmp_path):
    folder = write(tmp_path / "run")
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(EditError, match=told):
        run = RunFolder.open(folder)
        _ = run.config, run.summary, run.journal


def test_a_damaged_table_of_numbers_is_named(tmp_path):
    run = RunFolder.open(write(tmp_path / "run", logs={"csv": ("0,1.0,", "1,x,")}))
    with pytest.raises(EditError, match=r"metrics\.csv is damaged in line 3"):
        _ = run.batches


def test_an_incomplete_folder_names_the_file(tmp_path):
    folder = write(tmp_path / "run")
    (folder / "journal.jsonl").unlink()
    with pytest.raises(EditError, match=r"holds no journal\.jsonl, so the run in it is incomplete"):
        _ = RunFolder.open(folder).batches
