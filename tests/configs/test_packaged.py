"""Names of configurations and models: found from any folder, files first, mistakes in one sentence."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

import lit_edit
from lit_edit.__main__ import main
from lit_edit.errors import EditError
from lit_edit.models.identity import load_pretrained
from lit_edit.options.name_parser import NameParser
from lit_edit.options.packaged import config_names, config_path, located, model_path, nearest, with_files

ROOT = Path(__file__).resolve().parents[2]
QUICK = [
    *("--data.source.n", "6", "--data.batch_size", "3", "--data.probes", "[]", "--model.moment_tokens", "3000"),
    *("--model.targets.steps", "4", "--model.targets.contexts", "1", "--trainer.accelerator", "cpu", "--run_dir", "run"),
]


def test_every_file_has_one_name_and_every_name_a_file():
    files = {path.resolve() for path in (ROOT / "configs").rglob("*.yaml")}
    assert {config_path(name).resolve() for name in config_names()} == files and len(config_names()) == len(files) > 80


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "configs/quickstart", "configs/quickstart.yaml"])
def test_spellings_of_a_name(name):
    assert with_files(["-c", name]) == ["-c", str(config_path("quickstart"))]
    assert with_files([f"--config={name}"]) == [f"--config={config_path('quickstart')}"]


def test_a_file_wins_over_a_name(elsewhere):
    Path("editors").mkdir()
    Path("editors/memit").write_text("class_path: MEMIT\n")
    assert located("--model.editor", "editors/memit") == "editors/memit"
    Path("quickstart").mkdir()
    assert located("--config", "quickstart") == str(config_path("quickstart")), "a folder is no configuration"


def test_only_options_that_take_a_configuration_are_touched():
    untouched = [
        *("fit", "--run_dir", "quickstart", "--data.path", "models/gpt2-xl", "--model.editor", "MEMIT"),
        *("--model.pretrained=models/gpt2-xl", "--model.guards+=REVIVE", "--model.guards", "null"),
        *("--config", '{"model": {"layers": [1]}}', "--config", "/nowhere/quickstart", "--data.probes", "[]"),
    ]
    assert with_files(untouched) == untouched
    revive = str(config_path("guards/revive"))
    assert with_files(["--model.guards+=guards/revive"]) == [f"--model.guards+={revive}"]
    # A flag without a value does not swallow the option behind it.
    assert with_files(["--print_config", "--model.guards", "guards/revive"])[2] == revive


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("quikstart", "quickstart"),
        ("alphaedit", "editors/alphaedit"),
        ("editors/alphaedti", "editors/alphaedit"),
        ("models/llama-3-8b", "models/llama3-8b"),
        ("configs/guards/reviv.yaml", "guards/revive"),
        ("paper/counterfact-200", "paper/counterfact-2000"),
    ],
)
def test_the_nearest_name_is_told(wrong, meant):
    assert nearest(wrong)[0] == meant and len(nearest(wrong)) <= 3
    with pytest.raises(EditError, match=f"--config names {wrong}, which is neither a file .* did you mean {meant}"):
        located("--config", wrong)


MISTAKES = {
    "configuration": (["--config", "nothing-like-it"], "'lit-edit configs' lists the names"),
    "editor": (["--config", "quickstart", "--model.editor", "editors/mem"], "did you mean editors/memit"),
    "guards": (["--config", "quickstart", "--model.guards=guards/revife"], "did you mean guards/revive"),
    "in a file": (
        ["--config", "quickstart", "--config", "mine.yaml"],
        "error: mine.yaml: model.editor names editors/mem, which",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_unknown_names_end_in_one_sentence(mistake, elsewhere, capsys):
    Path("mine.yaml").write_text("model:\n  editor: editors/mem\n")
    arguments, sentence = MISTAKES[mistake]
    assert main(["fit", *arguments]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith("lit-edit: error: ") and sentence in told[0]


def test_names_in_a_file_of_ones_own(elsewhere):
    """A copy of a configuration keeps its fragments, and they can be named in new ones."""
    Path("mine.yaml").write_text(
        config_path("quickstart").read_text().replace("guards/revive_constrain.yaml", "guards/chain.yaml")
    )
    Path("editor.yaml").write_text("model:\n  editor: editors/alphaedit\n")
    Path("guards").mkdir()
    Path("guards/rect.yaml").write_text("- class_path: RECT\n  init_args: {keep: 0.5}\n")  # a file beside it wins
    Path("guard.yaml").write_text("model:\n  guards: guards/rect.yaml\n")
    from lit_edit.cli import EditCLI

    common = ["--trainer.accelerator", "cpu", "--run_dir", "built"]
    cli = EditCLI(["--config", "mine.yaml", "--config", "editor.yaml", *common], run=False)
    assert type(cli.model.editor).__name__ == "AlphaEdit"
    assert [type(guard).__name__ for guard in cli.model.guards] == ["RECT", "REVIVE"]
    cli = EditCLI(["--config", "mine.yaml", "--config", "guard.yaml", *common], run=False)
    assert [guard.keep for guard in cli.model.guards] == [0.5]


def test_keys_of_the_same_name_elsewhere_are_left_alone():
    from jsonargparse import get_loader

    text = (
        "trainer: {editor: editors/mem}\neditor: editors/mem\nmodel: {corpus: {editor: editors/none}, editor: editors/memit}\n"
    )
    for content in (text, "fit:\n" + "".join(f"  {line}\n" for line in text.splitlines())):
        read = get_loader("lit_edit")(content)
        read = read.get("fit", read)
        assert (read["trainer"], read["editor"]) == ({"editor": "editors/mem"}, "editors/mem")
        assert read["model"] == {"corpus": {"editor": "editors/none"}, "editor": str(config_path("editors/memit"))}


def test_a_broken_file_is_still_told_as_such(elsewhere, capsys):
    Path("broken.yaml").write_text("model: [\n")
    assert main(["fit", "--config", "broken.yaml"]) == 2
    assert "broken.yaml: it is no YAML" in capsys.readouterr().err


def test_the_parser_reads_numbers_as_before():
    parser = NameParser()
    parser.add_argument("--lr", type=float)
    parser.add_argument("--names", type=list[str])
    read = parser.parse_string("lr: 5.0e-4\nnames: [quickstart, guards/revive]\n")
    assert read.lr == 5e-4 and read.names == ["quickstart", "guards/revive"]
    assert "lr: 0.0005" in parser.dump(read)


def test_the_embedded_models_by_name(elsewhere):
    for name in ("world-gpt2", "world-llama"):
        net, tokenizer = load_pretrained(name, None, torch.float32)
        assert sum(parameter.numel() for parameter in net.parameters()) > 3e6 and tokenizer.vocab_size > 1000
    assert model_path("world-none") is None and model_path("../checkpoints/world-gpt2") is None
    Path("world-gpt2").mkdir()  # a folder wins over the name
    with pytest.raises(EditError, match=r"the folder world-gpt2 holds no config\.json"):
        load_pretrained("world-gpt2", None, torch.float32)


def test_the_quick_start_runs_in_an_empty_folder(elsewhere, capsys):
    arguments = ["--config", "quickstart", "--model.editor", "editors/memit_history", "--model.editor.lam", "100"]
    assert main(["fit", *arguments, "--model.guards", "guards/revive", *QUICK]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert (summary["edits"], summary["editor"], summary["model"]) == (6, "MEMIT", "world-gpt2")
    ran = yaml.safe_load(Path("run/config.yaml").read_text())["model"]
    assert ran["editor"]["init_args"] == {"lam": 100.0, "history": True}
    assert main(["validate", "--config", "run/config.yaml", "--ckpt_path", "run/checkpoints/last.ckpt"]) == 0


def test_one_version_everywhere(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lit-edit {lit_edit.__version__}\n"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == lit_edit.__version__
    assert f"\n## {lit_edit.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_configs_are_listed_and_printed(capsys):
    assert main(["configs"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == config_names()
    assert main(["configs", "guards"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [name for name in config_names() if name.startswith("guards/")]
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines), "every file begins with what it is"
    assert main(["configs", "models/gpt2-xl"]) == 0
    assert capsys.readouterr().out == config_path("models/gpt2-xl").read_text(encoding="utf-8")
    assert main(["configs", "models/gpt2-lx"]) == 2
    assert "asked for models/gpt2-lx, which is neither" in capsys.readouterr().err


def test_a_reader_may_close_the_pipe():
    command = [sys.executable, "-m", "lit_edit", "configs"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as run:
        run.stdout.close()
        assert (run.stderr.read(), run.wait(60)) == (b"", 0)


def test_what_is_found_by_name_goes_into_the_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    models = [path for path in (ROOT / "checkpoints").glob("world-*") if path.is_dir()]
    assert included == {
        name: f"lit_edit/{name}" for name in ["configs", *sorted(f"checkpoints/{path.name}" for path in models)]
    }
    size = sum(path.stat().st_size for folder in models for path in folder.rglob("*") if path.is_file())
    assert len(models) == 2 and size < 25e6
