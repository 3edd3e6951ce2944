"""YAML for the tests of this folder: what is hard on readers of it, and small changes of what is right."""

from __future__ import annotations

from typing import Any

import yaml
from damage import Path, changed, places
from hypothesis import strategies as st

ODD = [
    b"", b" ", b"# nothing", b"hello", b"3", b"[]", b"{}", b"null", b"--- {}\n--- {}", b"model: [", b"\t", b"a: b: c", b"%YAML 9", b"\xff\xfe\x00",
    b"\x00", b"\x1b", b"\xef\xbb\xbfmodel: {}", b"PK\x03\x04", b"!!int many", b"data: {limit: !!int many}", b"data: {limit: !!bool many}",
    b"data: {path: !!binary x}", b"data: {path: !!timestamp 3}", b"data: {path: 2001-99-99}", b"data: {limit: 0b_}", b"0x" + b"f" * 5000,
    b"data: {limit: 0x" + b"f" * 5000 + b"}", b"data: {limit: 1:99}", b"data: !!set {a, b}", b"data: !!python/name:os.system x", b"model: &a {editor: *a}", b"data: &a [*a]", b"&a [*a]",
    b"? [a, b]\n: c", b"? {a: b}\n: c", b"1: 2", b"null: 2", b"<<: 3", b"<<: [{model: 3}]", b"model: *none", b"model: 3\nmodel: 4",
    b"data: " + b"[" * 300 + b"]" * 300, b"[" * 5000, b"{a: " * 5000, b"- " * 3000, b"a:\n" + b"".join(b" " * n + b"a:\n" for n in range(1, 400)),
    b"x: [&a [1,1,1,1,1,1,1,1], &b [*a,*a,*a,*a,*a,*a,*a], &c [*b,*b,*b,*b,*b,*b], &d [*c,*c,*c,*c,*c,*c,*c], &e [*d,*d,*d,*d,*d,*d], [*e,*e,*e,*e,*e,*e]]",
]  # fmt: skip
"""Documents that something is known to trip over."""


def as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


@st.composite
def milder(draw: st.DrawFn, whole: Any) -> Any:
    """Another number where there is one, mostly a right one."""
    numbers = [at for at in places(whole) if isinstance(value_at(whole, at), int | float)]
    if not numbers:
        return whole
    new = draw(st.sampled_from([0, 1, 2, 0.5, 1.5, -1, True, "1", 1e-3]))
    return changed(whole, draw(st.sampled_from(numbers)), lambda _: new)


def value_at(value: Any, at: Path) -> Any:
    for step in at:
        value = value[step]
    return value
