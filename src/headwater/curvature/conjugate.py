"""Conjugate gradients for several right-hand sides at once: each with its own step lengths, and left alone once it is solved.

Letters: K right-hand sides · A those still being solved, S some of them · D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.curvature.operators import Operator, relative
from headwater.types import Solve, SolveStatus


def conjugate_gradients(
    operator: Operator,
    b_KD: Tensor,
    *,
    precondition: Operator | None = None,
    tolerance: float = 1e-6,
    max_steps: int = 200,
    x0: Tensor | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Solve:
    """x with `||A x - b|| <= tolerance ||b||`, A symmetric and positive definite (Hestenes and Stiefel 1952).

    `precondition` is a symmetric positive approximation of `A^-1`; `x0` [K, D] is where to start; `stop`, asked before each step, ends
    the work early (`max_steps`). Where the recursion's residual is
    small enough, the true one is taken from x, and decides: then b is solved, or, as long as that helps, CG begins anew from x. One that
    rounding keeps from the tolerance is left as it is (`max_steps`); one along which A is not positive, or not finite, keeps the iterate
    that it had (`diverged`). `residual_K` is always the true one. Cost: a product with A a step for each b that is not solved, and one
    or two more.
    """
    run = _Run(operator, b_KD, precondition or (lambda r_KD: r_KD), tolerance, torch.zeros_like(b_KD) if x0 is None else x0.clone())
    everyone_K = torch.arange(len(b_KD), device=b_KD.device)
    run.begin(b_KD if x0 is None else run.true_residual(everyone_K), everyone_K)
    while len(run.left_A) and run.steps < max_steps and not stop():
        run.step()
    unknown_S = torch.cat([run.left_A, run.broken_S])
    run.residual_K[unknown_S] = relative(run.true_residual(unknown_S), b_KD[unknown_S])
    return Solve(run.x_KD, run.status, run.steps, run.residual_K)


@dataclass(eq=False)
class _Run:
    operator: Operator
    b_KD: Tensor
    precondition: Operator
    tolerance: float
    x_KD: Tensor
    steps: int = 0

    def __post_init__(self) -> None:
        self.left_A = self.broken_S = torch.arange(0, device=self.b_KD.device)
        self.r_KD, self.p_KD = torch.zeros_like(self.b_KD), torch.zeros_like(self.b_KD)
        self.rho_K = self.b_KD.new_zeros(len(self.b_KD))  # r' M r
        self.residual_K = torch.full_like(self.rho_K, torch.inf)  # as last taken from x

    @property
    def status(self) -> SolveStatus:
        if len(self.broken_S):
            return "diverged"
        return "converged" if bool((self.residual_K <= self.tolerance).all()) else "max_steps"

    def true_residual(self, chosen_S: Tensor) -> Tensor:
        return self.b_KD[chosen_S] - self.operator(self.x_KD[chosen_S]) if len(chosen_S) else self.b_KD[chosen_S]

    def begin(self, r_SD: Tensor, chosen_S: Tensor) -> None:
        """Start, or start again, from these true residuals: unless they are small, or no longer halved by starting again."""
        found_S = relative(r_SD, self.b_KD[chosen_S])
        goes_on_S = (found_S > self.tolerance) & (found_S < self.residual_K[chosen_S] / 2)
        self.residual_K[chosen_S], self.r_KD[chosen_S], self.p_KD[chosen_S] = found_S, r_SD, 0
        self.rho_K[chosen_S] = 1  # there is no last direction: what this divides is multiplied with 0
        self.left_A = torch.cat([self.left_A, chosen_S[goes_on_S]])
        self._turn(chosen_S[goes_on_S])

    def step(self) -> None:
        """Along each direction to where the residual is orthogonal to it; then the next directions."""
        self.steps += 1
        moved_AD = self.operator(self.p_KD[self.left_A])
        alpha_A = self.rho_K[self.left_A] / (self.p_KD[self.left_A] * moved_AD).sum(1)
        sound_A = torch.isfinite(alpha_A) & (alpha_A > 0)
        self.broken_S = torch.cat([self.broken_S, self.left_A[~sound_A]])
        left_A, alpha_A1 = self.left_A[sound_A], alpha_A[sound_A, None]
        self.x_KD[left_A] += alpha_A1 * self.p_KD[left_A]
        self.r_KD[left_A] -= alpha_A1 * moved_AD[sound_A]
        small_A = relative(self.r_KD[left_A], self.b_KD[left_A]) <= self.tolerance
        self.left_A = left_A[~small_A]
        self._turn(self.left_A)
        self.begin(self.true_residual(left_A[small_A]), left_A[small_A])

    def _turn(self, chosen_S: Tensor) -> None:
        """The next direction: the preconditioned residual, made conjugate to the last direction where there is one."""
        if not len(chosen_S):
            return
        z_SD = self.precondition(self.r_KD[chosen_S])
        rho_S = (self.r_KD[chosen_S] * z_SD).sum(1)
        self.p_KD[chosen_S] = z_SD + (rho_S / self.rho_K[chosen_S])[:, None] * self.p_KD[chosen_S]
        self.rho_K[chosen_S] = rho_S
