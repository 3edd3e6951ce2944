"""Configurations and models that come with the project: found by name, from any folder.

In a checkout they lie beside the package (``configs/``, ``checkpoints/world-*``), in an installed wheel inside it. A name is
the path below ``configs/`` without its ending, ``models/llama3-8b``; what exists as a file always wins over a name.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from lit_edit.errors import EditError

_NAME = re.compile(r"[\w.+-]+(/[\w.+-]+)*")
"""What a name, or a relative path, looks like: neither YAML text nor an absolute path."""
_WHOLE = ("config", "c", "base")
"""Options that always take a file."""
_PARTS = ("editor", "guards", "probes")
"""Options that take a class or a file."""
_VERBS = ("fit", "validate", "test", "predict")
"""Keys under which a file may keep the options of one verb."""
_KEYS = {"model.editor", "model.guards", "data.probes", "probes"}
"""Where they stand in a YAML file; a key of the same name elsewhere is somebody else's."""


def _folder(kind: str) -> Path:
    package = Path(str(files("lit_edit")))
    inside = package / kind
    return inside if inside.is_dir() else package.parent / kind


def config_names() -> list[str]:
    """Names of all configurations, sorted.

    Example:
        >>> {"quickstart", "editors/memit", "guards/revive"} <= set(config_names())
        True
    """
    root = _folder("configs")
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def config_path(name: str) -> Path | None:
    """The file of a configuration that comes with the project, ``None`` if there is none of that name.

    Args:
        name: with or without ``configs/`` in front and ``.yaml`` behind.

    Example:
        >>> config_path("configs/quickstart.yaml") == config_path("quickstart"), config_path("quickstart").name
        (True, 'quickstart.yaml')
    """
    bare = _bare(name)
    return _folder("configs") / f"{bare}.yaml" if bare in config_names() else None


def model_path(name: str) -> Path | None:
    """The folder of a model that comes with the project (``world-gpt2``, ``world-llama``), ``None`` for any other name."""
    folder = _folder("checkpoints") / name
    return folder if re.fullmatch(r"world-\w+", name) and (folder / "config.json").is_file() else None


def _bare(name: str) -> str:
    return name.removeprefix("configs/").removesuffix(".yaml")


def nearest(name: str) -> list[str]:
    """At most three names that may have been meant, the likeliest first.

    Example:
        >>> nearest("quikstart"), nearest("editors/alphaedti")[0], nearest("revive")[0]
        (['quickstart'], 'editors/alphaedit', 'guards/revive')
    """
    names, last = config_names(), _bare(name).rpartition("/")[2]
    alike = [known for known in names if known.rpartition("/")[2] == last]
    close = get_close_matches(_bare(name), names, n=3, cutoff=0.7)
    ends = get_close_matches(last, {known.rpartition("/")[2] for known in names}, n=1, cutoff=0.7)
    close += [known for known in names if known.rpartition("/")[2] in ends]
    return list(dict.fromkeys([*alike, *close]))[:3]


def located(option: str, value: Any) -> Any:
    """A value of an option with a name replaced by its file; anything that is no such name comes back as it is.

    Args:
        option: as it is typed or written: ``--config``, ``--model.guards+``, ``model.editor``.
        value: of it.

    Raises:
        EditError: if the value can only be meant as a file or a name, and is neither.
    """
    kind = _kind(option)
    if kind not in (*_WHOLE, *_PARTS) or not isinstance(value, str) or not _NAME.fullmatch(value) or Path(value).is_file():
        return value
    if found := config_path(value):
        return str(found)
    # What has no slash and no ending may be a class; a class never has either.
    if kind in _WHOLE or "/" in value or value.endswith((".yaml", ".yml")):
        raise _unknown(f"{option} names", value)
    return value


def _unknown(who: str, name: str) -> EditError:
    near = nearest(name)
    hint = f"did you mean {' or '.join(near)}?" if near else "'lit-edit configs' lists the names"
    return EditError(f"{who} {name}, which is neither a file nor a configuration of lit_edit; {hint}")


def _kind(option: str) -> str:
    return option.strip("-+").rpartition(".")[2]


def with_files(arguments: Sequence[str]) -> list[str]:
    """A command line with names of configurations replaced by their files.

    Args:
        arguments: as they are typed, ``--option value`` and ``--option=value``.

    Raises:
        EditError: see :func:`located`.

    Example:
        >>> with_files(["fit", "--run_dir", "quickstart", "--model.editor=MEMIT"])
        ['fit', '--run_dir', 'quickstart', '--model.editor=MEMIT']
    """
    out: list[str] = []
    option: str | None = None
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if option is not None:
            argument = located(option, argument)
        elif equals and name.startswith("--"):
            argument = f"{name}={located(name, value)}"
        takes_one = argument.startswith("-") and not equals and _kind(argument) in (*_WHOLE, *_PARTS)
        option = argument if takes_one else None
        out.append(argument)
    return out


def loading(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """A reader of YAML in which names of fragments stand for their files: ``editor: editors/alphaedit``.

    A file beside the one that is read wins; the parser changes into its folder meanwhile.
    """

    def read(text: str) -> Any:
        return _walk(load(text))

    return read


def _walk(tree: Any, above: str = "") -> Any:
    if isinstance(tree, list):
        return [_walk(part, above) for part in tree]
    if not isinstance(tree, dict):
        return tree
    out = {}
    for key, value in tree.items():
        name = f"{above}.{key}".lstrip(".")
        is_named = name in _KEYS and isinstance(value, str)
        out[key] = located(name, value) if is_named else _walk(value, "" if key in _VERBS else str(key))
    return out


def title(text: str) -> str:
    r"""The first sentence of the comment that a configuration begins with.

    Example:
        >>> title("# REVIVE (arXiv 2601.11042): one line\n# and another. More.\n#   lit-edit fit\n- class_path: REVIVE")
        'REVIVE (arXiv 2601.11042): one line and another'
    """
    words: list[str] = []
    for line in text.splitlines():
        if not line.startswith("# ") or line.startswith("#   "):
            break
        words.append(line[2:].strip())
    return re.split(r"\.(?:\s|$)|(?<=\?)\s", " ".join(words))[0].rstrip(":")


def main(argv: Sequence[str]) -> None:
    """``lit-edit configs`` lists the names, ``lit-edit configs NAME`` prints that file, to look at or to start from.

    Args:
        argv: the command line behind ``lit-edit configs``; the name of a folder, ``models``, lists what is in it.

    Raises:
        EditError: if there is no configuration of that name.
    """
    if argv and argv[0] in ("-h", "--help"):
        print(
            "usage: lit-edit configs [NAME]\n\nWithout a name, the configurations that come with lit_edit; with one, its text"
        )
        return
    wanted = argv[0].rstrip("/") if argv else ""
    if wanted and (path := config_path(wanted)):
        _tell(path.read_text(encoding="utf-8"))
        return
    names = [name for name in config_names() if not wanted or name.startswith(f"{wanted}/")]
    if not names:
        raise _unknown("lit-edit configs was asked for", wanted)
    width = max(map(len, names))
    texts = {name: (_folder("configs") / f"{name}.yaml").read_text(encoding="utf-8") for name in names}
    _tell("".join(f"{name:{width}}  {title(text)}\n" for name, text in texts.items()))


def _tell(text: str) -> None:
    """Print; a reader like ``head`` may close the pipe once it has seen enough."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what the interpreter flushes at its end
