"""LiSSA: the inverse as a series, one product with (some rows of) the curvature a term.

Letters: K vectors · A those still running · D numbers of a vector.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from headwater.curvature.damping import RULE
from headwater.curvature.operators import (
    Operator,
    batch_operator,
    check_counts,
    check_width,
    damped,
    damped_reference,
    largest_eigenvalue,
    random_vectors,
    reference_damping,
    reference_operator,
    reference_residuals,
    relative,
    spread,
    working,
)
from headwater.types import Solve, SolveStatus, Source, State

MARGIN = 1.1  # of the scale over the largest eigenvalue, of which power iteration gives a lower bound
NO_WORSE = 1.001  # than x = 0, whose residual is 1; with room for rounding


@dataclass(frozen=True)
class LiSSA:
    """`x <- x + (v - (C_batch + lambda) x) / s` until `||(C + lambda) x - v|| <= tolerance ||v||`, for `max_steps` at most.

    Agarwal et al. 2017; Koh and Liang 2017, section 3, but with the damping inside: their `x <- v + (1-d) x - C x / s` has damping `d s`.
    C is the reference operator, damping per block as in CG. `batch_rows` rows are drawn for each step, or all taken (None); each time as
    many as the source has were drawn, a step takes them all, which gives the true residual. `repeats` runs with draws of their own are
    averaged: their variance falls as 1 / repeats. With `average` a run's answer is the mean of its iterates over the last half of its steps
    (Polyak and Juditsky 1992), which takes most of the noise of small batches out of it; its residual is taken at the end only.

    s starts a tenth above the whole operator's largest eigenvalue. An x longer than `||v|| / lambda`, or a residual above that of x = 0,
    says that a batch had an eigenvalue beyond s: that vector starts again with s doubled. Where the steps end in that state it is
    `diverged`, and has the best iterate that was seen. A Solve's facts are the largest s ("scale") and the least `J lambda / s` ("decay"),
    J the steps since the last start: below about 3 the directions of small curvature are not there yet, and x leans to the plain gradient.
    Cost: a pass and ten products with the operator to fit; a product with the operator of the batch a step.
    """

    damping: float | str = RULE
    tolerance: float = 1e-3
    max_steps: int = 1000
    average: bool = False
    batch_rows: int | None = None
    repeats: int = 1
    seed: int = 0

    name = "lissa"
    summary = "LiSSA: a damped series on the reference operator, stopped by its residual"
    reference = "Agarwal et al. 2017; Koh and Liang 2017, section 3"
    cost = "some ten scans; up to max_steps scans (or batches) a solve"

    def __post_init__(self) -> None:
        check_counts(self.name, max_steps=self.max_steps, batch_rows=self.batch_rows, repeats=self.repeats)

    def fit(self, source: Source) -> State:
        damping_L = reference_damping(source, self.damping)
        largest = largest_eigenvalue(reference_operator(source)[1], random_vectors(1, source, seed=self.seed))
        return {"damping": damping_L, "scale": torch.tensor([MARGIN * largest + float(damping_L.max())], dtype=torch.float64)}

    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        check_width(b_KD, source.layout)
        v_KD = working(b_KD, source)
        runs = [self._run(state, source, v_KD, repeat) for repeat in range(self.repeats)]
        worst = max(runs, key=lambda run: get_args(SolveStatus).index(run.status))
        if len(runs) == 1:
            return replace(worst, value=worst.value.to(b_KD))
        value_KD = torch.stack([run.value for run in runs]).mean(0)
        return replace(worst, value=value_KD.to(b_KD), residual_K=reference_residuals(state, source, v_KD, value_KD)[1])

    def _run(self, state: State, source: Source, v_KD: Tensor, repeat: int) -> Solve:
        whole, operators = damped_reference(state, source), self._operators(state, source, repeat)
        settings = v_KD, float(state["scale"]), float(state["damping"].min()), self.tolerance
        series = _Averaged(*settings, self.max_steps) if self.average else _Series(*settings)
        for operator in islice(operators, self.max_steps - 1):
            series.step(operator or whole, whole=operator is None)
            if not len(series.left_A):
                break
        return replace(series.end(whole), residual_of=reference_operator(source)[0])

    def _operators(self, state: State, source: Source, repeat: int) -> Iterator[Operator | None]:
        """What each step multiplies with: a fresh draw of rows, or None for all of them."""
        n_rows, damping_D = len(source), spread(state["damping"], source.layout)
        batch_rows = min(self.batch_rows or n_rows, n_rows)
        generator = np.random.default_rng([self.seed, repeat])
        for step in count(1):
            whole = step % math.ceil(n_rows / batch_rows) == 0
            drawn = None if whole else generator.choice(n_rows, batch_rows, replace=False).tolist()
            yield None if drawn is None else damped(batch_operator(source, drawn), damping_D)


class _Series:
    """The vectors of one run. What one of them gets does not depend on the others: the draws are the same, the scales their own."""

    def __init__(self, v_KD: Tensor, scale: float, least_damping: float, tolerance: float) -> None:
        self.v_KD, self.least_damping, self.tolerance = v_KD, least_damping, tolerance
        self.scale_K = torch.full_like(v_KD[:, 0], scale)
        self.best_KD, self.residual_K = torch.zeros_like(v_KD), torch.ones_like(self.scale_K)  # at first 0, whose residual is 1
        self.longest_K = NO_WORSE * v_KD.norm(dim=1) / least_damping
        self.x_KD, self.steps_K = v_KD / scale, torch.ones_like(self.scale_K)  # the first step from 0
        self.left_A, self.steps = torch.arange(len(v_KD), device=v_KD.device), 1

    def step(self, operator: Operator, *, whole: bool) -> None:
        self.steps += 1
        left_A, r_AD = self.left_A, self._residuals(operator)
        bad_A = torch.zeros_like(left_A, dtype=torch.bool)
        if whole:
            found_A = self._judged(r_AD)
            left_A, r_AD, bad_A = (part[~(found_A <= self.tolerance)] for part in (left_A, r_AD, ~(found_A <= NO_WORSE)))
        self.x_KD[left_A] += r_AD / self.scale_K[left_A, None]
        self.steps_K[left_A] += 1
        self.left_A = left_A
        self._restart(left_A[bad_A | ~(self.x_KD[left_A].norm(dim=1) <= self.longest_K[left_A])])

    def end(self, whole: Operator) -> Solve:
        """Those that ran out of steps have their last iterate, or where that is worse than 0 the best one."""
        left_A, found_A = self.left_A, self._judged(self._residuals(whole))
        diverged_A = ~(found_A <= NO_WORSE)
        self.x_KD[left_A[diverged_A]] = self.best_KD[left_A[diverged_A]]
        self.residual_K[left_A[~diverged_A]] = found_A[~diverged_A]
        status = "diverged" if bool(diverged_A.any()) else "max_steps" if bool((found_A > self.tolerance).any()) else "converged"
        decay_K = self.steps_K * self.least_damping / self.scale_K
        facts = {"scale": float(self.scale_K.max()), "decay": float(decay_K.min())} if len(decay_K) else {}
        return Solve(self.x_KD, status, self.steps, self.residual_K, facts=facts)

    def _residuals(self, operator: Operator) -> Tensor:
        v_AD, x_AD = self.v_KD[self.left_A], self.x_KD[self.left_A]
        return v_AD - operator(x_AD) if len(v_AD) else v_AD

    def _judged(self, r_AD: Tensor) -> Tensor:
        """[A] relative true residuals of those left; the best iterates are kept."""
        found_A = relative(r_AD, self.v_KD[self.left_A])
        better_A = found_A <= self.residual_K[self.left_A]
        chosen_A = self.left_A[better_A]
        self.best_KD[chosen_A], self.residual_K[chosen_A] = self.x_KD[chosen_A], found_A[better_A]
        return found_A

    def _restart(self, chosen_A: Tensor) -> None:
        self.scale_K[chosen_A] *= 2
        self.x_KD[chosen_A], self.steps_K[chosen_A] = self.v_KD[chosen_A] / self.scale_K[chosen_A, None], 1


class _Averaged(_Series):
    """A run whose answer is a mean of iterates. A single one's residual is mostly noise, which must not stop it or start it again."""

    def __init__(self, v_KD: Tensor, scale: float, least_damping: float, tolerance: float, max_steps: int) -> None:
        super().__init__(v_KD, scale, least_damping, tolerance)
        self.sum_KD, self.counted_K = torch.zeros_like(v_KD), torch.zeros_like(self.scale_K)
        self.max_steps, self.span_K = max_steps, torch.full_like(self.scale_K, max_steps)  # steps there are since the last start

    def step(self, operator: Operator, *, whole: bool) -> None:
        super().step(operator, whole=False)
        late_A = self.left_A[2 * self.steps_K[self.left_A] > self.span_K[self.left_A]]
        self.sum_KD[late_A] += self.x_KD[late_A]
        self.counted_K[late_A] += 1

    def end(self, whole: Operator) -> Solve:
        known_K = self.counted_K > 0
        self.x_KD[known_K] = self.sum_KD[known_K] / self.counted_K[known_K, None]
        return super().end(whole)

    def _restart(self, chosen_A: Tensor) -> None:
        super()._restart(chosen_A)
        self.sum_KD[chosen_A], self.counted_K[chosen_A] = 0, 0
        self.span_K[chosen_A] = self.max_steps - self.steps
