"""Presets of models and of editors on them: numbers as released, sources named, everything explained."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from released import DERIVED, EDITORS, MEMIT, as_options

from lit_edit.anatomy import Anatomy
from lit_edit.options.packaged import config_names, config_path

ROOT = Path(__file__).resolve().parents[2]
MODELS = sorted(name for name in config_names() if re.fullmatch(r"models/[^/]+", name))
ON_MODELS = sorted(name for name in config_names() if re.fullmatch(r"models/[^/]+/[^/]+", name))
LLAMA3 = "models/llama3-8b"


def parsed(*arguments):
    """The configuration of a run, and what was built from it."""
    from lit_edit.cli import EditCLI

    common = ["--data.path", "facts.jsonl", "--trainer.accelerator", "cpu", "--run_dir", "built"]
    return EditCLI([*arguments, *common], run=False)


def text(name):
    return config_path(name).read_text(encoding="utf-8")


def header(name):
    """The comment that a file begins with, as one line."""
    return " ".join(line.lstrip("# ") for line in text(name).split("\n\n")[0].splitlines())


def differing(cli, expected):
    config = cli.config.as_dict()
    found = {}
    for option, value in expected.items():
        at = config
        for part in option.split("."):
            at = at[part]
        at = list(at) if isinstance(at, list) else at
        if at != value:
            found[option] = (at, value)
    return found


def test_there_is_a_preset_for_every_model_of_the_tables_and_no_other():
    assert {f"models/{name}" for name in (*MEMIT, *DERIVED)} == set(MODELS)
    files = {tuple(name.split("/")[1:]) for name in ON_MODELS}
    assert files <= set(EDITORS), "every file has a released one to be compared with"


@pytest.mark.parametrize("model", MEMIT)
def test_memit_has_the_released_numbers(model):
    cli = parsed("--config", f"models/{model}")
    assert not differing(cli, as_options(MEMIT[model]))
    assert type(cli.model.editor).__name__ == "MEMIT" and not cli.model.editor.history and not cli.model.guards
    assert cli.model.targets.contexts == 5 and cli.model.targets.context_lengths == (10,)
    assert cli.model.targets.stop_loss == 0.05 and cli.model.model_dtype == "float32"


@pytest.mark.parametrize(("model", "editor"), EDITORS, ids=["-".join(pair) for pair in EDITORS])
def test_every_editor_has_the_released_numbers(model, editor):
    own = f"models/{model}/{editor}"
    if config_path(own):
        arguments = ["--config", own]
    else:  # what a fragment ships with is what was released for this model
        arguments = ["--model.editor", f"editors/{editor}"]
        if "edits" in EDITORS[model, editor]:
            arguments += ["--data.batch_size", str(EDITORS[model, editor]["edits"])]
    cli = parsed("--config", f"models/{model}", *arguments)
    assert not differing(cli, as_options(EDITORS[model, editor]))
    fragment = yaml.safe_load(text(f"editors/{editor}"))
    assert type(cli.model.editor).__name__ == fragment["class_path"]
    if editor in ("rome", "rrome"):
        assert cli.model.editor.same_key == (editor == "rrome")
    if editor in ("ft", "ft_l"):
        assert cli.model.editor.prompt_last, "as released"


@pytest.mark.parametrize("model", MEMIT)
def test_headers_list_the_editors_that_have_released_numbers(model):
    told = header(f"models/{model}")
    folder = "llama3-8b" if model == "llama3-8b-instruct" else model
    released = {editor for name, editor in EDITORS if name == folder}
    own = {name.rpartition("/")[2] for name in ON_MODELS if name.startswith(f"models/{folder}/")}
    fragments = set(re.findall(r"editors/(\w+)", told))
    assert fragments == released - own
    several = re.search(rf"--config models/{re.escape(folder)}/EDITOR with EDITOR one of ([\w, ]+)\.", told)
    listed = set(several[1].split(", ")) if several else set(re.findall(rf"models/{re.escape(folder)}/(\w+)", told))
    assert listed == own


@pytest.mark.parametrize("model", DERIVED)
def test_derived_presets_say_so_and_are_what_they_say(model):
    assert "no published ones were found" in header(f"models/{model}")
    cli, llama = parsed("--config", f"models/{model}"), parsed("--config", LLAMA3)
    assert cli.model.targets == llama.model.targets and cli.model.editor.lam == llama.model.editor.lam
    blocks = int(re.search(r"\((\d+) blocks\)", header(f"models/{model}"))[1])
    assert blocks == DERIVED[model]
    proposed = Anatomy.proposed_layers(SimpleNamespace(blocks=[None] * blocks))
    assert tuple(cli.model.wanted_layers) == proposed
    commented = explained(text(f"models/{model}")).values()
    assert sum("No published value" in comment for comment in commented) >= 8
    assert not any(re.search(r"\[E\]", comment) for comment in commented)


def test_instruct_differs_from_the_base_model_in_its_weights_alone():
    base, tuned = (yaml.safe_load(text(name)) for name in (LLAMA3, f"{LLAMA3}-instruct"))
    assert base["model"].pop("pretrained") != tuned["model"].pop("pretrained")
    assert base == tuned


def test_the_page_of_models_has_the_same_numbers():
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    table = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `models/")
    ]
    assert sorted(row[0].strip("`") for row in table) == MODELS
    for name, _, layers, steps, lr, clamp, decay, lam, source in table:
        name = name.strip("`")
        preset = yaml.safe_load(text(name))["model"]
        first, last = map(int, layers.split("-"))
        assert preset["layers"] == [*range(first, last + 1)]
        shown = [float(cell) for cell in (steps, lr, clamp, decay, lam)]
        targets = preset["targets"]
        assert shown[:4] == [targets[key] for key in ("steps", "lr", "clamp", "weight_decay")]
        assert shown[4] == preset["editor"]["init_args"]["lam"]
        assert (source == "derived") == (name.partition("/")[2] in DERIVED)
    rows = re.findall(r"^\| ([\w.-]+) \| ([a-z*, ]*) ?\| ([a-z_, ]+) \|$", page, re.M)
    listed = {(model, name) for model, some, own in rows for name in re.findall(r"\w+", f"{some} {own}")}
    shown = {"GPT-2-XL": "gpt2-xl", "GPT-J-6B": "gpt-j-6b"}
    assert {(shown.get(model, model.lower().replace("llama-", "llama")), name) for model, name in listed} == set(EDITORS)


def explained(content):
    """Comment above every key of a file, by line number; keys of a parser (class_path, init_args) need none."""
    found, comment = {}, []
    for number, line in enumerate(content.splitlines(), 1):
        if line.lstrip().startswith("#"):
            comment.append(line.strip("# "))
            continue
        key = re.match(r"\s*(?:- )?([\w.]+):", line)
        if key and key[1] not in ("class_path", "init_args"):
            found[number, key[1], line.split(":", 1)[1].strip()] = " ".join(comment)
        comment = []
    return found


SECTIONS = ("model", "data", "trainer", "drift", "journal", "checkpoint")


@pytest.mark.parametrize("name", [name for name in config_names() if name.startswith(("models/", "paper/"))])
def test_every_key_has_a_comment(name):
    bare = [key for key, comment in explained(text(name)).items() if not comment and key[1] not in SECTIONS]
    assert not bare


@pytest.mark.parametrize("name", [*MODELS, *ON_MODELS])
def test_every_number_names_its_source(name):
    sources = dict(re.findall(r"^# Source \[(\w)\]: (.+)$", text(name), re.M))
    assert sources and all("/" in source for source in sources.values())
    used = set()
    for (number, key, value), comment in explained(text(name)).items():
        if not value:  # a group
            continue
        tags = set(re.findall(r"\[(\w)\]", comment))
        assert tags or "No published value" in comment, f"{name}:{number}: {key} has no source"
        assert tags <= set(sources), f"{name}:{number}: {key} names a source that the header does not"
        used |= tags
    assert used == set(sources), "a source that nothing comes from"
