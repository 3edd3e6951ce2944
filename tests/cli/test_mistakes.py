"""Mistakes on the command line: one sentence, exit code 2, and nothing is written."""

import json
from pathlib import Path

import pytest
from fitting import FAST, over, run
from stream import write_facts
from tiny import save_tiny

from lit_edit.__main__ import main

pytestmark = pytest.mark.usefixtures("apart")


MISTAKES = {
    "model folder": (["--model.pretrained", "./nowhere"], "there is no model folder ./nowhere"),
    "model file missing": (["--model.pretrained", "empty"], "holds no config.json"),
    "hub id": (["--model.pretrained", "nobody/nothing"], "no model 'nobody/nothing' was found"),
    "encoder": (["--model.pretrained", "bert"], "looks ahead"),
    "layer": (["--model.layers", "[1,77]"], "names layer 77, but the model has layers 0 to 2"),
    "tau": (["--model.guards+=REVIVE", "--model.guards.tau", "1.5"], "tau is 1.5"),
    "option": (["--model.colour", "red"], "--model.colour"),
    "class": (["--model.editor", "Nonsense"], "--model.editor names no known class: Nonsense"),
    "lambda": (["--model.editor", "MEMIT", "--model.editor.lam", "-1"], "lam is -1"),
    "data file": (["--data.path", "none.json"], "There is no file none.json"),
    "data truncated": (["--data.path", "cut.json"], "cut.json"),
    "missing subject": (["--data.path", "subject.jsonl"], "subject"),
    "empty target": (["--data.path", "target.jsonl"], "target"),
    "read-only run folder": (["--run_dir", "file/run"], "cannot be written to"),
    "checkpoint": (["--ckpt_path", "none.ckpt"], "there is no checkpoint"),
    "foreign checkpoint": (["--ckpt_path", "file"], "was not written by lit_edit"),
    "order": (["--data.order", "sideways"], "data.order"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_one_sentence_and_exit_code_two(mistake, gpt2, tmp_path, capsys):
    from transformers import BertConfig, BertForMaskedLM

    Path("empty").mkdir()
    Path("file").write_text("not a folder")
    Path("cut.json").write_text('[{"prompt": "{} is", "subj')
    Path("subject.jsonl").write_text(json.dumps({"prompt": "{} is", "target": "big"}) + "\n")
    Path("target.jsonl").write_text(json.dumps({"prompt": "{} is", "subject": "Rome", "target": " "}) + "\n")
    if mistake == "encoder":
        config = BertConfig(vocab_size=320, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
        save_tiny("bert", "gpt2")
        BertForMaskedLM(config).save_pretrained("bert")
    arguments, sentence = MISTAKES[mistake]
    path = write_facts(tmp_path / "facts.jsonl", 2)
    base = [
        *over(gpt2, path),
        *FAST,
        "--baseline",
        "false",
    ]
    assert run(*base, *arguments) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("lit-edit: error: ") and sentence in last
    assert not Path("runs", "counterfact", "journal.jsonl").exists()


def test_a_cache_of_other_weights_is_refused(gpt2, tmp_path, capsys):
    path = write_facts(tmp_path / "facts.jsonl", 2)
    base = [*over(gpt2, path), *FAST]
    assert run(*base) == 0
    for note in Path("checkpoints/cache/spectrum").glob("*.json"):
        content = json.loads(note.read_text())
        content["identity"]["weights"] = "0" * 64
        note.write_text(json.dumps(content))
    assert run(*base) == 2
    assert "belongs to another weights" in capsys.readouterr().err


def test_missing_options_are_named_as_they_are_typed(capsys):
    assert run("fit") == 2
    assert "required: --model.pretrained, --model.editor" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["doctor", "export", "journal", "report", "verify"])
def test_a_verb_without_what_it_works_on_is_one_sentence(verb, capsys):
    assert main([verb]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lit-edit: error: the following arguments are required: ") and said.count("\n") == 1
