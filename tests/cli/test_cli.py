"""The command line from end to end: verbs, models of several shapes, interrupts."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fitting import FAST, over, run
from stream import write_facts
from tiny import save_tiny

from lit_edit.__main__ import VERBS
from lit_edit.options.overview import TRAINER
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO

pytestmark = pytest.mark.usefixtures("apart")


def counterfact(path: Path, count: int = 6) -> str:
    records = [
        {
            "case_id": i,
            "pararel_idx": i,
            "requested_rewrite": {
                "prompt": "The mother tongue of {} is",
                "relation_id": "P103",
                "target_new": {"str": "English", "id": "Q1"},
                "target_true": {"str": "French", "id": "Q2"},
                "subject": f"Danielle {name}",
            },
            "paraphrase_prompts": [f"Danielle {name} speaks", f"At home, Danielle {name} talks in"],
            "neighborhood_prompts": ["The mother tongue of Leon Blum is", "Montesquieu spoke"],
            "attribute_prompts": [],
            "generation_prompts": [],
        }
        for i, name in zip(range(count), ("Darrieux", "Rome", "Kyōto", "Zürich", "Sony", "Paris"), strict=False)
    ]
    path.write_text(json.dumps(records), encoding="utf-8")
    return str(path)


SHAPES = {
    "gpt2-xl": ("gpt2", {"n_layer": 6, "n_embd": 40, "n_head": 5}),
    "gpt-j": ("gptj", {"n_layer": 5, "n_embd": 64, "n_head": 4, "rotary_dim": 8}),
    "llama-3": (
        "llama",
        {"num_hidden_layers": 6, "hidden_size": 64, "intermediate_size": 224, "head_dim": 16, "tie_word_embeddings": False},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_counterfact_config_edits_models_of_every_shape(shape, tmp_path, capsys):
    family, sizes = SHAPES[shape]
    save_tiny(tmp_path / "model", family, bos=shape == "llama-3", **sizes)
    path = counterfact(tmp_path / "counterfact.json")
    code = run(*over("model", path), "--data.batch_size", "3", *FAST)
    assert code == 0
    printed = capsys.readouterr().out
    assert "6 edits in batches of 3, MEMIT + REVIVE" in printed and "success, teacher-forced" in printed
    folder = tmp_path / "runs" / "counterfact"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["edits"] == 6 and summary["rows_set_aside"] == 0
    numbers = [value for part in ("before", "after", "immediate", "drift") for value in summary[part].values()]
    assert len(numbers) > 30 and all(isinstance(value, float) for value in numbers), "every number is finite"
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "csv",
        "journal",
        "journal.jsonl",
        "summary.json",
        "tensorboard",
    }
    assert list((folder / "tensorboard").glob("events*")) and (folder / "csv" / "metrics.csv").stat().st_size > 0


def test_real_records_on_a_real_model(shared, tmp_path):
    code = run(
        "fit", "--config", "configs/counterfact.yaml", "--model.pretrained", str(shared / "models" / "stories260K"), "--data.path",
        str(shared / "data" / "counterfact" / "counterfact_500.json"), "--data.limit", "40",
    )  # fmt: skip
    assert code == 0
    summary = json.loads((tmp_path / "runs" / "counterfact" / "summary.json").read_text())
    assert summary["edits"] == 40
    assert all(isinstance(value, float) for part in ("before", "after", "drift") for value in summary[part].values())


def test_quickstart_on_a_short_stream(tmp_path, capsys):
    arguments = [
        "--data.source.n",
        "30",
        "--data.batch_size",
        "15",
        "--model.targets.steps",
        "12",
        "--model.moment_tokens",
        "5000",
    ]
    assert run("fit", "--config", "configs/quickstart.yaml", *arguments) == 0
    summary = json.loads((tmp_path / "runs" / "quickstart" / "summary.json").read_text())
    assert summary["immediate"]["edit/immediate/efficacy/success/teacher_forced"] >= 0.9
    assert summary["before"]["edit/before/efficacy/success/teacher_forced"] <= 0.1
    assert len([name for name in summary["after"] if name.startswith("probe/")]) == 7


def test_validate_test_and_predict_on_a_finished_run(gpt2, tmp_path, capsys):
    path = counterfact(tmp_path / "counterfact.json")
    assert run(*over(gpt2, path), "--data.batch_size", "2", *FAST) == 0
    summary = json.loads((tmp_path / "runs" / "counterfact" / "summary.json").read_text())
    after = summary["after"]
    config, checkpoint = "runs/counterfact/config.yaml", "runs/counterfact/checkpoints/last.ckpt"
    capsys.readouterr()
    written = Path(checkpoint).stat().st_mtime_ns
    assert run("fit", "--config", config, "--run_dir", "runs/again", "--trainer.max_steps", "1", "--final", "false") == 0
    assert Path("runs/again/checkpoints/last.ckpt").exists() and Path(checkpoint).stat().st_mtime_ns == written
    capsys.readouterr()
    wanted = f"{after['edit/final/efficacy/probability/teacher_forced']:.3f}"
    before = f"{summary['before']['edit/before/efficacy/probability/teacher_forced']:.3f}"
    for verb in ("validate", "test"):
        assert run(verb, "--config", config, "--ckpt_path", checkpoint) == 0
        (row,) = re.findall(r"^efficacy +final +probability, teacher-forced.*$", out := capsys.readouterr().out, re.MULTILINE)
        assert row.split()[4:6] == [before, wanted] and "DataLoader" not in out
    assert run("validate", "--config", config, "--ckpt_path", checkpoint, "--verbose", "false") == 0
    assert capsys.readouterr().out == ""
    assert run("predict", "--config", config, "--ckpt_path", checkpoint) == 0
    assert not list(Path("runs/counterfact").glob("csv-*")), "scoring a run leaves its own logs alone"
    assert Path("runs/counterfact/validate/csv/metrics.csv").exists()
    said = [json.loads(line) for line in Path("runs/counterfact/predictions.jsonl").read_text().splitlines()]
    assert [answer["case_id"] for answer in said] == [str(i) for i in range(6)] and all("said" in answer for answer in said)


def test_a_second_run_takes_a_folder_of_its_own(gpt2, tmp_path, capsys):
    path = write_facts(tmp_path / "facts.jsonl", 2)
    for _ in range(2):
        assert run(*over(gpt2, path), *FAST) == 0
    assert "holds an earlier run, which stays; this one goes to runs/counterfact-2" in capsys.readouterr().err
    first, second = (Path("runs", name, "journal.jsonl").read_text().splitlines() for name in ("counterfact", "counterfact-2"))
    assert len(first) == len(second) == 1


def test_interrupt_leaves_a_checkpoint_that_resumes_to_the_same_weights(gpt2, tmp_path):
    # Slow enough that a busy machine does not finish the stream before the interrupt is sent.
    Path("slow.py").write_text(
        "import time\n\nfrom lit_edit.editors import MEMIT\n\n\nclass Slow(MEMIT):\n    def aim(self, bench, rows):\n"
        "        time.sleep(0.1)\n        return super().aim(bench, rows)\n"
    )
    path = write_facts(tmp_path / "facts.jsonl", 40)
    base = [*over(gpt2, path), "--data.batch_size", "2", *FAST, "--model.editor", "slow.Slow", "--model.editor.history", "true"]
    base += ["--trainer.val_check_interval", "100", "--checkpoint.every_n_train_steps", "100"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lit_edit", *base, "--run_dir", "stopped"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = Path("stopped", "journal.jsonl")
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_text().count("\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    done = journal.read_text().count("\n")
    assert 3 <= done < 20, "the run was to be interrupted in mid-stream"
    assert run(*base, "--run_dir", "stopped", "--ckpt_path", "last") == 0
    assert run(*base, "--run_dir", "whole") == 0
    states = [
        SafetensorsCheckpointIO().load_checkpoint(f"{name}/checkpoints/last.ckpt")["state_dict"]
        for name in ("stopped", "whole")
    ]
    assert states[0].keys() == states[1].keys()
    for name, value in states[1].items():
        assert torch.equal(states[0][name], value), name
    journals = [
        [json.loads(line)["cases"] for line in Path(name, "journal.jsonl").read_text().splitlines()]
        for name in ("stopped", "whole")
    ]
    assert journals[0] == journals[1] and len(journals[0]) == 20


def test_an_editor_from_outside_is_one_class_path(gpt2, tmp_path, monkeypatch):
    Path("mine.py").write_text(
        "from lit_edit.editors import MEMIT\n\n\nclass Gentle(MEMIT):\n    def solve(self, layer, keys, residuals, weight, avoid=None):\n"
        "        return super().solve(layer, keys, residuals / 2, weight, avoid)\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = write_facts(tmp_path / "facts.jsonl", 2)
    assert run(*over(gpt2, path), "--model.editor", "mine.Gentle", *FAST) == 0
    assert json.loads(Path("runs/counterfact/summary.json").read_text())["editor"] == "Gentle"


@pytest.mark.parametrize("module", ["solver", "spectrum", "delta", "moments", "editors", "guards", "store", "request"])
def test_pure_modules_need_torch_alone(module):
    code = (
        f"import sys, lit_edit, lit_edit.{module}\n"
        "heavy = {'lightning', 'transformers', 'torchmetrics', 'datasets', 'jsonargparse', 'tensorboard'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_help_lists_the_verbs(capsys):
    for word in ("--help", "-h"):
        assert run(word) == 0
        lines = capsys.readouterr().out.splitlines()
        assert sorted(line.split()[0] for line in lines if line.startswith("  ")) == sorted([*VERBS, *TRAINER])
        assert max(map(len, lines)) <= 128


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "it takes a verb, e.g. lit-edit fit --config quickstart"),
        (["studi"], "there is no verb 'studi'; did you mean study? See lit-edit --help"),
        (["fti", "--config", "quickstart"], "did you mean fit?"),
        (["xyzzy"], "there is no verb 'xyzzy'; see lit-edit --help"),
    ],
)
def test_a_verb_that_there_is_not(words, said, capsys):
    assert run(*words) == 2
    assert said in capsys.readouterr().err
