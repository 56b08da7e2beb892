"""From a set of kept rows to an outcome: one minimisation for each design and start, every query measured at its end.

Letters: S starts (seeds) · N training rows · Q queries; D designs where a name has N, S or Q behind it, parameters where it stands alone
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwater.progress import say, track
from headwater.truth.objective import Objective, Pair, half_square, total
from headwater.truth.optimum import Curved, Minimiser, Reached, Smooth
from headwater.types import Truth, TruthKind, UsageError

Problem = Callable[[Tensor], Smooth]
"""[N] how much each row's weight differs from 1 -> what is minimised."""


def retrained(
    objective: Objective,
    kept_DN: np.ndarray,
    minimise: Minimiser,
    *,
    starts: Sequence[Tensor] | None = None,
    row_change: float = -1.0,
    designs: Sequence[str] = (),
) -> Truth:
    """Training again without (`row_change` -1) the rows that a design leaves out: from the final weights (warm) or `starts` (cold) on.

        argmin J(theta) + row_change / N * sum_{m left out} L_m(theta)

    Outcomes are the queries' measures, in their unit, after each training; a start is a seed. N stays the number of all rows, as a
    removal's epsilon of -1/N says (Bae et al. 2022, section 2). Raises UsageError where the kept rows are not [designs, N] booleans.
    Cost: designs x starts minimisations.
    """

    def problem(change_N: Tensor) -> Smooth:
        return training_loss(objective, 1 + change_N)

    kind, chosen = ("warm", [objective.start_D]) if starts is None else ("cold", list(starts))
    return respond(objective, kept_DN, problem, minimise, starts=chosen, kind=kind, facts={"row_change": row_change}, designs=designs)


def training_loss(objective: Objective, weights_N: Tensor) -> Smooth:
    """`(1/N) sum_n weight_n L_n(theta) + decay/2 ||theta||^2`, with its Hessian where the objective has one of its rows' loss."""

    def value(theta_D: Tensor) -> Pair:
        return total(objective.loss(theta_D, weights_N), half_square(theta_D, objective.decay))

    of_rows = getattr(objective, "hessian", None)
    if of_rows is None:
        return value
    return Curved(value, lambda theta_D: of_rows(theta_D, weights_N) + objective.decay * torch.eye(len(theta_D)).to(theta_D))


def respond(
    objective: Objective,
    kept_DN: np.ndarray,
    problem: Problem,
    minimise: Minimiser,
    *,
    starts: Sequence[Tensor],
    kind: TruthKind,
    facts: Mapping[str, Any],
    designs: Sequence[str] = (),
) -> Truth:
    """The Truth of one problem. `facts` go into its recipe, "row_change" among them.

    A minimisation short of its tolerance has NaN outcomes, one that left the numbers is marked as diverged besides: what was not reached is
    not averaged in. The recipe's "optimisations" say of each how it ended, its gradient norm, its tolerance and its passes.
    """
    kept_DN, names = _checked(objective, kept_DN, designs)
    outcomes_DSQ = np.full((len(kept_DN), len(starts), len(objective.query_ids)), np.nan)
    ends: list[dict[str, Any]] = []
    diverged_DS = np.zeros(outcomes_DSQ.shape[:2], dtype=bool)
    for d, kept_N in track(enumerate(kept_DN), total=len(kept_DN), description=f"{kind} responses"):
        change_N = facts["row_change"] * torch.from_numpy(~kept_N).to(objective.start_D)
        for s, start_D in enumerate(starts):
            reached = minimise(problem(change_N), start_D)
            ends.append(_end(names[d], s, reached))
            diverged_DS[d, s] = reached.status == "diverged"
            if reached.usable:
                outcomes_DSQ[d, s] = objective.measures(reached.theta_D).cpu().double().numpy()
    _warn(ends)
    return Truth(
        outcomes_DSQ=outcomes_DSQ,
        kept_DN=kept_DN,
        train_ids=objective.train_ids,
        query_ids=objective.query_ids,
        seeds=tuple(range(len(starts))),
        kind=kind,
        unit=objective.unit,
        designs=names,
        diverged_DS=diverged_DS,
        recipe={**facts, "minimiser": _described(minimise), "optimisations": ends},
    )


def checked_damping(damping: float | Tensor, objective: Objective) -> float | Tensor:
    """Damping as it was given. Raises UsageError unless it is positive: one number, or one for each parameter."""
    values = torch.as_tensor(damping)
    if values.dim() > 1 or (values.dim() == 1 and len(values) != len(objective.start_D)) or not bool((values > 0).all()):
        raise UsageError(
            f"damping is {damping if values.dim() == 0 else tuple(values.shape)}, expected a number above 0 or one for each of the "
            f"{len(objective.start_D)} parameters, in the unit of the mean loss's curvature"
        )
    return damping


def damping_fact(damping: float | Tensor) -> Any:
    """What a recipe says of a damping: the number, or the ends of its range."""
    if isinstance(damping, Tensor) and damping.dim():
        return {"least": float(damping.min()), "largest": float(damping.max())}
    return float(damping)


def _checked(objective: Objective, kept_DN: np.ndarray, designs: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    kept_DN = np.asarray(kept_DN)
    if kept_DN.ndim != 2 or kept_DN.dtype != bool or kept_DN.shape[1] != len(objective.train_ids):
        raise UsageError(f"kept rows are {kept_DN.dtype} {kept_DN.shape}, expected booleans [designs, {len(objective.train_ids)} rows]")
    if designs and len(designs) != len(kept_DN):
        raise UsageError(f"{len(designs)} names for {len(kept_DN)} designs, expected one each")
    return kept_DN, tuple(designs) or tuple(_name(objective, kept_N) for kept_N in kept_DN)


def _name(objective: Objective, kept_N: np.ndarray) -> str:
    left_out = np.flatnonzero(~kept_N)
    return "without/" + ",".join(objective.train_ids[n] for n in left_out) if len(left_out) else "all"


def _end(design: str, seed: int, reached: Reached) -> dict[str, Any]:
    facts = {"status": reached.status, "gradient_norm": reached.gradient_norm, "tolerance": reached.tolerance, "passes": reached.passes}
    return {"design": design, "seed": seed, **facts}


def _warn(ends: Sequence[Mapping[str, Any]]) -> None:
    short = [end for end in ends if end["status"] not in ("converged", "ran")]
    if short:
        say(
            f"{len(short)} of {len(ends)} minimisations did not reach their tolerance (the first, {short[0]['design']}, ended at a "
            f"gradient norm of {short[0]['gradient_norm']:.3g}, tolerance {short[0]['tolerance'] or 0:.3g}): their outcomes are NaN. "
            "More steps, more damping, float64 or a larger tolerance may help."
        )


def _described(minimise: Minimiser) -> dict[str, Any]:
    options = asdict(minimise) if is_dataclass(minimise) and not isinstance(minimise, type) else {}
    return {"name": type(minimise).__name__, **options}
