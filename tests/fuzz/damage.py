"""Strategies for rows that were valid once, and for files that hold them."""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

Path = tuple[str | int, ...]

ODD = ["", " ", "{}", "{} {}", "{", "Ann", "\x00", "\ud800", "\udce9", "\u2028", "\r\n", "\x1b[31m", "\u202e", "ﷺ", "e\u0301", "İ", "😀",
       "null", "NaN", "1984", '"', "\\", ",", "a.b[0]", "#", "<eos>", "٣", "²", "--1", "@long:70000", "@digits:5000"]  # fmt: skip
"""Texts that something is known to trip over; the marks become what JSON of Python's own cannot write."""
texts = st.one_of(st.sampled_from(ODD), st.text(max_size=12), st.text(st.characters(), max_size=4))
numbers = st.one_of(
    st.sampled_from([0, -1, 2**31, 2**63, 10**400, float("nan"), float("inf"), -0.0, 1e-320, True]), st.integers(), st.floats()
)
deep = st.one_of(st.sampled_from([20, 300, 100_000]), st.integers(700, 990)).map(lambda levels: f"@deep:{levels}")
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts, deep),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)


def written(value: Any) -> str:
    """JSON with what Python's own writer refuses: numbers of any length, nesting of any depth."""
    text = json.dumps(value)
    text = re.sub(r'"@deep:(\d+)"', lambda mark: "[" * int(mark[1]) + "]" * int(mark[1]), text)
    text = re.sub(r'"@digits:(\d+)"', lambda mark: "9" * int(mark[1]), text)
    return lengthened(text)


def lengthened(text: str) -> str:
    """The text as long as its marks say."""
    return re.sub(r"@long:(\d+)", lambda mark: "long " * (int(mark[1]) // 5), text)


def places(value: Any, at: Path = ()) -> Iterator[Path]:
    """Every place in a nested value, the whole of it first."""
    yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield from places(part, (*at, key))


def changed(value: Any, at: Path, change: Callable[[Any], Any]) -> Any:
    """A copy with something else at a place."""
    if not at:
        return change(copy.deepcopy(value))
    made = copy.copy(value)
    made[at[0]] = changed(value[at[0]], at[1:], change)
    return made


@st.composite
def damaged(draw: st.DrawFn, value: Any, times: int = 3) -> Any:
    """A nested value with a few things wrong in it."""
    for _ in range(draw(st.integers(1, times))):
        at = draw(st.sampled_from(list(places(value))))
        value = changed(
            value, at, draw(st.sampled_from([_other, _without, _with, _renamed, _twice, _written_over, _wrapped]))(draw)
        )
    return value


def _other(draw: st.DrawFn) -> Callable[[Any], Any]:
    new = draw(junk)
    return lambda _: new


def _without(draw: st.DrawFn) -> Callable[[Any], Any]:
    which = draw(st.integers(0, 20))

    def change(value: Any) -> Any:
        if isinstance(value, dict) and value:
            value.pop(list(value)[which % len(value)])
        elif isinstance(value, list) and value:
            value.pop(which % len(value))
        else:
            return None
        return value

    return change


def _with(draw: st.DrawFn) -> Callable[[Any], Any]:
    name, new = draw(texts), draw(junk)
    return lambda value: (
        {**value, name: new} if isinstance(value, dict) else [*value, new] if isinstance(value, list) else [value, new]
    )


def _renamed(draw: st.DrawFn) -> Callable[[Any], Any]:
    which, how = (
        draw(st.integers(0, 20)),
        draw(st.sampled_from([str.upper, str.title, lambda name: f" {name}", lambda name: name[1:]])),
    )

    def change(value: Any) -> Any:
        if not isinstance(value, dict) or not value:
            return value
        chosen = list(value)[which % len(value)]
        return {how(name) if name == chosen else name: part for name, part in value.items()}

    return change


def _twice(draw: st.DrawFn) -> Callable[[Any], Any]:
    return lambda value: [*value, *copy.deepcopy(value)] if isinstance(value, list) else [value, copy.deepcopy(value)]


def _written_over(draw: st.DrawFn) -> Callable[[Any], Any]:
    new, at, over = draw(texts), draw(st.integers(0, 20)), draw(st.integers(0, 2))
    return lambda value: value[:at] + new + value[at + over :] if isinstance(value, str) else new


def _wrapped(draw: st.DrawFn) -> Callable[[Any], Any]:
    name = draw(texts)
    return draw(st.sampled_from([lambda value: [value], lambda value: {name: value}, lambda value: {"str": value}]))


def json_lines(rows: list[Any]) -> bytes:
    return "".join(written(row) + "\n" for row in rows).encode("utf-8")


def json_list(rows: list[Any]) -> bytes:
    return ("[" + ",\n".join(map(written, rows)) + "]").encode("utf-8")


def table(rows: list[Any]) -> bytes:
    """The flat rows among them as CSV under all their names; what is nested becomes JSON."""
    flat = [row for row in rows if isinstance(row, dict)]
    names = list(dict.fromkeys(name for row in flat for name in row))
    content = io.StringIO()
    writer = csv.writer(content)
    writer.writerow(names)
    writer.writerows(
        [[cell if isinstance(cell := row.get(name, ""), str) else written(cell) for name in names] for row in flat]
    )
    return content.getvalue().encode("utf-8", "surrogatepass")


FORMATS: dict[str, Callable[[list[Any]], bytes]] = {
    "facts.jsonl": json_lines,
    "facts.json": json_list,
    "lines.json": json_lines,
    "facts.csv": table,
    "facts.jsonl.gz": lambda rows: gzip.compress(json_lines(rows), mtime=0),
    "facts.csv.gz": lambda rows: gzip.compress(table(rows), mtime=0),
}


@st.composite
def scarred(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes after what transfers, editors and disks do to them."""
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(content)))
        kind = draw(
            st.sampled_from(
                ["cut", "flip", "insert", "remove", "encoding", "bom", "crlf", "blank", "doubled", "zeros", "as it is"]
            )
        )
        if kind == "cut":
            content = content[:at]
        elif kind == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) + content[at + 1 :]
        elif kind == "insert":
            content = content[:at] + draw(st.binary(min_size=1, max_size=6)) + content[at:]
        elif kind == "remove":
            content = content[:at] + content[at + draw(st.integers(1, 9)) :]
        elif kind == "encoding":
            name = draw(st.sampled_from(["latin-1", "utf-16", "utf-16-le", "utf-32", "utf-7", "cp1251"]))
            content = content.decode("utf-8", "replace").encode(name, "replace")
        elif kind == "bom":
            content = b"\xef\xbb\xbf" + content
        elif kind == "crlf":
            content = content.replace(b"\n", b"\r\n")
        elif kind == "blank":
            content = content.replace(b"\n", b"\n \t\n\n")
        elif kind == "doubled":
            content = content + content
        elif kind == "zeros":
            content = content[:at] + b"\0" * draw(st.integers(1, 600)) + content[at:]
    return content
