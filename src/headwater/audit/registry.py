"""Every check, by name. A third party's needs no line here: `register` takes its class."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from headwater.audit.check import Check
from headwater.types import UsageError

AnyCheck = TypeVar("AnyCheck", bound=type[Any])

_HOMES = {
    "numerics": "headwater.audit.numerics:Numerics",
    "coverage": "headwater.audit.coverage:Coverage",
    "duplicates": "headwater.audit.duplicates:Duplicates",
    "repetition": "headwater.audit.repetition:Repetition",
    "identity": "headwater.audit.identity:Identity",
    "sketch": "headwater.audit.sketch:Sketch",
    "hubs": "headwater.audit.hubs:Hubs",
    "strength": "headwater.audit.strength:Strength",
    "artefacts": "headwater.audit.artefacts:Artefacts",
    "controls": "headwater.audit.controls:Controls",
    "patch": "headwater.audit.patch:Patch",
    "convergence": "headwater.audit.convergence:Convergence",
    "solver": "headwater.audit.solver:Solver",
    "gaps": "headwater.audit.gaps:Gaps",
    "displacement": "headwater.audit.displacement:Displacement",
    "removal": "headwater.audit.removal:Removal",
}

_registered: dict[str, Callable[..., Any]] = {}


def register(check_class: AnyCheck) -> AnyCheck:
    """Make a check known under its `name`; usable as a class decorator."""
    if check_class.name in _HOMES or check_class.name in _registered:
        raise UsageError(f"a check named {check_class.name!r} is there already: choose another name")
    _registered[check_class.name] = check_class
    return check_class


def names() -> list[str]:
    return [*_HOMES, *_registered]


def get(name: str, **options: Any) -> Check:
    """The check of that name. Raises UsageError on a name or an option that there is not."""
    try:
        return _find(name)(**options)
    except TypeError as error:
        raise UsageError(f"{name}: {error}") from None


def table() -> list[dict[str, Any]]:
    """What `headwater audit --list` prints: name, needs, summary, reference. A check that cannot be imported says so in its summary."""
    return [_line(name) for name in names()]


def _line(name: str) -> dict[str, Any]:
    try:
        check = _find(name)
    except (ImportError, AttributeError) as error:
        return {"name": name, "needs": [], "summary": f"cannot be loaded ({type(error).__name__}: {error})", "reference": ""}
    texts = {key: getattr(check, key, "") for key in ("summary", "reference")}
    return {"name": name, "needs": sorted(getattr(check, "needs", ())), **texts}


def _find(name: str) -> Callable[..., Any]:
    if name in _registered:
        return _registered[name]
    if name not in _HOMES:
        close = difflib.get_close_matches(name, names(), n=3)
        meant = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(names())}"
        raise UsageError(f"there is no check {name!r}: {meant}")
    module, _, class_name = _HOMES[name].partition(":")
    return getattr(import_module(module), class_name)
