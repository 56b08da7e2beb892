"""One file per curvature, found here by name: each is `fit(source)`, then `solve(state, source, b)`."""

from __future__ import annotations

import inspect
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from headwater.curvature.arnoldi import Arnoldi
from headwater.curvature.cg import CG
from headwater.curvature.damping import Damping
from headwater.curvature.datainf import DataInf
from headwater.curvature.ekfac import EKFAC
from headwater.curvature.ekfac_cg import EKFACCG
from headwater.curvature.fisher import Fisher
from headwater.curvature.ggn import GGN
from headwater.curvature.identity import Identity
from headwater.curvature.kfac import KFAC
from headwater.curvature.lissa import LiSSA
from headwater.curvature.lissa_released import LiSSAReleased
from headwater.curvature.nystrom import Nystrom
from headwater.types import Curvature, UsageError

__all__ = [
    "CG",
    "EKFAC",
    "EKFACCG",
    "GGN",
    "KFAC",
    "Arnoldi",
    "Curvature",
    "DataInf",
    "Fisher",
    "Identity",
    "LiSSA",
    "LiSSAReleased",
    "Nystrom",
    "find",
    "get",
    "names",
    "register",
    "table",
]

AnyCurvature = TypeVar("AnyCurvature", bound=type[Any])

_all = (Identity, Fisher, GGN, DataInf, LiSSA, LiSSAReleased, CG, Arnoldi, KFAC, EKFAC, EKFACCG, Nystrom)
_curvatures: dict[str, type[Any]] = {curvature.name: curvature for curvature in _all}


def register(curvature_class: AnyCurvature) -> AnyCurvature:
    """Make a curvature known under its `name`, and influence with it as a method; usable as a class decorator.

    Raises UsageError where another has that name.
    """
    known = _curvatures.setdefault(curvature_class.name, curvature_class)
    if known is not curvature_class:
        raise UsageError(
            f"a curvature named {known.name!r} is registered already ({known.__module__}.{known.__qualname__}): choose another name"
        )
    return curvature_class


def names() -> list[str]:
    return list(_curvatures)


def find(name: str) -> type[Any]:
    """The class of that name. Raises UsageError where there is none."""
    if name not in _curvatures:
        raise UsageError(f"there is no curvature {name!r}; there are: {', '.join(names())}")
    return _curvatures[name]


def get(name: str, **options: Any) -> Curvature:
    """The curvature of that name with these options. Raises UsageError on a name, an option or a damping that there is not."""
    signature = inspect.signature(find(name))
    try:
        signature.bind(**options)
    except TypeError as error:
        listed = ", ".join(f"{p.name}={p.default!r}" for p in signature.parameters.values())
        raise UsageError(f"{name}: {error}. Its options: {listed}") from None
    for option, choices in _choices(find(name)).items():
        if (chosen := options.get(option)) is not None and chosen not in choices:
            raise UsageError(f"{name}: {option} is {chosen!r}, expected one of {', '.join(choices)}")
    made = find(name)(**options)
    Damping.parse(made.damping)
    return made


def _choices(curvature_class: type[Any]) -> dict[str, tuple[str, ...]]:
    """The words of each option that is a `Literal` or a `Literal | None`."""
    try:
        hints = get_type_hints(curvature_class)
    except NameError:  # one of somebody's own, with annotations that only a type checker can resolve
        return {}
    found = {option: [part for part in (hint, *get_args(hint)) if get_origin(part) is Literal] for option, hint in hints.items()}
    return {option: get_args(parts[0]) for option, parts in found.items() if parts}


def table() -> list[dict[str, Any]]:
    """Name, what it is, cost, source, default damping: one entry a curvature."""
    return [
        {"name": name, "summary": one.summary, "cost": one.cost, "reference": one.reference, "damping": str(one.damping)}
        for name, one in _curvatures.items()
    ]
