"""Elements of the page: built as a tree, so that a text stays a text whatever it holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from xml.etree.ElementTree import Element

Child = str | Element | None
"""What stands in an element: a text, an element, or nothing."""

_VOID = ("meta",)
_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    r"""The text with a replacement mark for what no page can hold: control characters and halves of surrogate pairs.

    Example:
        >>> clean("one line\n\x1b[31mred")
        'one line\n�[31mred'
    """
    return _UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", text)


def node(tag: str, *children: Child, **attributes: str | float | None) -> Element:
    """An element. Texts and attribute values are escaped when the page is written; there is no way around that.

    Args:
        tag: its name, always one that the program chose.
        *children: what it holds.
        **attributes: by name; a trailing underscore is dropped (``class_``), other underscores become hyphens, and ``None``
            leaves an attribute out.

    Example:
        >>> write(node("p", "1 < 2 & ", node("b", "so"), " on", class_='"x"'))
        '<p class="&quot;x&quot;">1 &lt; 2 &amp; <b>so</b> on</p>'
    """
    made = Element(tag, {name.rstrip("_").replace("_", "-"): _value(v) for name, v in attributes.items() if v is not None})
    return fill(made, children)


def fill(parent: Element, children: Iterable[Child]) -> Element:
    """Put more into an element, and return it."""
    for child in children:
        if child is None:
            continue
        if not isinstance(child, str):
            parent.append(child)
        elif len(parent):
            parent[-1].tail = (parent[-1].tail or "") + clean(child)
        else:
            parent.text = (parent.text or "") + clean(child)
    return parent


def write(element: Element) -> str:
    """The element as HTML.

    Not the library's own writer, which leaves ``<`` in attributes as it is: browsers read that right, other tools may not.
    """
    attributes = "".join(f' {name}="{escape(value)}"' for name, value in element.attrib.items())
    text = element.text or ""
    inside = [text if element.tag == "style" else escape(text, quote=False)]  # a style sheet knows no escapes
    for child in element:
        inside += [write(child), escape(child.tail or "", quote=False)]
    end = "" if element.tag in _VOID else f"</{element.tag}>"
    return f"<{element.tag}{attributes}>{''.join(inside)}{end}"


def _value(value: str | float) -> str:
    return clean(value) if isinstance(value, str) else f"{value:.6g}"


# ---------------------------------------------------------------------------------------------------- what pages are made of


def table(caption: str, head: Sequence[Child], rows: Iterable[Sequence[Child]], numeric: Iterable[int] = ()) -> Element:
    """A table that scrolls in a container of its own where the window is too narrow for it.

    Args:
        caption: what it shows.
        head: titles of the columns.
        rows: cells; the first one of a row is its header.
        numeric: columns of numbers, set to the right.
    """
    right = set(numeric)

    def kind(at: int) -> str | None:
        return "number" if at in right else None

    top = node("tr", *(node("th", cell, scope="col", class_=kind(at)) for at, cell in enumerate(head)))
    body = node("tbody")
    for first, *rest in rows:
        cells = [node("td", cell, class_=kind(at)) for at, cell in enumerate(rest, start=1)]
        body.append(node("tr", node("th", first, scope="row"), *cells))
    made = node("table", node("caption", caption), node("thead", top), body)
    return node("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption)


def details(summary: str, *children: Child, opened: bool = False) -> Element:
    """Something to unfold."""
    return node("details", node("summary", summary), *children, open="open" if opened else None)


def section(title: str, anchor: str, *children: Child) -> Element:
    """A section with its heading."""
    return node("section", node("h2", title), *children, id=anchor)


def note(text: str) -> Element:
    """A remark in small print."""
    return node("p", text, class_="note")
