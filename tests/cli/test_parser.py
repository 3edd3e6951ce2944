"""Mistakes in options and configuration files: one sentence that says what was probably meant."""

import sys
from pathlib import Path

import pytest

from lit_edit.__main__ import main
from lit_edit.options.parser import nearest

ROOT = Path(__file__).resolve().parents[2]
BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [*{before}, *{before}, *{before}, *{before}, *{before}, *{before}, *{before}]\n"
    for before, name in zip("abcdef", "bcdefg", strict=True)
)


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lit-edit"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")


def refused(capsys, *arguments: str) -> str:
    """The sentence of a command line that is refused before anything is loaded."""
    assert main(["fit", "--config", "configs/counterfact.yaml", "--model.pretrained", "./nowhere", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lit-edit: error: ") and said.count("\n") == 1, said
    return said.removeprefix("lit-edit: error: ").strip()


def config(text: str | bytes) -> tuple[str, str]:
    Path("mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return "--config", "mine.yaml"


MEANT = {
    "option": (["--data.pth", "x"], "there is no option --data.pth; did you mean --data.path?"),
    "option of a verb": (["--data.batch_sise=4"], "there is no option --data.batch_sise; did you mean --data.batch_size?"),
    "group": (["--trainr.max_steps", "3"], "there is no option --trainr.max_steps; did you mean --trainer.max_steps?"),
    "place": (["--data.tau", "3"], "there is no option --data.tau; did you mean --drift.tau?"),
    "class": (["--model.editor", "MEMITT"], "--model.editor names no known class: MEMITT; did you mean MEMIT?"),
    "class's option": (["--model.editor.lamm", "3"], "MEMIT has no option lamm; did you mean lam?"),
    "nothing like it": (["--model.colour", "red"], "there is no option --model.colour"),
}


@pytest.mark.parametrize("mistake", MEANT)
def test_the_nearest_right_name_is_told(mistake, capsys):
    arguments, sentence = MEANT[mistake]
    assert refused(capsys, *arguments) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model:\n  editr: MEMIT\n", "there is no option --model.editr; did you mean --model.editor?"),
        ("model:\n  targets: {stps: 3}\n", "there is no option --model.targets.stps; did you mean --model.targets.steps?"),
        ("model:\n  guards: [{class_path: REVIVE, init_args: {tua: 1}}]\n", "mine.yaml: REVIVE has no option tua; did you mean tau?"),
        ("model:\n  guards: [{class_path: REVIEV}]\n", "mine.yaml: --model.guards names no known class: REVIEV; did you mean REVIVE?"),
    ],
)  # fmt: skip
def test_the_nearest_right_name_in_a_file_is_told(text, sentence, capsys):
    assert refused(capsys, *config(text)) == sentence


def test_names_that_are_told_are_near():
    known = ["model.editor", "model.targets.steps", "data.batch_size", "trainer.max_steps"]
    assert nearest("model.editor", known) == "model.editor"
    assert nearest("steps", known) == "model.targets.steps" and nearest("modl.editor", known) == "model.editor"
    assert nearest("completely.different", known) is None and nearest("", known) is None


DOCUMENTS = {
    "broken": ("model: [\n", "in line 2, column 1"),
    "empty": ("", "mine.yaml: it holds no options by name, but ''"),
    "a text": ("hello\n", "mine.yaml: it holds no options by name, but 'hello'"),
    "no text": (b"\xff\xfe\x00", "mine.yaml is no text in UTF-8 (byte 0), so it is no configuration"),
    "an alias in what it repeats": ("model: &a {editor: *a}\n", "an alias (*name) stands inside of what it repeats"),
    "aliases of aliases": (BOMB, "it means more than 100,000 values"),
    "nested deep": ("a: " + "[" * 200 + "]" * 200, "it is nested deeper than 100 levels"),
    "nested deeper": ("[" * 5000, "mine.yaml: it is no YAML: "),
    "a tag that does not fit": ("data: {limit: !!int many}\n", "it holds a value that is not what it is marked as"),
    "no truth value": ("data: {strict: !!bool maybe}\n", "it holds a value that is not what it is marked as"),
    "bytes": ("data: {path: !!binary aGVsbG8=}\n", "it holds a bytes"),
    "a set": ("data: !!set {a, b}\n", "it holds a set"),
    "a huge number": (f"data: {{limit: 0x{'f' * 5000}}}\n", "it holds a number of 20000 bits"),
}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_file_that_is_no_configuration(document, capsys):
    text, sentence = DOCUMENTS[document]
    assert sentence in refused(capsys, *config(text))


def test_what_looks_like_a_date_is_text(capsys):
    text = "run_dir: 2024-05-01\ndata: {path: 2001-99-99.json}\n"
    assert refused(capsys, *config(text)).startswith("There is no file 2001-99-99.json")


VALUES = {
    "null": (["--model.editor.lam", "null"], "lam of MEMIT: expected float, got None"),
    "null in a group": (["--model.targets.steps", "null"], "--model.targets.steps: expected int, got None"),
    "a group": (config, "model:\n  targets: 3\n", "--model.targets is 3; it has options of its own, given by their names"),
    "no group": (config, "model:\n  targets: null\n", "--model.targets is None; it has options of its own"),
    "no number": (["--model.editor.lam", "many"], "lam of MEMIT: expected float, got many"),
    "huge": (["--data.limit", "0x" + "f" * 5000], "--data.limit is a number of 20000 bits; nothing is that large"),
    "nan": (["--model.targets.kl_factor", ".nan"], "--model.targets.kl_factor is nan; it must not be negative"),
    "seed": (["--seed_everything", "-1"], "--seed_everything is -1; it is a number from 0 to 4294967295"),
    "large seed": (["--model.seed", str(10**30)], f"--model.seed is {10**30}; a seed has at most 64 bits"),
    "folder": (["--run_dir", "x" * 300], "the path of --run_dir is 'xxx"),
    "folder in Latin-1": (["--run_dir", "caf\udce9"], "--run_dir is caf\\udce9, which is no text in UTF-8"),
    "no folder": (["--run_dir="], "the path of --run_dir is '', where no file can be (it is empty)"),
    "checkpoint": (["--ckpt_path="], "the path of --ckpt_path is '', where no file can be (it is empty)"),
    "accelerator": (["--trainer.accelerator", "tpu"], "the options --trainer cannot be used: "),
    "strategy": (
        ["--trainer.strategy", "sideways"],
        "the options --trainer cannot be used: You selected an invalid strategy name",
    ),
    "duration": (["--trainer.max_time", "long"], "is not a valid duration"),
    "checkpoints": (["--checkpoint.save_top_k", "-7"], "Invalid value for save_top_k=-7"),
}


@pytest.mark.parametrize("value", VALUES)
def test_a_value_that_an_option_does_not_take(value, capsys):
    *given, sentence = VALUES[value]
    arguments = given[0] if isinstance(given[0], list) else given[0](given[1])
    assert sentence in refused(capsys, *arguments)
    assert not Path("runs", "counterfact", "journal.jsonl").exists()


def test_null_is_taken_where_it_says_something(capsys):
    for option in ("--model.guards", "--model.layers", "--data.limit", "--data.review", "--checkpoint.dirpath"):
        assert refused(capsys, option, "null").startswith("There is no file data/counterfact.json"), option


def test_training_verbs_have_the_same_parser(capsys):
    for verb in ("train-mend", "pretrain"):
        assert main([verb, "--trainer.max_step5", "3"]) == 2
        assert "there is no option --trainer.max_step5; did you mean --trainer.max_steps?" in capsys.readouterr().err
