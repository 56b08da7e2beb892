"""A few lines that build HTML: every child that is not Markup is escaped, so forgetting to escape is not possible."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from headwater.report.text import code_point, legible, pieces


class Markup(str):
    """HTML that was built here. Only `el`, `join` and `text` make it."""

    __slots__ = ()


_VOID = {"br", "col", "hr", "meta"}


def el(tag: str, *children: object, **attributes: object) -> Markup:
    """`<tag attributes>children</tag>`. `class_` is class, `a_b` is a-b; None and False are left out, True is bare."""
    pairs = "".join(_attribute(name, value) for name, value in attributes.items() if value is not None and value is not False)
    return Markup(f"<{tag}{pairs}>") if tag in _VOID and not children else Markup(f"<{tag}{pairs}>{join(*children)}</{tag}>")


def join(*children: object) -> Markup:
    return Markup("".join(child if isinstance(child, Markup) else text(str(child)) for child in children if child is not None))


def text(value: str) -> Markup:
    """Escaped text; a hidden character becomes a visible mark."""
    return Markup("".join(_mark(piece) if hidden else escape(piece) for piece, hidden in pieces(value)))


def foreign(value: str) -> Markup:
    """Text from the data: escaped, and isolated so that its writing direction ends where it ends."""
    return el("bdi", value, dir="auto")


def json_island(value: Any) -> Markup:
    """JSON for `<script type="application/json">`: no character in it can end the element or start a comment.

    `ensure_ascii` also covers U+2028, U+2029, NUL and lone surrogates; NaN is refused (schema.py made it null).
    """
    encoded = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(encoded.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _mark(character: str) -> str:
    return f'<span class="hidden-char">{code_point(character)}</span>'


def _attribute(name: str, value: object) -> str:
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(legible(str(value)))}"'
