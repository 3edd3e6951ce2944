"""Studies of streams: the same stream under several settings of ``lit-edit fit``, each arm a run of its own."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import yaml
from jsonargparse.typing import Path_fr

from lit_edit.errors import EditError
from lit_edit.module import ContinualEditor
from lit_edit.options.documents import load_yaml
from lit_edit.options.packaged import config_path
from lit_edit.runs.run_folder import RunFolder
from lit_edit.studies.base import Point, Result, Study
from lit_edit.studies.told import told, told_to

Options = dict[str, Any]
"""Changes of a configuration, by option as it is typed: ``{"model.guards": "guards/revive.yaml", "data.batch_size": 50}``."""

if TYPE_CHECKING:
    Base = os.PathLike[str] | str
else:
    Base = Path_fr | str
"""A configuration file, in a study's own configuration looked for beside that file; or a name of ``lit-edit configs``."""

SEED = "$seed"
"""Stands for the seed of the arm, anywhere in its options."""


@dataclass(frozen=True)
class Arm:
    """One run of a study.

    Args:
        key: unique and readable.
        options: what it changes of the study's base configuration; later options win.
        about: what the figures and tables sort it by, e.g. ``{"method": "MEMIT", "lam": 300.0, "seed": 1}``.
    """

    key: str
    options: Options
    about: dict[str, Any]


class StreamStudy(Study):
    """Base of the studies whose points are runs.

    Args:
        base: configuration of ``lit-edit fit`` that all arms start from, a file or a name.
        options: changes of it for all arms, e.g. ``{data.batch_size: 50}``. A value that names a YAML file is looked for beside
            the base configuration first; ``$seed``, anywhere in a value, is the seed of the arm.
        keep_checkpoints: leave the checkpoints of finished arms on disk.

    Raises:
        EditError: if the base configuration cannot be read.
    """

    def __init__(self, base: Base, options: Mapping[str, Any] | None = None, keep_checkpoints: bool = False) -> None:
        self.base = (None if Path(base).is_file() else config_path(str(base))) or Path(os.path.abspath(base))
        self.options = dict(options or {})
        self.keep_checkpoints = keep_checkpoints
        try:
            self._config = load_yaml(self.base.read_text(encoding="utf-8"))
        except OSError as error:
            raise EditError(f"the study's base configuration {self.base} cannot be read: {error.strerror}") from None
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise EditError(f"the study's base configuration {self.base} is no YAML file: {error}") from None

    @abstractmethod
    def arms(self) -> Sequence[Arm]:
        """The runs."""

    def repeated(
        self, methods: Mapping[str, Options], seeds: Sequence[int], places: Mapping[str, Mapping[str, Any]] | None = None
    ) -> list[Arm]:
        """Every method under every seed; ``about`` says ``method`` and ``seed``, and what ``places`` says of the method.

        Args:
            methods: by name, what each changes of the base configuration.
            seeds: every method runs once for each.
            places: by the same names, what else figures and tables sort the method by.

        Raises:
            EditError: if there is no method or no seed, a seed comes twice, or several seeds would give the same run.
        """
        if not methods or not seeds:
            raise EditError(f"{type(self).__name__} needs at least one arm and one seed")
        if len(set(seeds)) != len(seeds):
            raise EditError(f"the seeds {list(seeds)} name one twice; its runs would be the same")
        arms = []
        for name, options in methods.items():
            if len(seeds) > 1 and SEED not in json.dumps({**self.options, **options}):
                raise EditError(
                    f"nothing in arm {name!r} depends on its seed, so that {len(seeds)} seeds would give the same run; write "
                    f"{SEED} where it belongs, e.g. data.seed: {SEED} beside data.order: shuffled"
                )
            for seed in seeds:
                key = name if len(seeds) == 1 else f"{name}, seed {seed}"
                about = {"method": name, "seed": seed, **(places or {}).get(name, {})}
                arms.append(Arm(key, with_seed(options, seed), about))
        return arms

    def common(self) -> dict[str, Any]:
        """The configuration that all arms start from."""
        return {"base": self._config, "options": self.options}

    def points(self) -> Sequence[Point]:
        """One run each."""
        return [Point(arm.key, {"options": arm.options, "about": arm.about}) for arm in self.arms()]

    def begin(self, points: Sequence[Point], devices: Sequence[torch.device]) -> None:
        """Build every arm, so that a wrong option is found before hours are spent on the others; prepare what they share.

        Second moments and spectra are computed here: workers would find the cache empty and all compute the same, and an arm
        that computes them differs in the last digit from one that reads them.
        """
        prepared: set[str] = set()
        with tempfile.TemporaryDirectory() as scratch, told_to(Path(scratch, "log.txt")):
            for point in points:
                try:
                    self._try_out(point, devices[0], Path(scratch, "run"), prepared)
                except EditError as error:
                    raise EditError(f"arm {point.key!r} cannot be run: {error}") from error
        if devices[0].type == "cuda":
            torch.cuda.empty_cache()  # this process stays while its workers need the memory

    def _try_out(self, point: Point, device: torch.device, folder: Path, prepared: set[str]) -> None:
        """Build an arm; compute what it shares with others, unless one of them was here before."""
        from lit_edit.cli import EditCLI  # late: the command line knows every part of the project

        cli = EditCLI(self._command(point, device, folder), run=False)
        module = cast("ContinualEditor", cli.model)
        own = ("editor", "guards", "targets", "seed", "max_change")
        shared = {name: value for name, value in cli.config["model"].as_dict().items() if name not in own}
        key = json.dumps([shared, module.editor.needs_moments], sort_keys=True, default=str)
        if key not in prepared:
            prepared.add(key)
            module.wants_spectra = True
            module.configure_model()
            module.to(device)
            module.prepare()

    def _command(self, point: Point, device: torch.device, folder: Path) -> list[str]:
        """The arm as options of ``lit-edit fit``."""
        options = {**with_seed(self.options, point.settings["about"].get("seed")), **point.settings["options"]}
        command = ["--config", str(self.base), *self._typed(options)]
        command += ["--run_dir", str(folder), "--trainer.enable_progress_bar", "false"]
        if device.type == "cpu":
            return [*command, "--trainer.accelerator", "cpu"]
        return [*command, "--trainer.accelerator", "gpu", "--trainer.devices", f"[{device.index or 0}]"]

    def measure(self, point: Point, device: torch.device, folder: Path) -> Result:
        """Run the arm, or go on with it; the result is what its run folder tells, see :func:`told`."""
        command = ["fit", *self._command(point, device, folder)]
        if (folder / "checkpoints" / "last.ckpt").exists():
            command += ["--ckpt_path", "last"]
        else:
            shutil.rmtree(folder, ignore_errors=True)  # an attempt that ended before its first checkpoint
        from lit_edit.cli import main  # late: the command line knows every part of the project

        folder.mkdir(parents=True, exist_ok=True)
        with told_to(folder / "log.txt"):
            try:
                main(command)
            except SystemExit as ended:
                # Lightning leaves the program by itself; here it is a study's.
                if isinstance(ended.__context__, KeyboardInterrupt):
                    raise KeyboardInterrupt from ended
                raise
        result = told(RunFolder.open(folder))
        if not self.keep_checkpoints:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return {**result, "about": point.settings["about"]}

    def _typed(self, options: Mapping[str, Any]) -> list[str]:
        """Options as they are typed; YAML files beside the base configuration by their full path.

        Raises:
            EditError: if a value names a YAML file that is nowhere.
        """
        words = []
        for name, value in options.items():
            if isinstance(value, str):
                beside = self.base.parent / value
                is_file = value.endswith((".yaml", ".yml"))
                if is_file and not beside.exists() and not Path(value).exists():
                    raise EditError(f"{name} names {value}, which is neither in {self.base.parent} nor in {Path.cwd()}")
                text = str(beside) if is_file and beside.exists() else value
            else:
                text = flow(value)
            words.append(f"--{name}={text}")
        return words


