"""One file per method, found here by name.

A third party's method needs no line here: `register` takes a class, and an installed package can declare one under the entry
point group `headwater.methods`, under the method's own name.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from headwater import curvature
from headwater.methods.by_curvature import InfluenceBy
from headwater.methods.dda import DDA
from headwater.methods.embedding import Embedding
from headwater.methods.fastif import FastIF
from headwater.methods.grad_cos import GradCos
from headwater.methods.grad_dot import GradDot
from headwater.methods.length import Length
from headwater.methods.less import Less
from headwater.methods.lexical import Lexical
from headwater.methods.loss import Loss
from headwater.methods.random import Random
from headwater.methods.relatif import RelatIF
from headwater.methods.repsim import RepSim
from headwater.methods.repsim_response import RepSimResponse
from headwater.methods.rept import RepT
from headwater.methods.self_influence import SelfInfluence
from headwater.methods.tfidf import TfIdf
from headwater.methods.tracin import TracIn
from headwater.methods.trackstar import TrackStar
from headwater.methods.trak import Trak
from headwater.types import Method, UsageError

__all__ = [
    "DDA",
    "Embedding",
    "FastIF",
    "GradCos",
    "GradDot",
    "Length",
    "Less",
    "Lexical",
    "Loss",
    "Random",
    "RelatIF",
    "RepSim",
    "RepSimResponse",
    "RepT",
    "SelfInfluence",
    "TfIdf",
    "TracIn",
    "TrackStar",
    "Trak",
    "get",
    "names",
    "register",
    "table",
]

GROUP = "headwater.methods"

AnyMethod = TypeVar("AnyMethod", bound=type[Any])

_methods: dict[str, Callable[..., Any]] = {}


def register(method_class: AnyMethod) -> AnyMethod:
    """Make a method known under its `name`; usable as a class decorator. Raises UsageError where another has that name."""
    known = _methods.get(method_class.name)
    if known is not None and known is not method_class:
        raise UsageError(
            f"a method named {method_class.name!r} is registered already ({known.__module__}.{known.__qualname__}): choose another name"
        )
    _methods[method_class.name] = method_class
    return method_class


for _method in (GradDot, GradCos, RepSim, RepSimResponse, Lexical, TfIdf, Embedding, Length, Loss, Random):
    register(_method)
for _method in (RelatIF, SelfInfluence, TracIn, Less, Trak, TrackStar, DDA, RepT, FastIF):
    register(_method)


def _influences() -> dict[str, InfluenceBy]:
    """Influence by each curvature, one that was registered later too. That with the identity is grad_dot."""
    return {name: InfluenceBy(name) for name in curvature.names() if name != "identity" and name not in _methods}


_methods |= _influences()


def names() -> list[str]:
    """Every method's name: the registered ones in order, then those that installed packages declare."""
    return list({**_methods, **_influences(), **_declared()})


def get(name: str, **options: Any) -> Method:
    """The method of that name with these options. Raises UsageError on a name or an option that there is not."""
    method_class = _find(name)
    try:
        inspect.signature(method_class).bind(**options)
    except TypeError as error:
        raise UsageError(f"{name}: {error}. Its options: {_options(method_class)}") from None
    return method_class(**options)


def table() -> list[dict[str, Any]]:
    """What needs what, for `headwater methods`: name, unit, needs (features and columns), cost, reference, summary."""
    return [_line(name) for name in names()]


def _declared() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _find(name: str) -> Callable[..., Any]:
    if found := {**_influences(), **_methods}.get(name):
        return found
    if name in _declared():
        return _load(_declared()[name])
    close = difflib.get_close_matches(name, names(), n=3)
    meant = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(names())}"
    raise UsageError(f"there is no method {name!r}: {meant}")


def _load(point: EntryPoint) -> type[Any]:
    """Another package's class. Whatever its import raises is that package's fault, and is said so."""
    try:
        return point.load()
    except Exception as error:
        package = point.dist.name if point.dist else point.value
        raise UsageError(f"method {point.name!r} of package {package!r} cannot be loaded ({type(error).__name__}: {error})") from error


def _options(method_class: Callable[..., Any]) -> str:
    parameters = inspect.signature(method_class).parameters.values()
    return ", ".join(f"{p.name} (required)" if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters) or "none"


def _line(name: str) -> dict[str, Any]:
    empty = {"name": name, "unit": None, "needs": [], "cost": "", "reference": ""}
    try:
        method = _sample(_find(name))
    except UsageError as error:
        return {**empty, "summary": str(error)}
    needs = sorted(method.requires | getattr(method, "columns", frozenset()))
    texts = {key: getattr(method, key, "") for key in ("cost", "reference", "summary")}
    return {**empty, "unit": method.unit, "needs": needs, **texts}


def _sample(method_class: Callable[..., Any]) -> Any:
    """The method with its defaults, since what it needs may follow from its options; the class itself where an option has no default."""
    parameters = inspect.signature(method_class).parameters.values()
    return method_class if any(p.default is p.empty for p in parameters) else method_class()
