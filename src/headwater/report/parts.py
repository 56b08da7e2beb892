"""Small pieces that the sections of the page share."""

from __future__ import annotations

from collections.abc import Sequence

from headwater.report.markup import Markup, el, foreign, join
from headwater.report.text import excerpt
from headwater.report.view import KINDS

Facts = Sequence[tuple[str, object]]


def facts(pairs: Facts) -> Markup:
    """A definition list; a fact that is not known is left out."""
    known = [(name, value) for name, value in pairs if value not in (None, "")]
    return el("dl", *(el("div", el("dt", name), el("dd", value)) for name, value in known), class_="facts")


def section(id: str, title: str, *children: object, note: str | None = None) -> Markup:
    lead = el("p", note, class_="lead") if note else None
    return el("section", el("h2", title, id=f"{id}-title"), lead, *children, id=id, aria_labelledby=f"{id}-title")


def heading(name: str, *, numeric: bool = False) -> Markup:
    content = name or el("span", "Chart", class_="visually-hidden")
    return el("th", content, scope="col", class_="number" if numeric else None)


def cut(text: str, length: int) -> Markup:
    return foreign(excerpt(text, length))


def prose(text: str) -> Markup:
    """Sentences that may quote the data; what stands between backticks is code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return foreign(text)
    return el("bdi", join(*(el("code", part) if k % 2 else part for k, part in enumerate(parts))), dir="auto")


def where(source: str, row: int) -> Markup:
    return foreign(f"{source}:{row}" if row >= 0 else source)


def kind_badge(kind: str | None, *, unless: str = "") -> Markup | None:
    """What sort of query this is; left out where the id already says it."""
    return el("span", kind, class_=f"badge kind-{kind}", title=KINDS.get(kind)) if kind and kind != unless else None
