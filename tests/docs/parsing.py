"""Every command of the documentation through the real command line, up to where the work would begin."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import os
import runpy
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pages

from lit_edit.__main__ import VERBS, main

PROJECT = tomllib.loads((pages.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]


class Parsed(Exception):
    """A command was understood to its end; its work would begin here."""


@contextmanager
def up_to_the_work() -> Iterator[None]:
    """Commands parse, build what they are about, and stop."""
    from lit_edit.cli import EditCLI
    from lit_edit.pretraining.cli import PretrainCLI
    from lit_edit.studies import cli as studies

    parse = argparse.ArgumentParser.parse_args

    def parsed(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        parse(self, *args, **kwargs)
        raise Parsed

    def begun(*_: Any, **__: Any) -> None:
        raise Parsed

    def begun_after(call: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> None:
            call(*args, **kwargs)
            raise Parsed

        return wrapped

    def measured(folder: Any, *_: Any, **__: Any) -> None:
        assert folder.study.points()
        raise Parsed

    with (
        patch.object(argparse.ArgumentParser, "parse_args", parsed),
        patch.object(EditCLI, "_run_subcommand", begun),
        patch.object(studies, "run", measured),
        patch("lit_edit.plan.cli.plan_run", begun),
        patch("lit_edit.pretraining.cli.PretrainCLI.instantiate_classes", begun_after(PretrainCLI.instantiate_classes)),
    ):
        yield


def stops(call: Any, *args: Any) -> None:
    """Let a command run up to its work; a command that ends before, well or badly, was not understood."""
    with up_to_the_work():
        try:
            code = call(*args)
        except Parsed:
            return
    raise AssertionError(f"it ended with {code} and did nothing")


def lit_edit(words: list[str]) -> None:
    """A ``lit-edit`` command; what only tells something is run to its end."""
    if words[0] in ("--version", "configs") or "--help" in words or any(word.endswith(".help") for word in words):
        try:
            assert main(words) == 0
        except SystemExit as ended:
            assert not ended.code
        return
    more = [] if words[0] in VERBS or "--trainer.accelerator" in words else ["--trainer.accelerator", "cpu"]
    if words[0].startswith("pretrain"):
        more = ["--trainer.precision", "32-true"]  # the file's own precision wants a GPU
    stops(main, [*words, *more])


def check(words: list[str]) -> None:
    """One command of a shell block.

    Raises:
        AssertionError: if it is not understood, or names what is not there.
    """
    program, rest = words[0], words[1:]
    if program == "lit-edit":
        lit_edit(rest)
    elif program == "srun":
        check(rest)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        known = get_args_parser().parse_args(rest)
        assert known.module and known.training_script == "lit_edit"
        lit_edit(known.training_script_args)
    elif program == "python":
        python(rest)
    elif program == "pip":
        pip(rest)
    elif program == "pytest":
        pytest(rest)
    elif program == "tensorboard":
        assert rest[0] == "--logdir" and len(rest) == 2 and Path(rest[1]).parts[0] == "runs"
    elif program == "mkdocs":
        assert rest in (["serve"], ["build", "--strict"]) and (pages.ROOT / "mkdocs.yml").exists()
        assert any(need.startswith("mkdocs>") for need in EXTRAS["docs"])
    elif program == ".ci/lower":
        assert os.access(pages.ROOT / program, os.X_OK), f"{program} cannot be run"
        pytest(rest)
    elif program in ("ruff", "mypy"):
        assert any(need.startswith(program) for need in EXTRAS["dev"])
        assert rest in ([], ["check", "."], ["format", "--check", "."])
    else:
        assert program in ("ls", "cat"), f"nobody knows how to check {program}"


def python(rest: list[str]) -> None:
    """``python -m MODULE ...`` or ``python FILE ...``: its own parser takes the rest."""
    if rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]), f"there is no module {rest[1]}"
        stops(lambda: importlib.import_module(rest[1]).main(rest[2:]))
        return
    script = pages.ROOT / rest[0]
    assert script.exists(), f"there is no file {rest[0]}"
    with patch.object(sys, "argv", [str(script), *rest[1:]]), patch.object(sys, "path", list(sys.path)):
        stops(lambda: runpy.run_path(str(script), run_name="__main__"))


def pip(rest: list[str]) -> None:
    """``pip install`` of this project, its extras or its wheel, or of a package that an extra names."""
    assert rest[0] == "install"
    what = rest[2:] if rest[1] == "-e" else rest[1:]
    for one in what:
        name, _, extra = one.partition("[")
        assert name in (".", "lit-edit") or name.startswith("dist/lit_edit-"), one
        assert not extra or set(extra.rstrip("]").split(",")) <= set(EXTRAS), f"{one} names an extra that does not exist"


def pytest(rest: list[str]) -> None:
    """Markers and folders that exist."""
    markers = {marker.partition(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    while rest:
        word, *rest = rest
        if word == "-m":
            assert rest[0] in markers, f"there is no marker {rest[0]}"
            rest = rest[1:]
        elif word == "--cov":
            assert any(need.startswith("pytest-cov>") for need in EXTRAS["dev"])
        elif word == "-n":
            assert rest[0] == "auto", "as many processes as this machine has cores"
            rest = rest[1:]
        else:
            assert (pages.ROOT / word).exists(), f"there is no {word}"


def known_options() -> set[str]:
    """Every option of every command, by its name without dashes."""
    from lit_edit.cli import EditCLI
    from lit_edit.plan.cli import PlanCLI
    from lit_edit.pretraining.cli import PretrainCLI
    from lit_edit.studies import STUDIES
    from lit_edit.studies.cli import parser_of, study_class

    found: set[str] = {"help", "version"}

    class Seen(Exception):
        pass

    def verbs(self: EditCLI, *_: Any) -> None:
        for parser in self._subcommand_parsers.values():
            found.update(_names(parser))
        raise Seen

    with patch.object(EditCLI, "parse_arguments", verbs), contextlib.suppress(Seen):
        EditCLI(["fit"])
    assert {"ckpt_path", "model.pretrained", "run_dir"} <= found

    def whole(self: Any, *_: Any) -> None:
        found.update(_names(self.parser))
        raise Seen

    with patch.object(PlanCLI, "parse_arguments", whole), contextlib.suppress(Seen):
        PlanCLI([])
    for verb in ("pretrain", "pretrain-facts"):
        with patch.object(PretrainCLI, "parse_arguments", whole), contextlib.suppress(Seen):
            main([verb])
    for name in STUDIES:
        found |= set(_names(parser_of(name, study_class(name))))

    def look(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        found.update(_names(self))
        raise Seen

    with patch.object(argparse.ArgumentParser, "parse_args", look):
        for verb in ("doctor", "export", "journal", "report", "verify"):
            try:
                main([verb])
            except Seen:
                continue
            raise AssertionError(f"lit-edit {verb} has no parser")
        for script in sorted((pages.ROOT / "benchmarks").glob("*.py")):
            if 'if __name__ == "__main__"' in script.read_text(encoding="utf-8"):
                with patch.object(sys, "argv", [str(script)]), patch.object(sys, "path", list(sys.path)):
                    try:
                        runpy.run_path(str(script), run_name="__main__")
                    except Seen:
                        continue
                raise AssertionError(f"{script.name} has no parser")
    return found


def _names(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from (option.lstrip("-") for option in action.option_strings)
        for choice in (getattr(action, "choices", None) or {}) if isinstance(action, argparse._SubParsersAction) else ():
            yield from _names(action.choices[choice])


def class_parameters() -> set[str]:
    """Names of the options that classes have which are chosen by another option."""
    from lit_edit import callbacks, corpus, data, editors, guards, probes
    from lit_edit.statistics import whole_documents
    from lit_edit.world import corpus as world

    found = set()
    for module in (callbacks, corpus, data, editors, guards, probes, whole_documents, world):
        for kind in vars(module).values():
            if inspect.isclass(kind) and kind.__module__.startswith("lit_edit"):
                found |= set(inspect.signature(kind.__init__).parameters)
    return found - {"self", "args", "kwargs"}


CHOSEN = ("model.editor", "model.guards", "model.corpus", "data.source", "data.reader", "data.probes", "trainer.callbacks")
"""Options that choose a class."""


def exists(option: str, known: set[str], of_classes: set[str]) -> bool:
    """Whether a command has an option of this name, or a class that one of them chooses."""
    if option in known:
        return True
    for chooser in CHOSEN:
        if option.startswith(f"{chooser}."):
            rest = option.removeprefix(f"{chooser}.").removeprefix("init_args.")
            return rest in of_classes | {"help"}
    return False
