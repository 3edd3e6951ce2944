"""Every configuration that comes with the project is understood, by its name, from any folder."""

import re

import pytest
import yaml
from tiny import save_tiny

from lit_edit.__main__ import main
from lit_edit.options.packaged import config_names, config_path

OPTIONS = {"editors": "--model.editor", "guards": "--model.guards", "probes": "--data.probes"}
OWN_VERBS = ("mend", "pretrain_facts", "pretrain_world")


def of(kind):
    return [name for name in config_names() if name.startswith(f"{kind}/")]


def build(*arguments):
    from lit_edit.cli import EditCLI

    return EditCLI([*arguments, "--trainer.accelerator", "cpu", "--run_dir", "built"], run=False)


def test_the_tests_below_reach_every_file():
    kinds = {name.partition("/")[0] for name in config_names() if "/" in name}
    assert kinds == {*OPTIONS, "studies", "models", "paper"}, "models and paper: test_presets.py, test_paper.py"


@pytest.mark.parametrize("name", [name for name in config_names() if "/" not in name and name not in OWN_VERBS])
def test_configurations_of_runs(name):
    cli = build("--config", name)
    assert cli.model.editor is not None and cli.datamodule.batch_size >= 1


@pytest.mark.parametrize("name", [name for kind in OPTIONS for name in of(kind)])
def test_fragments(name):
    kind = name.partition("/")[0]
    cli = build("--config", "counterfact", OPTIONS[kind], name)
    chosen = {"editors": [cli.model.editor], "guards": list(cli.model.guards), "probes": cli.datamodule.probes}[kind]
    assert chosen and all(type(part).__module__.startswith(f"lit_edit.{kind}") for part in chosen)


@pytest.mark.parametrize("name", of("studies"))
def test_studies(name, tmp_path):
    from lit_edit.studies.cli import parser_of, study_class, study_of

    told = re.search(rf"lit-edit study (\w+) --config configs/{name}\.yaml", config_path(name).read_text())
    assert told, "the file says how it is run"
    kind = study_class(told[1])
    parser = parser_of(told[1], kind)
    for run in yaml.safe_load(config_path(name).read_text()).get("runs", ()):  # a study of what runs have left
        model = ["--model.pretrained", str(save_tiny(tmp_path / "model", "gpt2")), "--model.layers", "[0]"]
        few = ["--model.targets.steps", "1", "--model.targets.contexts", "0", "--model.moment_tokens", "200"]
        assert main(["fit", "--config", "counterfact", *model, *few, "--data.path", "facts.jsonl", "--run_dir", run]) == 0
    study = study_of(kind, parser, parser.parse_args(["--config", name]))
    assert study.points()


def test_training_of_the_network_of_mend():
    from lit_edit.mend.cli import MendCLI, MendTrainer, PairData

    cli = MendCLI(
        MendTrainer, PairData, run=False, save_config_callback=None, auto_configure_optimizers=False, args=["--config", "mend"]
    )
    assert cli.model.pretrained == "world-gpt2" and cli.datamodule is not None


def test_training_of_the_embedded_model():
    from lit_edit.options.name_parser import NameParser
    from lit_edit.pretraining.cli import PretrainCLI
    from lit_edit.world.pretrain import WorldData, WorldPretrainer

    args = ["--config", "pretrain_world", "--trainer.precision", "32-true"]
    cli = PretrainCLI(
        WorldPretrainer, WorldData, run=False, save_config_callback=None, parser_class=NameParser, args=args,
        auto_configure_optimizers=False,
    )  # fmt: skip
    assert cli.trainer.max_steps == cli.config["data"]["batches"] == 1200


def test_training_of_the_reference_model(tmp_path):
    from lit_edit.pretraining.cli import PretrainCLI
    from lit_edit.reference.data import FactsData
    from lit_edit.reference.pretrain import FactsPretrainer

    args = ["--config", "pretrain_facts", "--data.folder", str(tmp_path), "--trainer.precision", "32-true"]
    cli = PretrainCLI(
        FactsPretrainer, FactsData, run=False, save_config_callback=None, auto_configure_optimizers=False,
        args=[*args, "--trainer.accelerator", "cpu"],
    )  # fmt: skip
    assert cli.trainer.max_steps == cli.config["data"]["batches"] == cli.datamodule.batches
    assert max(cli.model.settings.written) < cli.model.settings.layers


def test_the_studies_start_from_the_quickstart_but_for_its_editor_and_guard():
    from lit_edit.runs.run_settings import settings_of

    quickstart, world = (settings_of(yaml.safe_load(config_path(name).read_text())) for name in ("quickstart", "world"))
    differing = {name for name in {*quickstart, *world} if quickstart.get(name) != world.get(name)}
    assert differing == {"model.editor.lam", "model.editor.history", "model.guards"}
