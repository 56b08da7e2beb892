"""How to set LiSSA for given rows: batch, scale and steps from measured eigenvalues, in place of numbers that worked elsewhere.

Letters: N rows · L blocks of a layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from headwater.curvature.damping import RULE
from headwater.curvature.lissa import MARGIN, LiSSA
from headwater.curvature.operators import batch_operator, largest_eigenvalue, random_vectors
from headwater.types import Source

DECAY = 3.0  # J lambda / s: what is missing in the directions of no curvature is then exp(-3), 5 %
STEP_ROWS = 16  # a step costs about as much as so many rows, beside its own
PAPER_STEPS = 1000  # Guo et al. 2021, section 4.2


@dataclass(frozen=True)
class Choice:
    """LiSSA with batches of so many rows: the largest eigenvalue seen among them, the scale above it, the steps that it takes."""

    batch_rows: int
    batch_eigenvalue: float
    scale: float
    steps: int

    @property
    def cost_rows(self) -> int:
        """Rows that a solve multiplies with, those counted that a step costs anyway."""
        return self.steps * (self.batch_rows + STEP_ROWS)


@dataclass(frozen=True)
class Recommendation:
    """The cheapest of `choices`, and what it rests on. `damping_least` is the smallest lambda of any block: it decides the steps."""

    damping: float | str
    damping_least: float
    n_rows: int
    chosen: Choice
    choices: tuple[Choice, ...]

    @property
    def lissa(self) -> LiSSA:
        """One run, as in Guo et al. 2021, and for batches the mean of its last iterates."""
        drawn = self.chosen.batch_rows < self.n_rows
        batch_rows = self.chosen.batch_rows if drawn else None
        return LiSSA(damping=self.damping, max_steps=self.chosen.steps, batch_rows=batch_rows, average=drawn)

    @property
    def decay(self) -> float:
        return self.chosen.steps * self.damping_least / self.chosen.scale

    def damping_for(self, steps: int) -> float:
        """The smallest lambda that so many steps with these batches serve: for a smaller one the answer leans to the plain gradient."""
        return DECAY * self.chosen.scale / steps

    def __str__(self) -> str:
        one = self.chosen
        return (
            f"LiSSA: batches of {one.batch_rows:,} rows (largest eigenvalue seen {one.batch_eigenvalue:.4g}), scale s at most "
            f"{one.scale:.4g}, J = {one.steps:,} steps, one run: J lambda / s = {self.decay:.2f}\n"
            f"effective damping: lambda itself, {self.damping_least:.4g} ({self.damping}); in the form that multiplies x by 1 - d and "
            f"divides by s at the end it would be d s\n"
            f"J = {PAPER_STEPS:,} steps would give J lambda / s = {PAPER_STEPS * self.damping_least / one.scale:.2g}: "
            f"enough for a lambda of {self.damping_for(PAPER_STEPS):.4g} or more"
        )


def recommend(source: Source, *, damping: float | str = RULE, draws: int = 32, seed: int = 0) -> Recommendation:
    """(J, s, lambda, batch) so that s is above the largest eigenvalue of the minibatches seen and `J lambda / s` is 3.

    Guo et al. 2021 found that a small batch, some 1,000 steps and one run serve. What decides is `J lambda / s`, which that leaves to
    chance. LiSSA starts with a scale just above the whole operator's largest eigenvalue and doubles it where a batch makes it run away; the
    s here is the first of those doublings above all batches seen, and J is enough for it. Where less will do, `J lambda / s` is larger.
    Cost: LiSSA's fit, and for each of a few batch sizes `draws` times ten products with a batch's operator.
    """
    config = LiSSA(damping=damping)
    state = config.fit(source)
    start, damping_L = float(state["scale"]), state["damping"]
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256) if size < len(source)]
    generator = np.random.default_rng(seed)
    seen = {size: _largest_seen(source, size, draws, generator) for size in sizes}
    seen[len(source)] = (start - float(damping_L.max())) / MARGIN
    choices = tuple(_choice(size, largest, start, float(damping_L.max()), float(damping_L.min())) for size, largest in seen.items())
    return Recommendation(damping, float(damping_L.min()), len(source), min(choices, key=lambda one: one.cost_rows), choices)


def _largest_seen(source: Source, batch_rows: int, draws: int, generator: np.random.Generator) -> float:
    start_1D = random_vectors(1, source, seed=0)
    batches = [generator.choice(len(source), batch_rows, replace=False).tolist() for _ in range(draws)]
    return max(largest_eigenvalue(batch_operator(source, batch), start_1D) for batch in batches)


def _choice(batch_rows: int, largest: float, start: float, damping_most: float, damping_least: float) -> Choice:
    doublings = max(0, math.ceil(math.log2((MARGIN * largest + damping_most) / start) - 1e-9))
    scale = start * 2**doublings
    return Choice(batch_rows, largest, scale, math.ceil(DECAY * scale / damping_least))
