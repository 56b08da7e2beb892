"""Progress on long work: a bar on a terminal, a plain line now and then elsewhere, nothing when asked to be quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

PLAIN_EVERY_S = 10.0
_quiet = False


@contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """Inside, `track` and `say` print nothing (used for `--quiet`, and where a caller draws its own)."""
    global _quiet
    before, _quiet = _quiet, on
    try:
        yield
    finally:
        _quiet = before


def say(message: str) -> None:
    """One line to standard error: standard output belongs to results."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


def track(items: Iterable[T], *, total: int | None, description: str) -> Iterator[T]:
    """Yield the items and show how far the work is, on standard error."""
    if _quiet:
        yield from items
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as rich_track

        yield from rich_track(items, total=total, description=description, console=Console(stderr=True), transient=True)
    else:
        yield from _plain(items, total=total, description=description)


def _plain(items: Iterable[T], *, total: int | None, description: str) -> Iterator[T]:
    start = last = time.monotonic()
    count = 0
    for count, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last > PLAIN_EVERY_S:
            last = time.monotonic()
            left = f", about {(last - start) / count * (total - count):.0f} s left" if total else ""
            say(f"{description}: {count}{f' of {total}' if total else ''}, {last - start:.0f} s{left}")
    if count and time.monotonic() - start > PLAIN_EVERY_S:
        say(f"{description}: {count} done in {time.monotonic() - start:.0f} s")
