"""``lit-edit doctor``: what is printed, what is written, and how it ends."""

import io
import json
import sys

import pytest
import torch

from lit_edit.__main__ import main
from lit_edit.doctor import Examination, Finding, Verdict
from lit_edit.doctor.cli import numbers
from lit_edit.doctor.text import WIDTH, columns, table, wrapped
from lit_edit.errors import EditError
from tests.doctor.cases import all_checks
from tests.tiny import FAMILIES, save_tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three models: one that can be edited, one that is off, one that cannot be."""
    place = tmp_path_factory.mktemp("models")
    save_tiny(place / "fine", "llama", bos=True)
    save_tiny(place / "off", "gpt2", vocab_size=300)
    folder = save_tiny(place / "none", "gpt2")
    (folder / "model.safetensors").unlink()
    return place


def doctor(*words):
    return main(["doctor", *map(str, words)])


def test_a_model_that_can_be_edited(folders, tmp_path, capsys):
    file = tmp_path / "deep" / "found.json"
    assert doctor(folders / "fine", "--json", file, "--layers", "0-1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folders / 'fine'} (float32, cpu)"
    assert lines[-1].endswith(": the model can be edited")
    assert any("Ada Love" in line and "[" in line for line in lines)
    rows = [line for line in lines if line.startswith("  ") and line[2:9].strip() in list(Verdict)]
    assert [row[9:29].strip() for row in rows] == [name for _, name in all_checks()]
    read = json.loads(file.read_text(encoding="utf-8"))
    assert (read["format"], read["exit_code"]) == ("lit_edit-doctor/1", 0) and read["verdict"] in ("ok", "note")
    assert [(one["group"], one["name"]) for one in read["findings"]] == all_checks()
    assert read["setting"]["torch"] == torch.__version__ and read["setting"]["dtype"] == "float32"
    (chosen,) = (one for one in read["findings"] if one["name"] == "layers")
    assert chosen["values"]["layers"] == [0, 1] and "chosen" in chosen["found"]


def test_a_model_with_something_off(folders, tmp_path, capsys):
    file = tmp_path / "found.json"
    assert doctor(folders / "off", "--json", file) == 1
    shown = capsys.readouterr().out
    assert "off    vocabulary" in shown and "resize_token_embeddings(320)" in " ".join(shown.split())
    end = shown[shown.index("something is off") :]
    assert "off: shape/vocabulary -> Text with one of the 20 tokens beyond the last embedding fails" in " ".join(end.split())
    assert json.loads(file.read_text())["exit_code"] == 1


def test_a_model_that_cannot_be_loaded(folders, tmp_path, capsys):
    file = tmp_path / "found.json"
    assert doctor(folders / "none", "--json", file) == 2
    shown = capsys.readouterr()
    assert "no weights (model.safetensors)" in " ".join(shown.out.split()) and not shown.err
    (only,) = json.loads(file.read_text())["findings"]
    assert (only["group"], only["name"], only["verdict"]) == ("model", "loading", "cannot")


def test_a_terminal_that_knows_ascii_only(folders, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert doctor(folders / "fine", "--dtype", "bfloat16") == 0
    sys.stdout.flush()
    shown = raw.getvalue().decode("ascii")
    assert "Z?rich" in shown, "what the terminal cannot show is a question mark, not a traceback"
    assert "(bfloat16, cpu)" in shown and "bfloat16 shows changes" in shown


MISTAKES = {
    "no model": ([], "MODEL"),
    "option": (["--colour", "red"], "--colour"),
    "dtype": (["--dtype", "int8"], "int8"),
    "layers": (["--layers", "four"], "--layers names 'four'; layers are whole numbers"),
    "many layers": (["--layers", "0-99999999999"], "names '0-99999999999'; no model has more than 100,000 blocks"),
    "layer": (["--layers", "9"], "names layer 9, but the model has layers 0 to 2"),
    "device": (["--device", "cuda:7"], "CUDA devices; use cpu"),
    "device name": (["--device", "toaster"], "it is cpu, cuda or cuda:N"),
    "json": (["--json", "file/found.json"], "cannot be written"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_one_sentence_and_exit_code_two(mistake, folders, tmp_path, monkeypatch, capsys):
    if torch.cuda.device_count() > 7:
        pytest.skip("has the device that is to be missing")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    words, phrase = MISTAKES[mistake]
    assert doctor(*([] if mistake == "no model" else [folders / "fine"]), *words) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("lit-edit: error: ") and phrase in last


def test_help_names_the_options(capsys):
    with pytest.raises(SystemExit) as left:
        doctor("--help")
    assert left.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--revision", "--dtype", "--layers", "--device", "--json", "--trust_remote_code", "Exit code 0"):
        assert option in shown


@pytest.mark.parametrize("words", [["4", "5", "6"], ["4-6"], ["[4,5,6]"], ["4,", "5,6"], ["[4, 5-6]"]])
def test_layers_as_they_are_typed(words):
    assert numbers(words) == [4, 5, 6]


@pytest.mark.parametrize("word", ["four", "-1", "4--6", "", "4.5"])
def test_what_is_no_layer(word):
    with pytest.raises(EditError, match="--layers names"):
        numbers([word])


# ------------------------------------------------------------------------------------------------ the table


def many():
    """One finding of every verdict, with text of every kind."""
    long = "東京 " * 40 + "and Zürich " * 10
    return Examination(
        "a/model",
        (
            Finding(Verdict.OK, "fine", group="one", name="short"),
            Finding(Verdict.NOTE, long, "Do something about it. " * 9, group="one", name="with accents"),
            Finding(
                Verdict.OFF, "wrong", "Set it right. " * 12, {"at": float("nan"), "by": {1: (2, torch.float16)}}, "two", "東京"
            ),
            Finding(Verdict.CANNOT, "no way", "There is a way out.", group="two", name="last"),
        ),
    )


@pytest.mark.parametrize("width", [60, 80, WIDTH])
def test_no_line_is_wider_than_the_terminal(width):
    shown = table(many(), width)
    assert max(map(columns, shown.splitlines())) <= width
    assert " ".join(shown.split()).count("Set it right.") == 24, "nothing is cut: in its place, and named again at the end"
    assert "\t" not in shown and "\x1b" not in shown and all(line == line.rstrip() for line in shown.splitlines())


def test_verdicts_sum_up():
    examination = many()
    assert (examination.verdict, examination.exit_code) == ("cannot", 2)
    assert examination.summary() == "1 ok, 1 note, 1 off, 1 cannot: the model cannot be edited as it is"
    off = Examination("m", examination.findings[:3])
    assert (off.verdict, off.exit_code, off.summary().split(": ")[1]) == ("off", 1, "something is off")
    note = Examination("m", examination.findings[:2])
    assert (note.verdict, note.exit_code, note.summary().split(": ")[1]) == ("note", 0, "the model can be edited")
    with pytest.raises(KeyError):
        note.find("two", "last")


def test_json_holds_what_json_can_hold():
    read = json.loads(many().as_json(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert read["findings"][2]["values"] == {"at": "nan", "by": {"1": [2, "torch.float16"]}}
    assert "東京" in many().as_json(), "readable without a decoder"


def test_wrapping_counts_columns():
    assert columns("東京") == 4 and columns("e\u0301") == 1 and columns("Kyōto") == 5
    assert wrapped("東京 東京 東京", 9) == ["東京 東京", "東京"]
    assert wrapped("one two three", 8, "  ") == ["one two", "  three"]
    assert wrapped("a-word-that-is-longer-than-the-line here", 10) == ["a-word-that-is-longer-than-the-line", "here"]


@pytest.mark.parametrize("family", ["gemma2", "falcon"])
def test_real_tables_fit_as_well(family, tmp_path, monkeypatch):
    assert family in FAMILIES
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    assert doctor(save_tiny(tmp_path / family, family)) == 0
    lines = out.getvalue().splitlines()[1:]  # the first names a folder, however deep
    assert len(lines) > 60 and max(map(columns, lines)) <= WIDTH
