"""What README and docs say can be typed, can be typed; what they point to is there."""

import re

import pages
import parsing
import pytest

from lit_edit.__main__ import VERBS
from lit_edit.options.packaged import config_names

SHELL = [block for path in pages.PAGES for block in pages.blocks(path) if block.language == "bash" and pages.commands(block)]
KINDS = ("editors", "guards", "probes", "models", "paper", "studies")


def test_there_is_something_to_check():
    assert len(SHELL) > 30 and sum(len(pages.commands(block)) for block in SHELL) > 70


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.name)
def test_commands_are_understood_to_the_end(block, place):
    for words in pages.commands(block):
        parsing.check(words)


def test_a_wrong_command_is_found(place):
    for wrong in (
        "lit-edit fit --config quickstart --data.source.nn 3",
        "lit-edit fit --config quikstart",
        "lit-edit journal show",
        "lit-edit export RUN --format whole",
        "lit-edit study truncate --config configs/studies/truncate.yaml --layer 3",
        "pip install -e '.[nothing]'",
        "pytest -m slwo",
        "python benchmarks/run.py tpu",
        "make docs",
    ):
        with pytest.raises((AssertionError, SystemExit)):
            for words in pages.commands(pages.Block("page", 1, "bash", "", wrong)):
                parsing.check(words)


@pytest.mark.parametrize("path", pages.PAGES, ids=pages.named)
def test_no_command_hides_in_a_block_that_is_not_checked(path):
    text = path.read_text(encoding="utf-8")
    kinds = {block.name: block for block in pages.blocks(path)}
    hidden = [
        (name, line)
        for name, block in kinds.items()
        for line in block.body.splitlines()
        if block.language not in ("bash", "text", "python", "yaml")
        and re.match(r"\s*(lit-edit|pip|pytest|python|torchrun) ", line)
    ]
    assert not hidden
    assert not re.findall(r"^ {4,}(?:lit-edit|pip|pytest|python|torchrun) .*$", pages.prose(path), re.MULTILINE)
    assert text.count("```") % 2 == 0


@pytest.mark.parametrize("path", pages.PAGES, ids=pages.named)
def test_verbs_that_are_named_exist(path):
    verbs = {*VERBS, "fit", "validate", "test", "predict"}
    for code in pages.inline(path):
        if match := re.match(r"lit-edit ([\w-]+)", code):
            assert match[1] in verbs or match[1] == "--version" or match[1].startswith("-"), code


@pytest.fixture(scope="module")
def options():
    return parsing.known_options(), parsing.class_parameters()


OTHERS = ("pip ", "pytest", "mkdocs", "hf ", "#SBATCH", "python ", "torchrun ")


@pytest.mark.parametrize("path", pages.PAGES, ids=pages.named)
def test_options_that_are_named_exist(path, options):
    for code in pages.inline(path):
        if code.startswith(OTHERS):
            continue
        for option in re.findall(r"(?<![\w-])--([A-Za-z][\w.-]*)", code):
            assert parsing.exists(option.rstrip("."), *options), f"{pages.named(path)} names --{option} in `{code}`"


def test_an_option_that_does_not_exist_is_found(options):
    for wrong in ("model.targets.stps", "model.editor.lamb", "data.source.seeds", "model.edit", "checkpoint.often"):
        assert not parsing.exists(wrong, *options), wrong
    for right in ("model.targets.steps", "model.editor.init_args.lam", "trainer.devices", "upto", "ckpt_path", "fit.help"):
        assert parsing.exists(right, *options) == (right != "fit.help"), right


@pytest.mark.parametrize("path", pages.PAGES, ids=pages.named)
def test_links_lead_somewhere(path):
    for target, anchor in pages.links(path):
        found = (path.parent / target).resolve() if target else path
        if found.name in ("changelog.md", "contributing.md"):
            found = pages.ROOT / found.name.replace(".md", "").upper().__add__(".md")
        assert found.exists(), f"{pages.named(path)} links to {target}"
        if anchor:
            assert anchor in pages.anchors(found), f"{pages.named(path)} links to {target}#{anchor}"


@pytest.mark.parametrize("path", pages.PAGES, ids=pages.named)
def test_files_and_configurations_that_are_named_exist(path):
    names = set(config_names())
    for code in pages.inline(path):
        if re.search(r"\b(NAME|MODEL|EDITOR)\b", code):
            continue
        if re.fullmatch(r"(tests|configs|docs|lit_edit|benchmarks)/[\w./*-]*", code):
            assert list(pages.ROOT.glob(code.rstrip("/"))), f"{pages.named(path)} names {code}"
        elif match := re.match(rf"(?:.* )?((?:{'|'.join(KINDS)})/[a-z][\w.-]*[\w])(?= |$)", code):
            found = match[1].removesuffix(".yaml")
            assert found in names, f"{pages.named(path)} names the configuration {match[1]}"


def test_every_page_is_in_the_navigation():
    text = (pages.ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = set(re.findall(r"[\w/-]+\.md", text.partition("\nnav:")[2]))
    there = {str(path.relative_to(pages.ROOT / "docs")) for path in (pages.ROOT / "docs").rglob("*.md")}
    assert nav == there | {"changelog.md", "contributing.md"}
