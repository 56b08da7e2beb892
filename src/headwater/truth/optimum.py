"""How an optimum is reached, and whether it was: L-BFGS or Newton to a gradient tolerance, gradient descent for so many steps.

Letters: D parameters
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from scipy.optimize import NoConvergence, minimize, newton_krylov
from torch import Tensor

from headwater.types import UsageError

Smooth = Callable[[Tensor], tuple[Tensor, Tensor]]
"""theta [D] -> (value, its gradient [D]), both detached."""


@dataclass(frozen=True, eq=False)
class Curved:
    """A Smooth whose Hessian is known: `hessian(theta [D]) -> [D, D]`, detached."""

    fn: Smooth
    hessian: Callable[[Tensor], Tensor]

    def __call__(self, theta_D: Tensor) -> tuple[Tensor, Tensor]:
        return self.fn(theta_D)


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
        _check(self, self.relative, self.absolute, self.max_steps, self.memory)

    def __call__(self, fn: Smooth, start_D: Tensor) -> Reached:
        scaled = _Scaled(fn, start_D, relative=self.relative, absolute=self.absolute)
        if scaled.at_end:
            return scaled.ended(start_D)
        found = minimize(
            scaled,
            start_D.detach().cpu().double().numpy(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": self.max_steps, "maxcor": self.memory, "gtol": scaled.target / len(start_D) ** 0.5, "ftol": 0.0},
        )
        stalled = found.status != OUT_OF_STEPS and scaled.target < np.linalg.norm(found.jac) < NEAR
        return scaled.ended(torch.from_numpy(_polished(scaled, found.x) if stalled else found.x))


@dataclass(frozen=True)
class Newton:
    """To the tolerance of LBFGS with the exact Hessian, for some hundred parameters: the function has to be `Curved`.

    Steps within a trust region whose subproblem is solved exactly, so that saddles are left (Conn, Gould and Toint 2000, section 7.3;
    scipy's trust-exact); where values have no digits left, plain Newton steps as long as they shorten the gradient. `first` leads from a
    random start to where curvature says something, at the price of a pass a step; without it steps begin at the start. Cost: for a start
    near the optimum some ten Hessians, elsewhere up to `max_steps`, each about D passes over the rows and D^3 flops.
    Raises UsageError for a function without a Hessian.
    """

    relative: float = 1e-6
    absolute: float = 1e-12
    max_steps: int = 200
    first: LBFGS | None = None

    def __post_init__(self) -> None:
        _check(self, self.relative, self.absolute, self.max_steps)

    def __call__(self, fn: Smooth, start_D: Tensor) -> Reached:
        if not isinstance(fn, Curved):
            raise UsageError(
                "Newton got a function without its Hessian, expected a `Curved` one: `retrained` makes it of an Objective with a method "
                "`hessian`, such as SmallModel; for any other problem use LBFGS"
            )
        scaled = _Scaled(fn, start_D, relative=self.relative, absolute=self.absolute)
        near_D = start_D if self.first is None or scaled.at_end else self.first(fn, start_D).theta_D
        if scaled.at_end or not bool(near_D.isfinite().all()):
            return scaled.ended(near_D)
        return scaled.ended(torch.from_numpy(_last_digits(scaled, self._within_region(scaled, near_D.detach().cpu().double().numpy()))))

    def _within_region(self, scaled: _Scaled, near_D: np.ndarray) -> np.ndarray:
        """Where the steps end; the last point where the region shrinks to nothing, since no step there helps any more."""
        reached = [near_D]
        with suppress(FloatingPointError), np.errstate(over="raise"):
            found = minimize(
                scaled,
                near_D,
                jac=True,
                hess=scaled.hessian,
                method="trust-exact",
                callback=lambda x_D: reached.append(x_D.copy()),
                options={"maxiter": self.max_steps, "gtol": scaled.target},
            )
            reached.append(found.x)
        return reached[-1]


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


def _check(config: object, relative: float, absolute: float, *counts: int) -> None:
    if not (relative >= 0 and absolute >= 0 and relative + absolute > 0 and min(counts) > 0):
        raise UsageError(f"{config}: expected a tolerance above 0, relative or absolute, and steps and memory above 0")


class _Scaled:
    """The objective for scipy: less its value at the start, over its gradient's length there, so that small differences keep digits."""

    def __init__(self, fn: Smooth, start_D: Tensor, *, relative: float, absolute: float) -> None:
        self.fn, self.start_D, self.passes = fn, start_D, 1
        self.value, gradient_D = fn(start_D)
        self.unit = float(gradient_D.norm())
        self.tolerance = max(relative * self.unit, absolute)
        self.target = self.tolerance / max(self.unit, TINY)
        self.rounding = ROUNDING * max(1.0, abs(float(self.value))) / max(self.unit, TINY)

    @property
    def at_end(self) -> bool:
        """Nothing is left to do at the start."""
        return self.unit <= self.tolerance or not np.isfinite(self.unit)

    def __call__(self, x_D: np.ndarray) -> tuple[float, np.ndarray]:
        self.passes += 1
        value, gradient_D = self.fn(torch.from_numpy(x_D).to(self.start_D))
        return float(value - self.value) / self.unit, (gradient_D / self.unit).cpu().double().numpy()

    def gradient(self, x_D: np.ndarray) -> np.ndarray:
        return self(x_D)[1]

    def hessian(self, x_D: np.ndarray) -> np.ndarray:
        assert isinstance(self.fn, Curved)
        self.passes += len(x_D)
        return (self.fn.hessian(torch.from_numpy(x_D).to(self.start_D)) / self.unit).cpu().double().numpy()

    def better(self, x_D: np.ndarray, than_D: np.ndarray) -> bool:
        """Whether the gradient is shorter at x and the value no higher but for rounding."""
        (after, shorter_D), (before, gradient_D) = self(x_D), self(than_D)
        return bool(after <= before + self.rounding and np.linalg.norm(shorter_D) < np.linalg.norm(gradient_D))

    def ended(self, theta_D: Tensor) -> Reached:
        theta_D = theta_D.to(self.start_D)
        norm = float(self.fn(theta_D)[1].norm())
        status = "diverged" if not np.isfinite(norm) else "converged" if norm <= self.tolerance else "max_steps"
        return Reached(theta_D, status, norm, self.tolerance, self.passes + 1)


def _polished(scaled: _Scaled, x_D: np.ndarray) -> np.ndarray:
    """Newton-Krylov steps (Knoll and Keyes 2004) from x, or x itself where they lead to no smaller gradient or to a higher value."""
    try:
        with np.errstate(all="ignore"):
            end_D = newton_krylov(scaled.gradient, x_D, f_tol=scaled.target, maxiter=NEWTON_STEPS, method="lgmres", tol_norm=np.linalg.norm)
    except NoConvergence as error:
        end_D = error.args[0]
    except ValueError:  # a step that is no number
        return x_D
    return end_D if scaled.better(end_D, x_D) else x_D


def _last_digits(scaled: _Scaled, x_D: np.ndarray) -> np.ndarray:
    """Newton steps from x while each is better than the last, until the target is reached."""
    for _ in range(NEWTON_STEPS):
        gradient_D = scaled.gradient(x_D)
        if not np.linalg.norm(gradient_D) > scaled.target:
            break
        try:
            next_D = x_D - np.linalg.solve(scaled.hessian(x_D), gradient_D)
        except np.linalg.LinAlgError:  # flat in some direction
            break
        if not scaled.better(next_D, x_D):
            break
        x_D = next_D
    return x_D
