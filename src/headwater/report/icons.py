"""Status marks that differ in shape as well as in colour."""

from __future__ import annotations

from headwater.report.markup import Markup, el, join
from headwater.types import FindingStatus

SHAPES: dict[str, tuple[tuple[str, dict[str, str]], ...]] = {
    "ok": (("circle", {"cx": "8", "cy": "8", "r": "7"}), ("path", {"d": "M4.6 8.3l2.3 2.3 4.5-4.9"})),
    "warn": (("path", {"d": "M8 1.4l7 13H1z"}), ("path", {"d": "M8 6v4M8 12v.4"})),
    "fail": (("path", {"d": "M5 1h6l4 4v6l-4 4H5l-4-4V5z"}), ("path", {"d": "M5.4 5.4l5.2 5.2M10.6 5.4l-5.2 5.2"})),
    "unknown": (
        ("circle", {"cx": "8", "cy": "8", "r": "7", "stroke-dasharray": "2.6 1.8"}),
        ("path", {"d": "M6 6.3c.2-2.7 4.2-2.4 4 .1-.1 1.4-2 1.5-2 3M8 11.6v.4"}),
    ),
}


def status(value: FindingStatus, *, word: str | None = None) -> Markup:
    """The mark and the word."""
    shapes = [el(tag, **attributes) for tag, attributes in SHAPES[value]]
    mark = el("svg", *shapes, viewBox="0 0 16 16", width="16", height="16", aria_hidden="true", focusable="false")
    return el("span", join(mark, " ", el("span", word or value)), class_=f"status status-{value}")
