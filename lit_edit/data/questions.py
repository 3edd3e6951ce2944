"""Portability and locality as edit sets spell them: questions of several kinds, each with its accepted answers.

All functions give :data:`Question` triples; their errors are ``MalformedRecord`` and name the field as the file spells it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lit_edit.data.reader import as_text, kind, lookup
from lit_edit.errors import MalformedRecord, brief

Question = tuple[str, str, tuple[str, ...]]
"""Kind in snake case, complete prompt, accepted answers (the first is the canonical one)."""

_PROMPT = "a complete prompt"
_ANSWER = "an accepted answer"


def snake_case(name: str) -> str:
    """The name of a kind as metrics spell it.

    >>> snake_case("Relation_Specificity"), snake_case("One Hop"), snake_case("LogicalGeneralization"), snake_case("multi-hop")
    ('relation_specificity', 'one_hop', 'logical_generalization', 'multi_hop')
    """
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    # Lower case first: it may add what is no letter (the Turkish dotted I becomes two characters).
    return re.sub(r"[\W_]+", "_", apart.lower()).strip("_")


def canonical(questions: Iterable[Question]) -> tuple[tuple[str, str, str], ...]:
    """Each question with its first answer alone, as ``EditRequest.locality`` holds it."""
    return tuple((kind, prompt, answers[0]) for kind, prompt, answers in questions)


def blocks(row: Mapping[str, Any], path: str) -> tuple[Question, ...]:
    """KnowEdit's form: ``{"Reasoning": [{"prompt": ..., "ground_truth": [[alias, ...], ...]}], ...}``.

    Answers come in groups of aliases, all of which are accepted; blank and repeated ones are dropped. A question that then
    has no answer cannot be judged and is left out, as the released loader does, rather than the whole edit. Absent or null
    kinds and fields (Parquet fills tables with nulls) are none.

    Raises:
        MalformedRecord: if the field is no object of kinds, a kind is no list of objects, or a text is none.
    """
    value = lookup(row, path)
    if value in (None, "", []):
        return ()
    if not isinstance(value, Mapping):
        raise MalformedRecord(path, f"holds {kind(value)}; it is an object with a list of questions for each kind")
    found: list[Question] = []
    for name, items in value.items():
        here = f"{path}.{name}"
        # The questions of a kind may also be one object with a list of prompts and a list of answers.
        listed = [items] if isinstance(items, Mapping) else items
        if listed is None:
            continue
        if not isinstance(listed, (list, tuple)):
            raise MalformedRecord(here, f"holds {kind(items)}; it is a list of objects with 'prompt' and 'ground_truth'")
        for i, item in enumerate(listed):
            at = here if listed is not items else f"{here}[{i}]"
            if not isinstance(item, Mapping):
                raise MalformedRecord(at, f"holds {kind(item)}; it is an object with 'prompt' and 'ground_truth'")
            found += _asked(item, "prompt", "ground_truth", _kind(name, here), f"{at}.")
    return tuple(found)


def pair(row: Mapping[str, Any], prompt: str, truth: str, name: str) -> tuple[Question, ...]:
    """Two fields side by side, ``prompt`` and ``truth``: a text each, or two lists of equal length.

    Args:
        row: the record.
        prompt: name of the field with the prompt or prompts; absent, null or empty is none.
        truth: name of the field with the answers; in place of a text there may be a list of aliases.
        name: the kind, since this form names none.

    Raises:
        MalformedRecord: if the lists do not match, or there is a prompt without an answer.
    """
    if row.get(prompt) in (None, "", []):
        return ()
    found = tuple(_asked(row, prompt, truth, name, ""))
    count = len(row[prompt]) if isinstance(row[prompt], (list, tuple)) else 1
    if len(found) < count:
        raise MalformedRecord(truth, f"has {len(found)} answers for the {count} prompts in {prompt}; give one for each")
    return found


def triples(row: Mapping[str, Any], path: str) -> tuple[Question, ...]:
    """The plain form: a list of ``[kind, prompt, [answer, ...]]`` or of objects with ``kind``, ``prompt``, ``answers``.

    The objects are for Parquet, whose lists cannot mix texts and lists. One answer may be a text by itself.

    Raises:
        MalformedRecord: if it is anything else, a text is empty, or there is no answer.
    """
    value = lookup(row, path)
    if value in (None, ""):
        return ()
    form = "[kind, prompt, [answers]]"
    if not isinstance(value, (list, tuple)):
        raise MalformedRecord(path, f"holds {brief(value)}; it is a list of {form}")
    found: list[Question] = []
    for i, item in enumerate(value):
        if isinstance(item, Mapping):
            answer = "answer" if item.get("answers") is None and "answer" in item else "answers"
            steps = (".kind", ".prompt", f".{answer}")
            parts = [item.get(step[1:]) for step in steps]
        elif isinstance(item, (list, tuple)) and len(item) == 3:
            steps, parts = ("[0]", "[1]", "[2]"), list(item)
        else:
            raise MalformedRecord(f"{path}[{i}]", f"holds {brief(item)}; it is {form}")
        of_kind, prompt, answers = (f"{path}[{i}]{step}" for step in steps)
        accepted = _distinct(as_text(text, at, _ANSWER) for text, at in _leaves(parts[2], answers))
        if not accepted:
            raise MalformedRecord(answers, f"holds {brief(parts[2])}; it is a list of at least one accepted answer")
        found.append((_kind(parts[0], of_kind), as_text(parts[1], prompt, _PROMPT), accepted))
    return tuple(found)


def answers(value: Any, path: str) -> tuple[str, ...]:
    """The texts of a text or of lists in lists, in order, each once, without blank ones; null is none.

    >>> answers([["Syria", "SYR"], ["", "Syria"]], "ground_truth")
    ('Syria', 'SYR')

    Raises:
        MalformedRecord: if there is anything but texts in it.
    """
    leaves = [] if value is None else list(_leaves(value, path))
    return _distinct(as_text(text, at, _ANSWER) for text, at in leaves if not isinstance(text, str) or text.strip())


def _asked(item: Mapping[str, Any], prompt: str, truth: str, name: str, where: str) -> Iterator[Question]:
    """The questions of an object: one, or as many as its list of prompts."""
    asked, told = item.get(prompt), item.get(truth)
    if not isinstance(asked, (list, tuple)):
        if asked is None:
            raise MalformedRecord(f"{where}{prompt}", f"is missing; it is {_PROMPT}")
        question = as_text(asked, f"{where}{prompt}", _PROMPT)
        if accepted := answers(told, f"{where}{truth}"):
            yield name, question, accepted
        return
    if not isinstance(told, (list, tuple)) or len(told) != len(asked):
        count = len(told) if isinstance(told, (list, tuple)) else 0 if told is None else 1
        raise MalformedRecord(
            f"{where}{truth}", f"has {count} answers for the {len(asked)} prompts in {where}{prompt}; give one for each"
        )
    for i, (text, group) in enumerate(zip(asked, told, strict=True)):
        question = as_text(text, f"{where}{prompt}[{i}]", _PROMPT)
        if accepted := answers(group, f"{where}{truth}[{i}]"):
            yield name, question, accepted


def _kind(value: Any, path: str) -> str:
    name = snake_case(as_text(value, path, "the kind of the question"))
    if not name:
        raise MalformedRecord(path, f"holds {brief(value)}, which has no letter in it; it is the kind of the question")
    return name


def _leaves(value: Any, path: str) -> Iterator[tuple[Any, str]]:
    """What is no list in lists in lists, with its path; without recursion, files may nest as they like."""
    left = [(value, path)]
    while left:
        here, at = left.pop()
        if isinstance(here, (list, tuple)):
            left += [(item, f"{at}[{i}]") for i, item in reversed(list(enumerate(here)))]
        else:
            yield here, at


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
