"""What a plan reads, refuses and advises; published shapes without weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stream import write_facts
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoConfig

import lit_edit
from lit_edit import ContinualEditor, EditStream, RunSettings, TargetOptions
from lit_edit.__main__ import main
from lit_edit.anatomy import Anatomy
from lit_edit.editors import FT, MEMIT, AlphaEdit, UltraEdit
from lit_edit.guards import REVIVE
from lit_edit.plan import planning
from lit_edit.plan.advice import advice
from lit_edit.plan.network import Network
from lit_edit.plan.planning import memory_of, plan_of
from lit_edit.plan.result import OUTSIDE
from lit_edit.prompts import Encoder

PUBLISHED = {
    "gpt2": ({"n_embd": 1600, "n_layer": 48, "n_head": 25}, 1_557_611_200, (1600, 6400)),
    "gptj": ({}, 6_050_882_784, (4096, 16384)),
    "llama": (
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
        8_030_261_248,
        (4096, 14336),
    ),
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A model's folder without weights: what is not there cannot be loaded."""
    folder = tmp_path_factory.mktemp("bare")
    tiny_model("gpt2").config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    return write_facts(tmp_path_factory.mktemp("facts") / "facts.jsonl", 24)


def settings(tmp: Path, **more) -> RunSettings:
    return RunSettings(run_dir=str(tmp / "run"), device="cpu", **more)


def of(bare: str, facts: str, tmp: Path, editor=None, run: dict | None = None, **model):
    edited = ContinualEditor(bare, editor or MEMIT(lam=10.0), cache_dir=str(tmp / "cache"), **{"layers": [0, 1], **model})
    stream = EditStream(path=facts, batch_size=8)
    return lit_edit.plan_run(edited, stream, settings(tmp, **(run or {})), calibrate=False), edited


def phase(plan, name):
    return next(one for one in plan.memory.phases if one.name == name)


def own(plan, name):
    """Bytes of a phase without the interpreter, which grows from test to test."""
    found = phase(plan, name)
    return found.bytes - found.parts[0].bytes


def named(plan, name):
    return next((one.bytes for one in plan.memory.largest.parts if one.name == name), 0)


# ---------------------------------------------------------------------------------------------------- what is read


def test_a_plan_needs_no_weights_and_writes_nothing(bare, facts, tmp_path):
    plan, model = of(bare, facts, tmp_path, guards=[REVIVE()])
    assert plan.fits and model.net is None
    assert plan.stream["batches"] == 3 and plan.stream["edits"] == 24
    assert plan.model["parameters"] == sum(value.numel() for value in tiny_model("gpt2").parameters())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "gemma2", "opt", "falcon", "mpt", "phi3", "qwen3"])
def test_the_parts_are_those_that_are_found_with_weights(family):
    model = tiny_model(family)
    found, true = Network.from_config(model.config, torch.float32).anatomy, Anatomy.of(model)
    for name in ("blocks_name", "down_name", "after_mlp_name", "tuple_output", "packs", "continues", "d_inner", "positions"):
        assert getattr(found, name) == getattr(true, name), name


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_shapes(family, facts, tmp_path):
    sizes, parameters, shape = PUBLISHED[family]
    network = Network.from_config(AutoConfig.for_model(family, **sizes), torch.bfloat16)
    assert network.parameters == parameters
    assert (network.anatomy.d_model, network.anatomy.d_inner) == shape
    stream = EditStream(path=facts, batch_size=8)
    stream.setup("fit")
    model = ContinualEditor("published", MEMIT(), layers=[3, 4], cache_dir=str(tmp_path))
    encoder = Encoder(tiny_tokenizer(), network.anatomy.positions)
    plan = plan_of(network, encoder, model, stream, settings(tmp_path), calibrate=False)
    parts = {one.name: one.bytes for one in phase(plan, "targets").parts}
    assert parts["model"] >= 2 * parameters
    assert parts["float32 masters"] == parts["originals"] == 2 * 4 * shape[0] * shape[1]
    assert parts["inverses"] == 2 * 8 * shape[1] ** 2
    assert parts["second moments"] == 2 * 4 * shape[1] ** 2


@pytest.mark.parametrize("editor", [UltraEdit(), FT(), AlphaEdit(threshold=1.0)])
def test_editors_of_other_kinds(bare, facts, tmp_path, editor):
    plan, _ = of(bare, facts, tmp_path, editor)
    phases = {one.name for one in plan.memory.phases}
    assert ("gradients" in phases) != ("targets" in phases)
    assert all(one.operations > 0 for one in plan.work) and plan.seconds is None
    assert json.dumps(plan.as_dict())


# ---------------------------------------------------------------------------------------------------- what options do


def test_fewer_requests_at_once_and_a_budget_take_less(bare, facts, tmp_path):
    whole = own(of(bare, facts, tmp_path)[0], "targets")
    fewer = own(of(bare, facts, tmp_path, targets=TargetOptions(requests_at_once=2))[0], "targets")
    budget = own(of(bare, facts, tmp_path, targets=TargetOptions(memory=5e-4))[0], "targets")
    assert fewer < whole and budget < whole


