"""What ground truth near the final weights is taken of: rows and queries as functions of one vector of parameters.

Letters: N training rows · Q queries · D parameters · O outputs of a row
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from headwater.types import UsageError

Pair = tuple[Tensor, Tensor]
"""A value and its gradient [D]."""


class Objective(Protocol):
    """A training objective `J(theta) = (1/N) sum_n L_n(theta) + decay/2 ||theta||^2`, its outputs, and queries' measures.

    `start_D` are the final weights theta_s. Nothing is random: no dropout, every row in every call. An objective of few parameters may
    have `hessian(theta [D], weights [N]) -> [D, D]` of `loss` besides; `Newton` needs it.
    """

    @property
    def train_ids(self) -> tuple[str, ...]: ...

    @property
    def query_ids(self) -> tuple[str, ...]: ...

    @property
    def unit(self) -> str | None: ...

    @property
    def start_D(self) -> Tensor: ...

    @property
    def decay(self) -> float: ...

    def loss(self, theta_D: Tensor, weights_N: Tensor) -> Pair:
        """`(1/N) sum_n weight_n L_n(theta)` and its gradient. N counts every row, whatever the weights."""
        ...

    def divergence(self, theta_D: Tensor, weights_N: Tensor) -> Pair:
        """`(1/N) sum_n [D_n(h_n(theta), h_n(theta_s)) + weight_n L_n(theta)]` and its gradient, in one pass.

        D_n is the loss's Bregman divergence in the outputs h.
        """
        ...

    def measures(self, theta_D: Tensor) -> Tensor:
        """[Q]"""
        ...


@dataclass(frozen=True, eq=False)
class SmallModel:
    """An Objective from three functions of a flat float64 vector. `losses` are convex in each row's outputs.

        outputs(theta [D]) -> [N, O] · losses(outputs [N, O]) -> [N] · queries(theta [D]) -> [Q], a measure each

    Raises UsageError where the start is no float64 vector, or the functions' shapes are not those. Cost of a call: a forward and a
    backward pass over all rows, whole in memory.
    """

    outputs: Callable[[Tensor], Tensor]
    losses: Callable[[Tensor], Tensor]
    queries: Callable[[Tensor], Tensor]
    start_D: Tensor
    decay: float = 0.0
    unit: str | None = "nats"

    def __post_init__(self) -> None:
        if self.start_D.dtype != torch.float64 or self.start_D.dim() != 1:
            raise UsageError(
                f"start is {self.start_D.dtype} {tuple(self.start_D.shape)}, expected a float64 vector: a single row's effect is often "
                "below what float32 can tell; convert the model with .double() and flatten its parameters"
            )
        losses_N = self.losses(self._before_NO)
        if losses_N.shape != (len(self._before_NO),):
            raise UsageError(
                f"losses are {tuple(losses_N.shape)}, expected one number for each of the {len(self._before_NO)} rows of outputs"
            )

    @cached_property
    def train_ids(self) -> tuple[str, ...]:
        return tuple(f"row-{n}" for n in range(len(self._before_NO)))

    @cached_property
    def query_ids(self) -> tuple[str, ...]:
        return tuple(f"query-{q}" for q in range(len(self.measures(self.start_D))))

    def loss(self, theta_D: Tensor, weights_N: Tensor) -> Pair:
        return value_and_gradient(lambda t_D: weights_N @ self.losses(self.outputs(t_D)) / len(weights_N), theta_D)

    def hessian(self, theta_D: Tensor, weights_N: Tensor) -> Tensor:
        """[D, D] of `loss`. Cost: about D passes over the rows."""
        gradient = torch.func.grad(lambda t_D: weights_N @ self.losses(self.outputs(t_D)) / len(weights_N))
        return torch.func.jacrev(gradient)(theta_D).detach()

    def divergence(self, theta_D: Tensor, weights_N: Tensor) -> Pair:
        def value(t_D: Tensor) -> Tensor:
            now_NO = self.outputs(t_D)
            return (self.divergences(now_NO) + weights_N * self.losses(now_NO)).mean()

        return value_and_gradient(value, theta_D)

    def divergences(self, now_NO: Tensor) -> Tensor:
        """[N] `L(h) - L(h_s) - grad L(h_s) . (h - h_s)`: KL(p_s || p) for cross-entropy, half the squared change for a squared loss."""
        return self.losses(now_NO) - self._losses_N - (self._slopes_NO * (now_NO - self._before_NO)).sum(1)

    def measures(self, theta_D: Tensor) -> Tensor:
        with torch.no_grad():
            return self.queries(theta_D)

    @cached_property
    def _before_NO(self) -> Tensor:
        with torch.no_grad():
            return self.outputs(self.start_D)

    @cached_property
    def _losses_N(self) -> Tensor:
        return self.losses(self._before_NO)

    @cached_property
    def _slopes_NO(self) -> Tensor:
        return value_and_gradient(lambda outputs_NO: self.losses(outputs_NO).sum(), self._before_NO)[1]


def value_and_gradient(fn: Callable[[Tensor], Tensor], at: Tensor) -> Pair:
    """A number and its derivative by autograd, both detached."""
    with torch.enable_grad():
        leaf = at.detach().requires_grad_(True)
        value = fn(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def half_square(theta_D: Tensor, weight: float | Tensor, centre_D: Tensor | None = None) -> Pair:
    """`(1/2) sum_d weight_d (theta_d - centre_d)^2` and its gradient."""
    moved_D = theta_D if centre_D is None else theta_D - centre_D
    gradient_D = weight * moved_D
    return moved_D @ gradient_D / 2, gradient_D


def total(*parts: Pair) -> Pair:
    values, gradients = zip(*parts, strict=True)
    return torch.stack(list(values)).sum(), torch.stack(list(gradients)).sum(0)
