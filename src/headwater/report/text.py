"""Training text made legible: what cannot be seen, or moves what can, is shown as its code point."""

from __future__ import annotations

import re

# Controls (but tab and newline), soft hyphen, bidirectional and zero-width controls, invisible operators, the byte-order
# mark, annotation anchors, lone surrogates, and the tag characters that hide prompts in text. The two joiners stay: Persian,
# Hindi and emoji are written with them. This table also goes to the page's script, so there is one owner.
HIDDEN: tuple[tuple[int, int], ...] = (
    (0x00, 0x08),
    (0x0B, 0x1F),
    (0x7F, 0x9F),
    (0xAD, 0xAD),
    (0x61C, 0x61C),
    (0x180E, 0x180E),
    (0x200B, 0x200B),
    (0x200E, 0x200F),
    (0x2028, 0x202E),
    (0x2060, 0x206F),
    (0xD800, 0xDFFF),
    (0xFEFF, 0xFEFF),
    (0xFFF9, 0xFFFB),
    (0xE0000, 0xE007F),
)
_HIDDEN = re.compile("[" + "".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in HIDDEN) + "]")


def code_point(character: str) -> str:
    """The name of a character by number: U+202E."""
    return f"U+{ord(character):04X}"


def pieces(text: str) -> list[tuple[str, bool]]:
    """(piece, is it one hidden character) in order. A carriage return before a newline is only a line ending."""
    out, start = [], 0
    text = text.replace("\r\n", "\n")
    for match in _HIDDEN.finditer(text):
        out += [(text[start : match.start()], False), (match.group(), True)]
        start = match.end()
    return [piece for piece in [*out, (text[start:], False)] if piece[0]]


def legible(text: str) -> str:
    """Plain text in which every hidden character stands as [U+....]: safe to print in a terminal."""
    return "".join(f"[{code_point(piece)}]" if hidden else piece for piece, hidden in pieces(text))


def excerpt(text: str, length: int) -> str:
    """The first `length` characters on one line, with an ellipsis where something was left out."""
    line = " ".join(text[: 4 * length].split())
    return line if len(line) <= length and len(text) <= 4 * length else line[: length - 1].rstrip() + "…"
