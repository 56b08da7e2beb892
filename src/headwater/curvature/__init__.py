"""One file per curvature, found here by name: each is `fit(source)`, then `solve(state, source, b)`."""

from __future__ import annotations

import inspect
from typing import Any

from headwater.curvature.identity import Identity
from headwater.types import Curvature, UsageError

__all__ = ["Curvature", "Identity", "get", "names", "table"]

_curvatures: dict[str, type[Any]] = {curvature.name: curvature for curvature in (Identity,)}


def names() -> list[str]:
    return list(_curvatures)


def get(name: str, **options: Any) -> Curvature:
    """The curvature of that name with these options. Raises UsageError on a name or an option that there is not."""
    if name not in _curvatures:
        raise UsageError(f"there is no curvature {name!r}; there are: {', '.join(names())}")
    try:
        inspect.signature(_curvatures[name]).bind(**options)
    except TypeError as error:
        parameters = inspect.signature(_curvatures[name]).parameters.values()
        raise UsageError(f"{name}: {error}. Its options: {', '.join(f'{p.name}={p.default!r}' for p in parameters)}") from None
    return _curvatures[name](**options)


def table() -> list[dict[str, Any]]:
    """Name, what it is, cost, source, default damping: one entry a curvature."""
    return [
        {"name": name, "summary": one.summary, "cost": one.cost, "reference": one.reference, "damping": str(one.damping)}
        for name, one in _curvatures.items()
    ]
