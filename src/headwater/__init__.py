"""Headwater: find the training examples behind a language model's output, and say whether that answer can be believed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headwater.api import Run, Trace, evaluate, index, load, trace
    from headwater.auditing import audit, check
    from headwater.model.session import Session, load_session
    from headwater.training.callback import HeadwaterCallback, RowIdCollator, with_row_ids

__all__ = [
    "HeadwaterCallback",
    "RowIdCollator",
    "Run",
    "Session",
    "Trace",
    "audit",
    "check",
    "evaluate",
    "index",
    "load",
    "load_session",
    "trace",
    "with_row_ids",
]

_HOMES = {
    "HeadwaterCallback": "headwater.training.callback",
    "RowIdCollator": "headwater.training.callback",
    "Run": "headwater.api",
    "Session": "headwater.model.session",
    "Trace": "headwater.api",
    "audit": "headwater.auditing",
    "check": "headwater.auditing",
    "evaluate": "headwater.api",
    "index": "headwater.api",
    "load": "headwater.api",
    "load_session": "headwater.model.session",
    "trace": "headwater.api",
    "with_row_ids": "headwater.training.callback",
}


def __getattr__(name: str) -> Any:
    """Public names load what they need when they are first used, so that `import headwater` and `--help` cost nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'headwater' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
