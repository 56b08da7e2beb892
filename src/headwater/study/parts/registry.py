"""The parts by name, in the order in which a study runs them. A part's module is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from headwater.study.parts.part import Part
from headwater.types import UsageError

_HOMES = {
    "lint": "Lint", "tables": "Tables", "ablation": "Ablation", "solver": "Solver", "epochs": "Epochs", "anti": "Anti",
    "truth": "Retraining", "gaps": "Gaps", "behaviour": "Behaviour",
}  # fmt: skip


def names() -> list[str]:
    return list(_HOMES)


def get(name: str, **options: Any) -> Part:
    """Raises UsageError for a name that there is not."""
    if name not in _HOMES:
        raise UsageError(f"there is no part {name!r}; there are: {', '.join(_HOMES)}")
    return getattr(import_module(f"headwater.study.parts.{name}"), _HOMES[name])(**options)


def table() -> Sequence[dict[str, Any]]:
    """What each part measures, and the cells that it leaves: their metrics, and their methods where these are chosen from all there are."""
    return [_line(get(name)) for name in names()]


def _line(part: Part) -> dict[str, Any]:
    methods = list(dict.fromkeys(str(setting) for setting in getattr(part, "settings", ())))
    return {"name": part.name, "summary": part.summary, "metrics": list(part.metrics), "methods": methods}