class _Flow(yaml.SafeDumper):
    """YAML in which every text is quoted, so that none is taken for a number."""


_Flow.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def flow(value: Any) -> str:
    """A value as it is typed for an option: YAML on one line, which has numbers that JSON lacks.

    Example:
        >>> flow({"class_path": "NSE", "init_args": {"upper_bound": float("inf"), "passes": 2}})
        '{"class_path": "NSE", "init_args": {"upper_bound": .inf, "passes": 2}}'
        >>> flow(None), flow(1e-5), flow(["1e-5"])
        ('null', '1.0e-05', '["1e-5"]')
    """
    return (
        yaml.dump(value, Dumper=_Flow, default_flow_style=True, sort_keys=False, width=float("inf"))
        .removesuffix("...\n")
        .strip()
    )


def with_seed(value: Any, seed: int | None) -> Any:
    """Options with ``$seed`` replaced by the seed; ``None`` leaves them alone.

    Example:
        >>> with_seed({"data.seed": "$seed", "model.guards": [{"init_args": {"seed": "$seed"}}]}, 3)
        {'data.seed': 3, 'model.guards': [{'init_args': {'seed': 3}}]}
    """
    if isinstance(value, Mapping):
        return {key: with_seed(part, seed) for key, part in value.items()}
    if isinstance(value, list):
        return [with_seed(part, seed) for part in value]
    return seed if value == SEED and seed is not None else value


def by_method(results: Mapping[str, Result]) -> dict[str, list[Result]]:
    """Results of the arms by method, in the order of the study."""
    found: dict[str, list[Result]] = {}
    for result in results.values():
        found.setdefault(result["about"]["method"], []).append(result)
    return found


def having(results: Mapping[str, Result], **about: Any) -> list[Result]:
    """Results of the arms of which ``about`` says all of this.

    Example:
        >>> having({"a": {"about": {"guard": "none", "seed": 0}}, "b": {"about": {"guard": "REVIVE", "seed": 0}}}, guard="none")
        [{'about': {'guard': 'none', 'seed': 0}}]
    """
    return [result for result in results.values() if about.items() <= result["about"].items()]
