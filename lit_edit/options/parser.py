"""The parser of all commands that take options of classes: one sentence for a mistake, and what was probably meant."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_edit.errors import EditError, brief, cut
from lit_edit.micro_batches import is_out_of_memory, too_little
from lit_edit.options.name_parser import NameParser

VERBS = {
    "fit": "Edit a stream of facts, batch after batch.",
    "validate": "Score the edits that a run has made so far, and the probes.",
    "test": "Score all edits of the stream, made or not, and the probes.",
    "predict": "Write down what the model answers to every edit prompt.",
}
"""The trainer's verbs, which the parser nests the options under."""

_UNKNOWN = re.compile(
    r"""(?:[Oo]ption|Key|does not accept nested key) ['"]([^'"]+)['"](?: is not (?:accepted|expected).*)?$"""
    r"|unrecognized arguments: (\S+)"
)
_NO_CLASS = re.compile(r'Parser key "([\w.]+)":.*(?:Expected a dot import path string|Unexpected import path format): (\S+)')
_TOLD = (
    (r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1"),
    (r"- Expected a path but .* either not accessible or invalid - ", ""),
    (r"Problems parsing config: ", "it is no YAML: "),
    (r"Unexpected config: ?(.*)", r"it holds no options by name, but '\1'"),
    (r"Does not validate against .* Subtypes: \[(.*)\] Errors: .* Given value: ", r"expected one of \1, got "),
    (r"Expected an? (\S+)\. Got value: ", r"expected \1, got "),
)
"""What the base class says, and how it is said here."""
_LOOKED_AT = 5000


def told_as_error(error: BaseException | None) -> EditError | None:
    """The sentence meant for the user among the errors that led to ``error``; parsers wrap what a constructor raises."""
    first = error
    while error is not None and not isinstance(error, EditError):
        if isinstance(error, MisconfigurationException):
            return EditError(error)  # Lightning's own word for a mistake of its user
        error = error.__cause__ or error.__context__
    return error or _no_room(first) or _no_memory(first)


def _no_room(error: BaseException | None) -> EditError | None:
    """A disk that takes no more is nobody's mistake in the program, whichever library was writing to it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            return EditError(f"{error.filename or 'a file of the run'} cannot be written: {error.strerror}")
        error = error.__cause__ or error.__context__
    return None


def _no_memory(error: BaseException | None) -> EditError | None:
    """What is not done in parts, a callback of the user's or Lightning's own, may run out of memory as well."""
    while error is not None:
        if is_out_of_memory(error):
            return too_little("the run", error)
        error = error.__cause__ or error.__context__
    return None


class Parser(NameParser):
    """Says what is wrong in one sentence, without the usage text of a few hundred options around it."""

    of: str | None = None
    """Name of the class whose options these are, where the parser was made for a class that another option names."""

    def add_class_arguments(self, theclass: Any, nested_key: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in the base class; remembers what class the options belong to."""
        if nested_key is None and not self.exit_on_error:
            self.of = getattr(theclass, "__name__", None)
        return super().add_class_arguments(theclass, nested_key, *args, **kwargs)

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """As in the base class.

        Raises:
            EditError: whatever is wrong with the arguments or with a file that they name.
        """
        with self._told():
            return super().parse_args(*args, **kwargs)

    def parse_object(self, *args: Any, **kwargs: Any) -> Any:
        """As in the base class; errors as in :meth:`parse_args`."""
        with self._told():
            return super().parse_object(*args, **kwargs)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, ArithmeticError, OSError, LookupError, AttributeError, RecursionError) as error:
            if not self.exit_on_error:
                raise  # for one of several types that are tried
            # The base class expects these from some values only: a path with a null byte, say, or a file that is no text.
            raise told_as_error(error) or EditError(f"the options cannot be read ({error})") from error

    def validate(self, namespace: Any, skip_unset: bool = True, *args: Any, **kwargs: Any) -> None:
        """As in the base class, which takes null for every option; here it has to be among what the option takes."""
        for group in self.groups or {}:
            if group in namespace and not isinstance(namespace[group], Namespace | dict):
                raise EditError(f"--{group} is {brief(namespace[group])}; it has options of its own, given by their names")
        super().validate(namespace, skip_unset, *args, **kwargs)
        missing = any(action.required and namespace.get(action.dest) is None for action in self._actions)
        if skip_unset and not missing:  # what is missing altogether is named by the first look
            super().validate(namespace, False, True)
        for name, value in namespace.items():
            if isinstance(value, int) and value.bit_length() > 1024:  # it could not even be written down in decimals
                raise EditError(f"{self._named(name)} is a number of {value.bit_length()} bits; nothing is that large")

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in the base class; errors name the file."""
        try:
            return super().parse_path(path, *args, **kwargs)
        except UnicodeDecodeError as error:
            raise EditError(f"{path} is no text in UTF-8 (byte {error.start}), so it is no configuration") from None
        except EditError as error:
            raise EditError(f"{path}: {error}") from None

    def error(self, message: str = "", ex: Exception | None = None) -> Any:
        """Leave with exit code 2."""
        found = told_as_error(ex)
        raise EditError(found or self._sentence(re.sub(r"\s+", " ", str(message or ex)).strip()))

    def _sentence(self, text: str) -> str:
        """What the base class would print, in the words and under the names that the user knows."""
        text = cut(text, _LOOKED_AT)  # it may quote a whole file
        kind, unknown = _NO_CLASS.match(text), _UNKNOWN.search(text)
        if kind:
            meant = nearest(kind[2], _classes())
            hint = "give a class of lit_edit or an import path like my_package.MyClass"
            text = f"{self._named(kind[1])} names no known class: {kind[2]}; " + (f"did you mean {meant}?" if meant else hint)
        elif unknown:
            name = (unknown[1] or unknown[2]).lstrip("-").partition("=")[0]
            meant = nearest(name, self._options())
            what = f"{self.of} has no option {name}" if self.of else f"there is no option {self._named(name)}"
            text = what + (f"; did you mean {meant if self.of else self._named(meant)}?" if meant else "")
        else:
            text = re.sub(r'Parser key "([\w.]+)":', lambda key: f"{self._named(key[1])}:", text)
            for said, better in _TOLD:
                text = re.sub(said, better, text)
        # Options as they are typed, not as the parser nests them.
        return re.sub(rf"\b({'|'.join(VERBS)})\.(?=model|data|trainer)", "--", text)

    def _named(self, option: str) -> str:
        """An option as messages call it: as it is typed, or as one of a class that is chosen by another option."""
        return f"{option} of {self.of}" if self.of else "--" + re.sub(rf"^({'|'.join(VERBS)})\.", "", option)

    def _options(self) -> list[str]:
        """Every option by its name with dots, those of all verbs."""
        verbs = getattr(getattr(self, "_subcommands_action", None), "choices", None) or {}
        return list(dict.fromkeys(action.dest for parser in (self, *verbs.values()) for action in parser._actions))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known option that was probably meant: a similar name at the same place, the same name elsewhere, a similar whole.

    >>> nearest("model.targets.stps", ["model.targets.steps", "data.batch_size"])
    'model.targets.steps'
    >>> nearest("batch_sizes", ["data.batch_size"]), nearest("colour", ["model.layers"])
    ('data.batch_size', None)
    """
    known = list(known)
    place, _, last = name.rpartition(".")
    beside = {option.rpartition(".")[2]: option for option in known if option.rpartition(".")[0] == place}
    if found := get_close_matches(last, beside, 1):
        return beside[found[0]]
    elsewhere = {option.rpartition(".")[2]: option for option in known}
    if found := get_close_matches(last, elsewhere, 1, 0.85):
        return elsewhere[found[0]]
    return next(iter(get_close_matches(name, known, 1, 0.85)), None)


def _classes() -> list[str]:
    """Names of the project's classes that options may name."""
    from lit_edit import callbacks, data, editors, guards, probes  # late: some of them use the parser

    return [name for package in (callbacks, data, editors, guards, probes) for name in package.__all__]


class SentenceCLI(LightningCLI):
    """A command line with the project's parser."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's parser with one-sentence errors."""
        kwargs.setdefault("dump_header", ["lit_edit"])
        parser = Parser(**kwargs)
        parser.add_argument("-c", "--config", action="config", help="YAML file or name (see lit-edit configs); later ones win")
        return parser

    def _set_seed(self) -> None:
        """Refuse a seed that numpy would not take."""
        seed = self._get(self.config, "seed_everything")
        if isinstance(seed, int) and not 0 <= seed < 2**32:
            raise EditError(f"--seed_everything is {brief(seed)}; it is a number from 0 to {2**32 - 1}")
        super()._set_seed()

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """As in the base class.

        Raises:
            EditError: if the trainer refuses its options, alone or beside each other, or lacks a package for them.
        """
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, ImportError) as error:
            raise EditError(f"the options --trainer cannot be used: {error}") from error
