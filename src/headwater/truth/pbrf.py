"""The proximal Bregman response function (PBRF): what influence functions approximate.

Letters: N training rows; D designs in `kept_DN`, parameters elsewhere
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from headwater.truth.objective import Objective, half_square, total
from headwater.truth.optimum import Minimiser, Smooth
from headwater.truth.proximal import PRECISE
from headwater.truth.response import checked_damping, damping_fact, respond
from headwater.types import Truth


def pbrf(
    objective: Objective,
    kept_DN: np.ndarray,
    *,
    damping: float | Tensor,
    row_change: float = -1.0,
    minimise: Minimiser = PRECISE,
    designs: Sequence[str] = (),
) -> Truth:
    """The optimum that unlearns some rows while every other prediction, and the weights, stay close to those of theta_s.

        argmin (1/N) sum_n D_n(h_n(theta), h_n(theta_s)) + row_change / N * sum_{m left out} L_m(theta) + damping/2 ||theta - theta_s||^2

    D_n is the loss's Bregman divergence in the outputs h: KL(p_s || p) for cross-entropy, whose target cancels; half the squared change
    for a squared loss. theta_s need be no minimum: with every row kept (the design "all") it is the optimum. To first order in
    1/N the response is `-row_change / N (G + damping)^-1 grad L_m`, G the Gauss-Newton matrix: the influence function; exactly so for
    outputs linear in theta and a squared loss, but for the removed row's own curvature.

    `row_change` -1 removes the rows that a design leaves out, +1 counts them twice. Outcomes: every query's measure at the optimum, in its
    unit. Raises UsageError for a damping that is not positive. Cost: one minimisation for each design, some ten to hundred passes over
    the rows, and whatever the number of queries.
    Source: Bae et al. 2022 (arXiv 2209.05364), the proximal Bregman objective; Grosse et al. 2023 (arXiv 2308.03296), eq. 7-9.
    """
    checked_damping(damping, objective)

    def problem(change_N: Tensor) -> Smooth:
        return lambda theta_D: total(objective.divergence(theta_D, change_N), half_square(theta_D, damping, objective.start_D))

    facts = {"damping": damping_fact(damping), "row_change": row_change}
    return respond(objective, kept_DN, problem, minimise, starts=[objective.start_D], kind="pbrf", facts=facts, designs=designs)
