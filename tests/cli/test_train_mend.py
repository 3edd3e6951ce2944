"""``lit-edit train-mend``, and editing with what it leaves behind."""

import json
from pathlib import Path

import pytest
from tiny import save_tiny

from lit_edit.__main__ import main
from lit_edit.mend import load_network
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO
from lit_edit.spectrum import decompose, triple_drift

ROOT = Path(__file__).resolve().parents[2]
TRAIN = [
    "train-mend", "--config", "configs/mend.yaml", "--model.warm_up", "20", "--model.locality", "2", "--model.rank", "64",
    "--model.lr", "1e-5", "--model.export_to", "n.safetensors", "--data.batches", "40", "--data.validation", "8",
    "--trainer.accumulate_grad_batches", "2", "--trainer.enable_progress_bar", "false",
]  # fmt: skip
EDIT = [
    "fit", "--config", "configs/quickstart.yaml", "--model.editor", "lit_edit.editors.mend.MEND", "--model.editor.network",
    "n.safetensors", "--data.source.n", "6", "--data.batch_size", "2", "--data.probes", "null", "--trainer.accelerator", "cpu",
    "--trainer.enable_progress_bar", "false",
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("apart")


def edited(*arguments: str, folder: str) -> tuple[dict, float]:
    """Summary of an edit run and how far the dominant triples of its layers moved."""
    import torch

    from lit_edit.anatomy import Anatomy
    from lit_edit.guards import REVIVE
    from lit_edit.models.identity import load_pretrained

    assert main([*EDIT, "--run_dir", folder, *arguments]) == 0
    masters = SafetensorsCheckpointIO().load_checkpoint(f"{folder}/checkpoints/last.ckpt")["state_dict"]
    assert not any("transforms" in name for name in masters), "the network stays in its own file"
    anatomy = Anatomy.of(load_pretrained("checkpoints/world-gpt2", None, torch.float32)[0])
    moved = []
    for layer in (0, 1):
        original, guard = anatomy.weight(layer), REVIVE()
        spectrum = decompose(original)
        guard.prepare(layer, original, spectrum)
        assert not torch.equal(masters[f"masters.layer_{layer}"], original)
        moved.append(float(triple_drift(spectrum, masters[f"masters.layer_{layer}"], guard.protected(layer).rank)))
    return json.loads(Path(folder, "summary.json").read_text()), max(moved)


@pytest.mark.slow
def test_train_then_edit_a_stream_plain_and_with_revive(capsys):
    assert main(TRAIN) == 0
    printed = capsys.readouterr().out
    assert "8 held-out edits, each alone" in printed and "The network is in n.safetensors" in printed
    measured = load_network("n.safetensors")[1].measured
    assert measured["edit_nll"] < measured["edit_nll/untrained"] - 1.0
    plain, moved = edited("--model.guards", "null", "--data.batch_size", "1", folder="plain")
    success = "edit/immediate/efficacy/success/teacher_forced"
    assert plain["edits"] == 6 and plain["editor"] == "MEND" and plain["immediate"][success] > 0.5
    guarded, kept = edited(folder="guarded")
    assert guarded["edits"] == 6
    assert kept < 1e-4 < moved, "REVIVE keeps the protected triples, and without it they move"


def test_a_training_goes_on_from_a_checkpoint():
    keep = [
        "--trainer.enable_checkpointing",
        "true",
        "--trainer.callbacks+=ModelCheckpoint",
        "--trainer.callbacks.dirpath",
        "kept",
    ]
    keep += ["--trainer.callbacks.every_n_train_steps", "5", "--trainer.callbacks.save_top_k", "-1"]
    short = ["--data.batches", "20"]
    assert main([*TRAIN, *short, *keep]) == 0
    checkpoint = next(path for path in Path("kept").iterdir() if "step=5" in path.name)
    assert main([*TRAIN, *short, "--model.export_to", "again.safetensors", "--ckpt_path", str(checkpoint)]) == 0
    assert Path("n.safetensors").read_bytes() == Path("again.safetensors").read_bytes()


MISTAKES = {
    "model": (["--model.pretrained", "./nowhere"], "there is no model folder ./nowhere"),
    "layer": (["--model.layers", "[1,77]"], "names layer 77, but the model has layers 0 to 3"),
    "rank": (["--model.rank", "0"], "the rank of the hyper-network is 0"),
    "option": (["--model.colour", "red"], "colour"),
    "data": (["--data.source", "null", "--data.path", "none.json"], "There is no file none.json"),
    "nothing left": (["--data.validation", "2000"], "no edit is left for training"),
    "checkpoint": (["--ckpt_path", "none.ckpt"], "there is no checkpoint none.ckpt"),
    "folder": (["--model.export_to", "file/n.safetensors", "--data.batches", "2"], "cannot be written"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_one_sentence_and_exit_code_two(mistake, capsys):
    Path("file").write_text("not a folder")
    arguments, sentence = MISTAKES[mistake]
    assert main([*TRAIN, *arguments]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("lit-edit: error: ") and sentence in last


def test_editing_refuses_a_network_that_does_not_fit(tmp_path, capsys):
    assert main(EDIT) == 2
    assert "there is no hyper-network n.safetensors; train one with" in capsys.readouterr().err
    assert main([*TRAIN, "--data.batches", "2", "--data.validation", "2"]) == 0
    assert main([*EDIT, "--model.layers", "[1]"]) == 2
    assert "layer 0 is not edited here" in capsys.readouterr().err
    assert main([*EDIT, "--model.pretrained", str(save_tiny(tmp_path / "tiny", "gpt2"))]) == 2
    assert "belongs to another model" in capsys.readouterr().err
    assert not Path("runs", "quickstart", "journal.jsonl").exists()


def test_help_tells_what_it_does_and_every_option(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train-mend", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "Train MEND's hyper-network" in text
    assert all(option in text for option in ("--model.edit_lr", "--model.cloc", "--data.apart_from", "--ckpt_path"))


def test_every_option_of_the_configuration_is_explained():
    lines = (ROOT / "configs" / "mend.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        if ":" in line and not line.strip().startswith(("#", "class_path", "init_args")) and not line.endswith((":", "}")):
            above = lines[number - 1].strip()
            assert above.startswith("#") or line.strip().split(":")[0] in (
                "devices",
                "max_epochs",
                "log_every_n_steps",
                "enable_checkpointing",
            ), line
