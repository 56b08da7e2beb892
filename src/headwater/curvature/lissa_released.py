"""The recursion that the paper's released code runs under the name of LiSSA: for reproducing its figures, and for nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from headwater.curvature.damping import RULE, Damping
from headwater.curvature.operators import (
    check_counts,
    check_width,
    finite_blocks,
    fisher_operator,
    mean_eigenvalues,
    residual_where_cheap,
    spread,
    working,
)
from headwater.types import Solve, Source, State

SCALE = 1000.0


@dataclass(frozen=True)
class LiSSAReleased:
    """`x <- v + x - (1/N) sum_n [(g_n.x) g_n - lambda x] / 1000`, `steps` times from x = v, per block of the layout.

    Li et al. 2024 (arXiv 2409.19998) as released, `steps` = 3, or 10 as the paper says; lambda is a tenth of the mean square of the
    rows' entries. Not an inverse: the damping has the wrong sign, and with a curvature far below 1000 the result is (steps + 1) v, the
    plain gradient product. Its status is always `max_steps`; its residual on the empirical Fisher says how far it is from a solution.
    Cost: one scan to fit, one a step, one for the residual.
    """

    damping: float | str = RULE
    steps: int = 3

    name = "lissa_released"
    summary = "for the study only: the released LiSSA, its damping of the wrong sign and nearly (steps + 1) v"
    reference = "Li et al. 2024, arXiv 2409.19998, released code"
    cost = "one scan; as many scans as steps a solve"

    def __post_init__(self) -> None:
        check_counts(self.name, steps=self.steps)

    def fit(self, source: Source) -> State:
        means_L = mean_eigenvalues(finite_blocks(source), source.layout)
        return {"damping": Damping.parse(self.damping).resolve(means_L)}

    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        check_width(b_KD, source.layout)
        v_KD = working(b_KD, source)
        operator, damping_D = fisher_operator(source, joint=False), spread(state["damping"], source.layout).to(v_KD)
        x_KD = v_KD
        for _ in range(self.steps):
            x_KD = v_KD + x_KD - (operator(x_KD) - damping_D * x_KD) / SCALE
        return Solve(x_KD.to(b_KD), "max_steps", self.steps, **residual_where_cheap(state, source, v_KD, x_KD))
