"""Configurations and command lines that were right once: they are understood, or one sentence says what is wrong."""

import copy
import sys
from pathlib import Path

import pytest
import yaml
from damage import changed, damaged, places, scarred, texts, written
from documents import ODD, as_yaml, milder
from exploring import explore, sizes, told
from hypothesis import strategies as st

from lit_edit.__main__ import main
from lit_edit.cli import EditCLI
from lit_edit.errors import EditError
from lit_edit.options.command import command

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text()) for name in ("quickstart", "counterfact")]
FRAGMENTS = {
    "model.editor": [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "configs" / "editors").glob("*.yaml"))],
    "model.guards": [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "configs" / "guards").glob("*.yaml"))],
    "data.probes": [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "configs" / "probes").glob("*.yaml"))],
}


class Parsed(Exception):
    """Carries the parser out of the command line before it is used."""


class Stopped(EditCLI):
    def parse_arguments(self, parser, args):
        raise Parsed(parser)


@pytest.fixture(scope="module")
def parser():
    """The parser of ``lit-edit`` without verbs; making it anew for every example would take most of the time."""
    with pytest.raises(Parsed) as caught:
        Stopped([], run=False)
    return caught.value.args[0]


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lit-edit"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for folder in ("editors", "guards", "probes"):  # configurations name fragments beside them
        (tmp_path / folder).symlink_to(ROOT / "configs" / folder)


def nested(option, value):
    for part in reversed(option.split(".")):
        value = {part: value}
    return value


@st.composite
def documents(draw) -> bytes:
    """Bytes of a YAML file."""
    kind = draw(st.sampled_from(["whole", "fragment", "fragment", "odd", "scarred", "mild"]))
    if kind == "odd":
        return draw(st.sampled_from(ODD))
    option = draw(st.sampled_from(list(FRAGMENTS)))
    whole = draw(st.sampled_from(CONFIGS)) if kind != "fragment" else nested(option, draw(st.sampled_from(FRAGMENTS[option])))
    whole = draw(damaged(whole, 2)) if kind != "mild" else draw(milder(whole))
    content = (written(whole) if draw(st.booleans()) else as_yaml(whole)).encode("utf-8", "surrogatepass")
    return draw(scarred(content)) if kind == "scarred" else content


@sizes(70, 2500)
def test_damaged_files(size, parser):
    seen = {"understood": 0, "refused": 0}

    def check(content):
        Path("damaged.yaml").write_bytes(content)
        try:
            with command():
                parser.parse_args(["--config", "configs/counterfact.yaml", "--config", "damaged.yaml"])
            seen["understood"] += 1
        except EditError as error:
            told(error)
            seen["refused"] += 1

    explore(size, documents(), check)
    assert min(seen.values()) > size.count // 20, seen


@sizes(40, 1000)
def test_damaged_dictionaries(size, parser):
    """As a program gives them, which may hold what no file can."""
    others = st.sampled_from([{1, 2}, (1, 2), b"x", Path("x"), 1j, range(3), "\0", "\ud800", {None: 1}, {3: 4}, 10**400])

    @st.composite
    def dictionaries(draw):
        whole = draw(st.one_of(damaged(CONFIGS[1], 2), milder(CONFIGS[1])))
        if draw(st.booleans()):
            new = draw(others)
            whole = changed(whole, draw(st.sampled_from(list(places(whole)))), lambda _: new)
        return whole

    seen = {"understood": 0, "refused": 0}

    def check(config):
        try:
            with command():
                parser.parse_object(copy.deepcopy(config))  # which it changes
            seen["understood"] += 1
        except EditError as error:
            told(error)
            seen["refused"] += 1

    explore(size, dictionaries(), check)
    assert min(seen.values()) > size.count // 20, seen


