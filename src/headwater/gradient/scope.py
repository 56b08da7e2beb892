"""Which parameters are in scope: what the user trains, less what cannot be captured exactly. The rest is counted and named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from headwater.gradient.sketch import SketchSpec
from headwater.types import Layout, UsageError


@dataclass(frozen=True)
class Scope:
    """Parameters in scope by name, and for each one that is not, why."""

    names: tuple[str, ...]
    outside: dict[str, str]
    sizes: dict[str, int]

    def without(self, names: Sequence[str], reason: str) -> Scope:
        """The same scope less some parameters, which are listed with the reason."""
        gone = set(names)
        kept = tuple(name for name in self.names if name not in gone)
        return replace(self, names=kept, outside={**self.outside, **{name: reason for name in self.names if name in gone}})

    @property
    def n_inside(self) -> int:
        return sum(self.sizes[name] for name in self.names)

    def to_json(self) -> dict[str, Any]:
        """Counts by reason, with every name: nothing is skipped in silence."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.outside.items():
            reasons.setdefault(reason, []).append(name)
        return {
            "parameters": sum(self.sizes.values()),
            "in_scope": self.n_inside,
            "in_scope_tensors": len(self.names),
            "outside": [
                {"reason": reason, "tensors": len(names), "parameters": sum(self.sizes[n] for n in names), "names": names}
                for reason, names in sorted(reasons.items())
            ],
        }


def find_scope(model: nn.Module, *, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> Scope:
    """Every parameter that requires a gradient and whose name matches `include` (shell patterns) and not `exclude`.

    Tied weights are one parameter: their gradient is the sum over all their uses.
    """
    outside, names, sizes = {}, [], {}
    for name, parameter in model.named_parameters():
        sizes[name] = parameter.numel()
        reason = _outside(name, parameter, include, exclude)
        if reason is None:
            names.append(name)
        else:
            outside[name] = reason
    if not names:
        raise UsageError(
            f"no parameter is in scope: {len(sizes)} parameters, patterns include={list(include)} exclude={list(exclude)}. "
            f"Names look like {', '.join(list(sizes)[:3])}; parameters that do not require a gradient count as not trained."
        )
    return Scope(tuple(names), outside, sizes)


def _outside(name: str, parameter: nn.Parameter, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    if not parameter.requires_grad:
        return "frozen: not trained"
    if not any(fnmatchcase(name, pattern) for pattern in include):
        return "left out by include"
    if any(fnmatchcase(name, pattern) for pattern in exclude):
        return "left out by exclude"
    return None if parameter.is_floating_point() else "not a floating-point parameter"


def make_layout(model: nn.Module, scope: Scope, spec: SketchSpec) -> Layout:
    """The blocks of a scope under a sketch, in the model's own order. A fused (E, O, I) parameter is the matrix (E O, I)."""
    parameters = dict(model.named_parameters())
    blocks = [spec.block(name, matrix_shape(parameters[name])) for name in scope.names]
    return Layout(tuple(blocks), sketch_seed=spec.seed)


def matrix_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    shape = tuple(parameter.shape)
    return (shape[0] * shape[1], *shape[2:]) if len(shape) == 3 else shape or (1,)
