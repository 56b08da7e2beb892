"""The proximal response: where training goes without some rows when it is held near the final weights.

Letters: N training rows; D designs in `kept_DN`, parameters elsewhere
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from headwater.truth.objective import Objective, half_square, total
from headwater.truth.optimum import LBFGS, Minimiser, Smooth
from headwater.truth.response import checked_damping, damping_fact, respond
from headwater.types import Truth

PRECISE = LBFGS()


def proximal(
    objective: Objective,
    kept_DN: np.ndarray,
    *,
    damping: float | Tensor,
    row_change: float = -1.0,
    minimise: Minimiser = PRECISE,
    designs: Sequence[str] = (),
) -> Truth:
    """The optimum of the training objective with a changed weight of some rows and a pull to theta_s.

        argmin J(theta) + row_change / N * sum_{m left out} L_m(theta) + damping/2 ||theta - theta_s||^2

    `row_change` -1 removes the rows that a design leaves out, +1 counts them twice; damping is in the unit of J's curvature, one number
    or one for each parameter. Where theta_s is not at J's minimum, training goes on here even with every row kept (the design "all").
    Outcomes: every query's measure at the optimum, in its unit. Raises UsageError for a damping that is not positive. Cost: one
    minimisation for each design, some ten to hundred passes over the rows.
    Source: Bae et al. 2022 (arXiv 2209.05364), the proximal response.
    """
    checked_damping(damping, objective)

    def problem(change_N: Tensor) -> Smooth:
        return lambda theta_D: total(
            objective.loss(theta_D, 1 + change_N),
            half_square(theta_D, objective.decay),
            half_square(theta_D, damping, objective.start_D),
        )

    facts = {"damping": damping_fact(damping), "row_change": row_change}
    return respond(objective, kept_DN, problem, minimise, starts=[objective.start_D], kind="proximal", facts=facts, designs=designs)
