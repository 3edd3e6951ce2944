"""Docstrings are written with Sphinx roles; here they become Markdown: formulas, and links where there is a page to go to."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?P<role>math|class|func|meth|mod|data|attr|exc):`(?P<text>[^`]+)`", re.DOTALL)
_BLOCK = re.compile(
    r"^(?P<indent>[ ]*)\.\. math::[ ]*(?P<same>[^\n]*)\n(?P<body>(?:\n|(?P=indent)[ ]+[^\n]*\n?)*)", re.MULTILINE
)
_EXAMPLE = re.compile(r"^(?P<indent>[ ]*)>>> .*(?:\n[ ]*\S.*)*", re.MULTILINE)


class Roles(Extension):
    """Rewrites the docstring of everything that is documented."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """See :func:`markdown`."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value, obj.path)


def markdown(text: str, where: str) -> str:
    """A docstring with its roles as Markdown.

    Args:
        text: the docstring.
        where: dotted path of what it belongs to, against which ``:meth:`setup``` is read.
    """
    text = _EXAMPLE.sub(_example, _BLOCK.sub(_block, text))
    return _ROLE.sub(lambda found: _role(found["role"], " ".join(found["text"].split()), where), text)


def _block(found: re.Match[str]) -> str:
    indent, body = found["indent"], textwrap.dedent(found["body"]).strip()
    formulas = [part for part in (found["same"].strip(), *re.split(r"\n\s*\n", body)) if part]
    drawn = "".join(f"{indent}$$\n{textwrap.indent(formula, indent)}\n{indent}$$\n\n" for formula in formulas)
    return f"\n{drawn}"


def _example(found: re.Match[str]) -> str:
    return f"{found['indent']}```pycon\n{found[0]}\n{found['indent']}```"


def _role(role: str, text: str, where: str) -> str:
    if role == "math":
        return f"${text}$"
    short = text.startswith("~")
    path = text.lstrip("~.")
    name = path.rpartition(".")[2] if short else path
    target = path if path.startswith("lit_edit.") else f"{where.rpartition('.')[0]}.{path}"
    return f'<autoref optional identifier="{target}"><code>{name}</code></autoref>'
