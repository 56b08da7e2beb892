"""One file per curvature, found here by name: each is `fit(source)`, then `solve(state, source, b)`."""

from __future__ import annotations

import inspect
from typing import Any

from headwater.curvature.arnoldi import Arnoldi
from headwater.curvature.cg import CG
from headwater.curvature.datainf import DataInf
from headwater.curvature.fisher import Fisher
from headwater.curvature.identity import Identity
from headwater.curvature.lissa import LiSSA
from headwater.curvature.lissa_released import LiSSAReleased
from headwater.curvature.nystrom import Nystrom
from headwater.types import Curvature, UsageError

__all__ = [
    "CG",
    "Arnoldi",
    "Curvature",
    "DataInf",
    "Fisher",
    "Identity",
    "LiSSA",
    "LiSSAReleased",
    "Nystrom",
    "get",
    "names",
    "table",
]

_all = (Identity, Fisher, DataInf, CG, LiSSA, LiSSAReleased, Arnoldi, Nystrom)
_curvatures: dict[str, type[Any]] = {curvature.name: curvature for curvature in _all}


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