def test_ranks_divide_what_they_divide(bare, facts, tmp_path):
    one, _ = of(bare, facts, tmp_path)
    two, _ = of(bare, facts, tmp_path, run={"ranks": 2, "strategy": "replicated"})
    cut, _ = of(bare, facts, tmp_path, run={"ranks": 2, "strategy": "sharded"})
    work = [{part.phase: part.operations for part in plan.work} for plan in (one, two, cut)]
    assert work[1]["targets"] == work[0]["targets"] / 2 and work[2]["targets"] == work[0]["targets"]
    assert work[1]["solves"] == work[0]["solves"]
    assert two.memory.ranks_here == 2
    network = Network.from_config(tiny_model("gpt2").config, torch.float32)
    blocks = 3 * network.block_bytes()
    assert named(one, "model") - named(cut, "model") == blocks - -(-blocks // 2) - network.block_bytes()


def test_time_comes_from_operations_and_measured_rates(bare, facts, tmp_path, capsys):
    model = ContinualEditor(bare, MEMIT(lam=10.0), layers=[0, 1], cache_dir=str(tmp_path / "cache"))
    plan = lit_edit.plan_run(model, EditStream(path=facts, batch_size=8), settings(tmp_path))
    targets = next(one for one in plan.work if one.phase == "targets")
    assert targets.seconds == targets.model / plan.rates.model
    assert plan.seconds == pytest.approx(sum(one.seconds for one in plan.work)) and plan.seconds > 0


# ---------------------------------------------------------------------------------------------------- the verdict


def command(bare: str, facts: str, tmp: Path, *more: str) -> list[str]:
    return [
        "plan",
        *("--model.pretrained", bare, "--model.editor", "MEMIT", "--model.layers", "[0,1]"),
        *("--model.cache_dir", str(tmp / "cache"), "--data.path", facts, "--run_dir", str(tmp / "run")),
        *("--calibrate", "false", *more),
    ]


def test_the_verb_says_all_of_it(bare, facts, tmp_path, capsys):
    told = tmp_path / "plan.json"
    assert main(command(bare, facts, tmp_path, "--json", str(told), "--data.batch_size", "8")) == 0
    said, written = capsys.readouterr().out, json.loads(told.read_text())
    assert "It fits." in said and "24 edits in 3 batches of 8" in said and "Operations" in said
    assert written["fits"] and written["seconds"] is None and written["stream"]["batches"] == 3
    assert written["memory"]["largest"] in {one["name"] for one in written["memory"]["phases"]}
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_says_what_would(bare, facts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(planning, "resident", lambda: 0)
    plan, _ = of(bare, facts, tmp_path)
    most = max(one.bytes for one in plan.memory.phases)
    monkeypatch.setattr(planning, "available", lambda device: int(OUTSIDE * most) - 1)
    assert main(command(bare, facts, tmp_path, "--data.batch_size", "8")) == 1
    said = capsys.readouterr().out
    assert "It does not fit: too little memory" in said
    assert "--model.dtype bfloat16" in said and "--model.layers [1]" in said
    assert of(bare, facts, tmp_path, dtype="bfloat16")[0].memory.fits
    assert of(bare, facts, tmp_path, layers=[1])[0].memory.fits


def test_a_full_disk_does_not_fit(bare, facts, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_edit.plan.disk.free_bytes", lambda folder: 1000)
    plan, _ = of(bare, facts, tmp_path)
    assert not plan.fits and plan.memory.fits and plan.advice == ("a --run_dir on a disk with more room",)


def test_devices_for_a_sharded_model_are_counted(bare, facts, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "device_of", lambda wanted: "cuda")
    monkeypatch.setattr(planning, "available", lambda device: 2**40)
    model = ContinualEditor(bare, MEMIT(lam=10.0), layers=[0], cache_dir=str(tmp_path / "cache"))
    stream = EditStream(path=facts, batch_size=8)
    stream.setup("fit")
    network = Network.from_config(AutoConfig.for_model("gpt2", n_embd=64, n_layer=12, n_head=4), torch.float32)
    encoder = Encoder(tiny_tokenizer(), network.anatomy.positions)
    scene = planning.scene_of(network, encoder, model, stream, settings(tmp_path), [])
    whole = memory_of(scene)
    cut = planning._other(scene, model, stream, {"ranks": 4})
    assert cut.largest.bytes < whole.largest.bytes
    enough = int(OUTSIDE * cut.largest.bytes) + 2
    tight = replace(whole, available=enough)
    monkeypatch.setattr(planning, "available", lambda device: enough)
    disk = plan_of(network, encoder, model, stream, settings(tmp_path), calibrate=False).disk
    said = advice(scene, tight, disk, lambda **new: planning._other(scene, model, stream, new))
    assert "--trainer.strategy sharded --trainer.devices 4" in said


# ---------------------------------------------------------------------------------------------------- bad input


def test_mistakes_end_in_one_sentence(bare, facts, tmp_path, capsys):
    def refused(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("lit-edit: error")]
        return line

    assert "there is no model folder" in refused(*command("./nowhere", facts, tmp_path))
    assert "the model has layers 0 to 2" in refused(*command(bare, facts, tmp_path, "--model.layers", "[7]"))
    assert "neither path nor source" in refused(*command(bare, "null", tmp_path))
    assert "facts-are-elsewhere" in refused(*command(bare, str(tmp_path / "facts-are-elsewhere.jsonl"), tmp_path))
    assert "no_such" in refused(*command(bare, facts, tmp_path, "--model.no_such", "1"))
    assert "--trainer.devices is" in refused(*command(bare, facts, tmp_path, "--trainer.devices", "0"))
    assert "holds none" in refused(*command(bare, facts, tmp_path, "--hash", "true"))
    assert "edits run on cpu or gpu" in refused(*command(bare, facts, tmp_path, "--trainer.accelerator", "mps"))


def test_an_embedded_model_is_hashed_by_its_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no folder has that name
    told = tmp_path / "plan.json"
    more = ("--calibrate", "false", "--hash", "true", "--json", str(told), "--model.cache_dir", str(tmp_path / "cache"))
    assert main(["plan", "--config", "quickstart", *more]) == 0
    capsys.readouterr()
    assert [one["layers"] for one in json.loads(told.read_text())["cached"]] == [{"0": False, "1": False}] * 2