@sizes(50, 1000)
def test_damaged_fragments(size, parser):
    """A file that one option names: an editor, guards or probes."""

    @st.composite
    def fragments(draw):
        option = draw(st.sampled_from(list(FRAGMENTS)))
        content = as_yaml(draw(damaged(draw(st.sampled_from(FRAGMENTS[option])), 2))).encode("utf-8", "surrogatepass")
        return option, draw(st.one_of(st.just(content), scarred(content), st.sampled_from(ODD)))

    def check(example):
        option, content = example
        Path("fragment.yaml").write_bytes(content)
        try:
            with command():
                parser.parse_args(["--config", "configs/counterfact.yaml", f"--{option}", "fragment.yaml"])
        except EditError as error:
            told(error)

    explore(size, fragments(), check)


@sizes(70, 2500)
def test_command_lines(size, parser):
    options = sorted({action.option_strings[-1] for action in parser._actions if action.option_strings} - {"--help"})

    @st.composite
    def words(draw):
        found = []
        for _ in range(draw(st.integers(1, 3))):
            name = draw(st.sampled_from(options))
            name = draw(
                st.sampled_from(
                    [name, name, name[:-1], name + "s", name.upper(), name + "+", name + ".lam", name.replace("_", "-")]
                )
            )
            value = draw(
                st.one_of(
                    texts,
                    st.integers().map(str),
                    st.floats().map(str),
                    st.sampled_from(["x" * 300, "x/" * 200, "./" + "x" * 300, "editors/memit", "quickstart"]),
                    st.sampled_from(ODD).map(lambda odd: odd.decode("latin-1")),
                )
            )
            found += draw(st.sampled_from([[name, value], [f"{name}={value}"], [name], [value]]))
        return found

    def check(example):
        try:
            with command():
                parser.parse_args(["--config", "configs/counterfact.yaml", *example])
        except EditError as error:
            told(error)
        except SystemExit as ended:
            assert ended.code == 0 and any(word.startswith("-") for word in example), "help, or the configuration printed"

    explore(size, words(), check)


@sizes(60, 1500)
def test_wrong_values_of_classes(size, parser):
    """What is understood is built, as far as that goes without a model: editors, guards, probes, callbacks, stream."""
    numbers = st.sampled_from(
        [0, -1, 1, 2, 1e-30, 0.5, 1.5, -0.5, 10**9, 10**30, float("nan"), float("inf"), "", "x", True, None, [], [1, -1], {}]
    )

    @st.composite
    def wholes(draw):
        config = copy.deepcopy(CONFIGS[1])
        for option, fragments in FRAGMENTS.items():
            whole, (group, name) = draw(st.sampled_from(fragments)), option.split(".")
            config[group][name] = copy.deepcopy(whole)
            for entry in config[group][name] if isinstance(whole, list) else [config[group][name]]:
                arguments = entry.get("init_args") or {}
                if arguments and draw(st.booleans()):
                    arguments[draw(st.sampled_from(sorted(arguments)))] = draw(numbers)
        for group in ("model", "data"):
            if draw(st.booleans()):
                config[group][draw(st.sampled_from(sorted(config[group])))] = draw(numbers)
        return config

    seen = {"built": 0, "refused": 0}

    def check(config):
        Path("whole.yaml").write_text(as_yaml(config))
        try:
            with command():
                parser.instantiate_classes(parser.parse_args(["--config", "whole.yaml"]))
            seen["built"] += 1
        except EditError as error:
            told(error)
            seen["refused"] += 1

    explore(size, wholes(), check)
    assert min(seen.values()) > size.count // 20, seen


@sizes(8, 150)
def test_from_end_to_end(size, capsys):
    """As a user starts it: exit code 2 with one sentence on the terminal, or 0 with the configuration."""

    def check(content):
        Path("damaged.yaml").write_bytes(content)
        capsys.readouterr()
        try:
            code = main(["fit", "--config", "configs/counterfact.yaml", "--config", "damaged.yaml", "--print_config"])
        except SystemExit as ended:
            code = ended.code
        printed = capsys.readouterr()
        assert code in (0, 2)
        if code == 2:
            assert printed.err.startswith("lit-edit: error: ") and printed.err.count("\n") == 1
        else:
            assert "model:" in printed.out

    explore(size, documents(), check)
