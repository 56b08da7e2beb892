"""How an optimum is reached, and whether it was: L-BFGS to a gradient tolerance, and plain gradient descent for so many steps.

Letters: D parameters
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from scipy.optimize import NoConvergence, minimize, newton_krylov
from torch import Tensor

from headwater.types import UsageError

Smooth = Callable[[Tensor], tuple[Tensor, Tensor]]
"""theta [D] -> (value, its gradient [D]), both detached."""

ReachedStatus = Literal["converged", "ran", "max_steps", "diverged"]
"""At its tolerance; after the steps that its recipe names; short of its tolerance; no longer a number."""

NEWTON_STEPS, NEAR = 20, 1e-3  # of the gradient at the start: further away a step along the gradient's zero may lead to a saddle
OUT_OF_STEPS = 1  # a status of L-BFGS-B
ROUNDING, TINY = 1e-13, 1e-300  # of a sum of values of about 1, in float64


@dataclass(frozen=True, eq=False)
class Reached:
    """Where a minimiser ended. `gradient_norm` is the objective's there; `tolerance` what it had to come down to."""

    theta_D: Tensor
    status: ReachedStatus
    gradient_norm: float
    tolerance: float | None
    passes: int

    @property
    def usable(self) -> bool:
        return self.status in ("converged", "ran")


class Minimiser(Protocol):
    """What moves parameters from a start to lower values. The object is its frozen config, for the record."""

    def __call__(self, fn: Smooth, start_D: Tensor) -> Reached: ...


@dataclass(frozen=True)
class LBFGS:
    """To `||gradient|| <= max(relative ||gradient at the start||, absolute)`, over all rows at once.

    L-BFGS-B of scipy (Byrd et al. 1995) without bounds. It compares values, whose rounding hides the last digits of a minimum: where it
    stops short, Newton-Krylov steps of scipy go on along the gradient alone. Cost: some ten to hundred passes over the rows.
    """

    relative: float = 1e-6
    absolute: float = 1e-12  # about what rounding leaves of a gradient that is 0, in float64
    max_steps: int = 1000
    memory: int = 20

    def __post_init__(self) -> None:
        if not (self.relative >= 0 and self.absolute >= 0 and self.relative + self.absolute > 0 and self.max_steps > 0 and self.memory > 0):
            raise UsageError(f"{self}: expected a tolerance above 0, relative or absolute, and positive max_steps and memory")

    def __call__(self, fn: Smooth, start_D: Tensor) -> Reached:
        scaled = _Scaled(fn, start_D)
        tolerance = max(self.relative * scaled.unit, self.absolute)
        if scaled.unit <= tolerance or not np.isfinite(scaled.unit):
            return scaled.ended(start_D, tolerance)
        target = tolerance / scaled.unit
        found = minimize(
            scaled,
            start_D.detach().cpu().double().numpy(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": self.max_steps, "maxcor": self.memory, "gtol": target / len(start_D) ** 0.5, "ftol": 0.0},
        )
        stalled = found.status != OUT_OF_STEPS and target < np.linalg.norm(found.jac) < NEAR
        ended = _polished(scaled, found.x, target) if stalled else found.x
        return scaled.ended(torch.from_numpy(ended), tolerance)


@dataclass(frozen=True)
class Descent:
    """Gradient descent over all rows at once, `steps` steps of length `rate` times the gradient: a training, not a way to a minimum."""

    steps: int
    rate: float

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.rate > 0:
            raise UsageError(f"{self}: expected at least one step and a rate above 0")

    def __call__(self, fn: Smooth, start_D: Tensor) -> Reached:
        theta_D = start_D.detach().clone()
        for _ in range(self.steps):
            theta_D = theta_D - self.rate * fn(theta_D)[1]
        norm = float(fn(theta_D)[1].norm())
        return Reached(theta_D, "ran" if np.isfinite(norm) else "diverged", norm, None, self.steps + 1)


class _Scaled:
    """The objective for scipy: less its value at the start, over its gradient's length there, so that small differences keep digits."""

    def __init__(self, fn: Smooth, start_D: Tensor) -> None:
        self.fn, self.start_D, self.passes = fn, start_D, 1
        self.value, gradient_D = fn(start_D)
        self.unit = float(gradient_D.norm())
        self.rounding = ROUNDING * max(1.0, abs(float(self.value))) / max(self.unit, TINY)

    def __call__(self, x_D: np.ndarray) -> tuple[float, np.ndarray]:
        self.passes += 1
        value, gradient_D = self.fn(torch.from_numpy(x_D).to(self.start_D))
        return float(value - self.value) / self.unit, (gradient_D / self.unit).cpu().double().numpy()

    def gradient(self, x_D: np.ndarray) -> np.ndarray:
        return self(x_D)[1]

    def ended(self, theta_D: Tensor, tolerance: float) -> Reached:
        theta_D = theta_D.to(self.start_D)
        norm = float(self.fn(theta_D)[1].norm())
        status = "diverged" if not np.isfinite(norm) else "converged" if norm <= tolerance else "max_steps"
        return Reached(theta_D, status, norm, tolerance, self.passes + 1)


def _polished(scaled: _Scaled, x_D: np.ndarray, target: float) -> np.ndarray:
    """Newton-Krylov steps (Knoll and Keyes 2004) from x, or x itself where they lead to no smaller gradient or to a higher value."""
    end_D = x_D
    try:
        with np.errstate(all="ignore"):
            end_D = newton_krylov(scaled.gradient, x_D, f_tol=target, maxiter=NEWTON_STEPS, method="lgmres", tol_norm=np.linalg.norm)
    except NoConvergence as error:
        end_D = error.args[0]
    except ValueError:  # a step that is no number
        return x_D
    (before, gradient_D), (after, polished_D) = scaled(x_D), scaled(end_D)
    better = after <= before + scaled.rounding and np.linalg.norm(polished_D) < np.linalg.norm(gradient_D)
    return end_D if better else x_D
