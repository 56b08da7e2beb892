"""Why an influence estimate and training again differ: five gaps on a network that has all six numbers, and where there must be none.

    python -m benchmarks.pbrf [--json] [--seeds 4] [--rows 150] [--steps 300] [--removals 25] [--queries 20] [--subsets 64] [--kept F]

A tanh network 6-12-12-1 learns 150 points by 300 steps of gradient descent: it is not at its minimum, which is the point. For 25 removals
and 20 queries (the network's output) there are: trainings from another initialisation and from the same one (cold), from the final
weights (warm, 300 steps more), the proximal response, PBRF, the exact `(G + damping)^-1`, and LiSSA. At damping .01 the estimate has to be
near PBRF and far from cold training; at .001 (the first seed only) a removed row is too large a step, and the table has to show it; LiSSA
cut short after three steps has to move the solver's gap alone. Correlations are over removals, in the mean over queries and seeds.
Beside it, ridge regression, where influence over one less the leverage is leave-one-out, and softmax regression, where influence predicts
half-subsets, the better the more rows there are: what it leaves out is of second order.

N rows · M removals · Q queries · S subsets · D parameters
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import record
from benchmarks.small import (
    RootRows,
    Tanh,
    at_minimum,
    changes,
    cross_entropy,
    mean_agreement,
    query_gradients,
    resumed,
    rounded,
    row_gradients,
    squared_loss,
    typed,
    without,
)
from headwater.curvature import LiSSA
from headwater.evaluate.gaps import STATIONS, Gaps, gaps
from headwater.truth.objective import SmallModel
from headwater.truth.optimum import LBFGS, Descent
from headwater.truth.pbrf import pbrf
from headwater.truth.proximal import proximal
from headwater.truth.response import retrained
from headwater.types import Truth

DAMPINGS = (1e-2, 1e-3)
RATE, NOISE = 0.1, 0.1
PATIENT = LBFGS(relative=1e-4, max_steps=3000, memory=60)  # at the small damping it takes thousands of steps
LOGISTIC_ROWS = (150, 300, 600, 1200)
TELESCOPES, CLOSE, FURTHER, SHARE = 1e-10, 0.85, 0.3, 0.1
EXPECTED = {
    "0.01": {"warm_start": 0.168, "warm_start, same start": 0.047, "proximity": 0.020, "non_convergence": 0.037, "linearisation": 0.0028,
             "solver_error": 0.0011, "pbrf": 0.91, "proximal": 0.60, "warm": 0.54, "cold, same start": 0.43, "cold": 0.20},
    "0.001": {"linearisation": 0.016, "pbrf": 0.61},
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    rows: int = 150
    steps: int = 300
    removals: int = 25
    queries: int = 20
    subsets: int = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="record the result and print it as the last line")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--kept", type=Path, help="a file of finished parts, to go on from")
    for name, value in vars(Size()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(given.rows, given.steps, given.removals, given.queries, given.subsets)
    result = measure(size, seeds=range(given.seeds), kept=given.kept)
    show(result)
    if given.json:
        record("pbrf", result, typed("pbrf"))


def measure(size: Size, *, seeds: Sequence[int], kept: Path | None = None) -> dict[str, Any]:
    jobs: dict[str, Callable[[], Any]] = {}
    for seed in seeds:
        jobs |= {f"{seed}/{damping}": partial(network, size, seed, damping) for damping in dampings(seed, seeds)}
        jobs |= {f"{seed}/ridge": partial(ridge, size, seed=seed)}
        jobs |= {f"{seed}/logistic/{n}": partial(logistic, replace(size, rows=n), seed=seed) for n in LOGISTIC_ROWS}
    done = resumed(jobs, kept=kept)
    found = [{"seed": seed} | {str(damping): done[f"{seed}/{damping}"] for damping in dampings(seed, seeds)} for seed in seeds]
    lds = {str(n): _mean([done[f"{seed}/logistic/{n}"] for seed in seeds]) for n in LOGISTIC_ROWS}
    closed = {"ridge": _mean([done[f"{seed}/ridge"] for seed in seeds]), "logistic_lds": lds}
    means = {str(damping): _mean([one[str(damping)] for one in found if str(damping) in one]) for damping in DAMPINGS}
    main_one = means[str(DAMPINGS[0])]["pearson"]
    heads = {"pearson_with_pbrf": main_one["pbrf"], "pearson_with_cold_training": main_one["cold"]}
    result = {**heads, **means, **closed, "by_seed": found, "expected": EXPECTED, "size": vars(size)}
    return rounded({**result, "accepted": accepted(result)})


def dampings(seed: int, seeds: Sequence[int]) -> tuple[float, ...]:
    """The small damping, whose minimisations are long, on the first seed only."""
    return DAMPINGS if seed == seeds[0] else DAMPINGS[:1]


def accepted(result: dict[str, Any]) -> dict[str, bool]:
    """What was asked for, each with whether it was reached: the mean over seeds where a correlation is meant."""
    main_one, each = result["0.01"], [one[name] for one in result["by_seed"] for name in one if name != "seed"]
    return {
        "telescoping 1e-10, every seed and damping": all(one["telescoping_error"] <= TELESCOPES for one in each),
        "Pearson with PBRF >= .85": main_one["pearson"]["pbrf"] >= CLOSE,
        "at least .3 above Pearson with cold training": main_one["pearson"]["pbrf"] - main_one["pearson"]["cold"] >= FURTHER,
        "(linearisation + solver) / the other three <= .1": main_one["ratio"] <= SHARE,
        "a broken solver moves its term and no other": all(one["broken"]["others_moved"] == 0 for one in each)
        and main_one["broken"]["solver_error"] > 10 * main_one["sizes"]["solver_error"],
        "damping .001 shows what breaks": result["0.001"]["sizes"]["linearisation"] > 2 * main_one["sizes"]["linearisation"],
        "ridge 1e-6": result["ridge"]["largest_relative_error"] <= 1e-6,
        "logistic LDS >= .95 from 300 rows on": all(one["lds"] >= 0.95 for n, one in result["logistic_lds"].items() if int(n) >= 300),
    }


def show(result: dict[str, Any]) -> None:
    for damping in map(str, DAMPINGS):
        print(f"damping {damping}: {result[damping]}")
    for name in ("ridge", "logistic_lds", "accepted"):
        print(f"{name:12} {result[name]}")


# --------------------------------------------------------------------------------------------------------- the network


def network(size: Size, seed: int, damping: float) -> dict[str, Any]:
    net = Tanh((6, 12, 12, 1))
    rng = np.random.default_rng((seed, 0))
    x_NI, queries_QI = (torch.from_numpy(rng.normal(size=(n, 6))) for n in (size.rows, size.queries))
    y_N = torch.sin(x_NI @ torch.from_numpy(rng.normal(size=6))) + NOISE * torch.from_numpy(rng.normal(size=size.rows))
    first_D, other_D = (net.drawn((seed, k)) for k in (1, 2))

    def at(theta_D: Tensor) -> SmallModel:
        return SmallModel(lambda t: net(t, x_NI), squared_loss(y_N), lambda t: net(t, queries_QI)[:, 0], theta_D, unit=None)

    descent = Descent(size.steps, RATE)
    model, kept_MN = at_minimum(at(first_D), descent), without(size.rows, rng.choice(size.rows, size.removals, replace=False))
    trainings = {
        "cold": retrained(model, kept_MN, descent, starts=[other_D]),
        "cold, same start": retrained(model, kept_MN, descent, starts=[first_D]),
        "warm": retrained(model, kept_MN, descent),
    }
    return judged(model, kept_MN, trainings, damping)


def judged(model: SmallModel, kept_MN: np.ndarray, trainings: dict[str, Truth], damping: float) -> dict[str, Any]:
    before_Q = model.measures(model.start_D)
    truths = trainings | {kind.__name__: kind(model, kept_MN, damping=damping, minimise=PATIENT) for kind in (proximal, pbrf)}
    tables = {name: changes(truth, before_Q) for name, truth in truths.items()}
    tables |= estimates(model, kept_MN, damping)
    whole = _gaps(tables)
    same, broken = (_gaps(tables | {old: tables[new]}) for old, new in (("cold", "cold, same start"), ("solver", "broken")))
    return {
        **whole.to_json(),
        "ratio_interval": list(whole.ratio_interval()),
        "reading": whole.reading().because,
        "warm_start, same start": same.sizes["warm_start"],
        "broken": {
            "solver_error": broken.sizes["solver_error"],
            "others_moved": max(abs(broken.sizes[name] - whole.sizes[name]) for name in whole.sizes if name != "solver_error"),
            "reading": broken.reading().because,
        },
        **{name: {other: mean_agreement(tables["exact"].T, tables[other].T)[name] for other in truths} for name in ("pearson", "spearman")},
        "unconverged": {name: int(np.isnan(table).all(1).sum()) for name, table in tables.items()},
    }


def _gaps(tables: dict[str, np.ndarray]) -> Gaps:
    return gaps(**{f"{name}_DQ": tables[name] for name in STATIONS}, unit=None)


def estimates(model: SmallModel, kept_MN: np.ndarray, damping: float) -> dict[str, np.ndarray]:
    """[M, Q] predicted changes, `+ (1/N) grad f (G + damping)^-1 grad L_m` for a removal, by an exact solve, LiSSA, and LiSSA cut short."""
    source, queries_QD = RootRows.of(model), query_gradients(model)
    removed_MD = torch.stack([row_gradients(model)[~torch.from_numpy(kept_N)].sum(0) for kept_N in kept_MN])
    eye_DD = torch.eye(len(model.start_D), dtype=torch.float64)
    solved = {"exact": torch.linalg.solve(source.matrix() + damping * eye_DD, queries_QD.T).T}
    for name, lissa in (("solver", LiSSA(damping, max_steps=5000)), ("broken", LiSSA(damping, max_steps=3))):
        solved[name] = lissa.solve(lissa.fit(source), source, queries_QD).value
    return {name: (removed_MD @ x_QD.T / kept_MN.shape[1]).numpy() for name, x_QD in solved.items()}


# ----------------------------------------------------------------------------------- where influence has to be right


def ridge(size: Size, *, seed: int, inputs: int = 6, decay: float = 0.05) -> dict[str, float]:
    """Leave-one-out of ridge regression by minimisation, against influence over one less the row's leverage."""
    rng = np.random.default_rng((seed, 3))
    x_NI, queries_QI = (torch.from_numpy(rng.normal(size=(n, inputs))) for n in (size.rows, size.queries))
    y_N = x_NI @ torch.from_numpy(rng.normal(size=inputs)) + torch.from_numpy(rng.normal(size=size.rows))
    matrix_II = x_NI.T @ x_NI / size.rows + decay * torch.eye(inputs, dtype=torch.float64)
    theta_I = torch.linalg.solve(matrix_II, x_NI.T @ y_N / size.rows)
    model = SmallModel(lambda t: (x_NI @ t)[:, None], squared_loss(y_N), lambda t: queries_QI @ t, theta_I, decay=decay, unit=None)
    kept_MN = without(size.rows, range(size.removals))
    truth_MQ = changes(retrained(model, kept_MN, LBFGS(relative=1e-9)), model.measures(theta_I))
    influence_MQ = (row_gradients(model) @ torch.linalg.solve(matrix_II, queries_QI.T) / size.rows).numpy()[: size.removals]
    leverage_M = (torch.linalg.solve(matrix_II, x_NI.T).T * x_NI).sum(1).numpy()[: size.removals] / size.rows
    found = {"largest_relative_error": influence_MQ / (1 - leverage_M)[:, None], "without the leverage": influence_MQ}
    return {name: float(np.abs(one_MQ - truth_MQ).max() / np.abs(truth_MQ).max()) for name, one_MQ in found.items()}


def logistic(size: Size, *, seed: int, inputs: int = 10, classes: int = 3, decay: float = 0.01) -> dict[str, Any]:
    """LDS of influence with the exact Hessian on a softmax regression: half-subsets, each trained to its minimum."""
    rng = np.random.default_rng((seed, 4))
    net = Tanh((inputs, classes))
    x_NI, queries_QI = (torch.from_numpy(rng.normal(size=(n, inputs))) for n in (size.rows, size.queries))
    true_D = 2 * net.drawn((seed, 5))
    y_N, labels_Q = (torch.from_numpy(_sampled(rng, net(true_D, inputs_).softmax(1).numpy())) for inputs_ in (x_NI, queries_QI))
    first_D = net.drawn((seed, 6))
    start = SmallModel(
        lambda t: net(t, x_NI), cross_entropy(y_N), lambda t: -cross_entropy(labels_Q)(net(t, queries_QI)), first_D, decay=decay
    )
    model = at_minimum(start, LBFGS(relative=1e-10))
    kept_SN = np.stack([rng.permutation(size.rows) < size.rows // 2 for _ in range(size.subsets)])
    outcomes_SQ = retrained(model, kept_SN, LBFGS()).outcomes_DSQ[:, 0]
    matrix_DD = RootRows.of(model).matrix() + decay * torch.eye(net.size, dtype=torch.float64)
    scores_NQ = -(row_gradients(model) @ torch.linalg.solve(matrix_DD, query_gradients(model).T) / size.rows).numpy()
    found = mean_agreement((kept_SN @ scores_NQ).T, outcomes_SQ.T)
    return {"lds": found["spearman"], "pearson": found["pearson"], "undetermined": found["undetermined"]}


def _sampled(rng: np.random.Generator, p_NO: np.ndarray) -> np.ndarray:
    return np.array([rng.choice(len(p_O), p=p_O) for p_O in p_NO])


def _mean(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over seeds of the numbers at the same place, None (undetermined) left out; text and lists stay with their seeds."""
    keys = [key for key, value in found[0].items() if not isinstance(value, str | list)]
    return {key: _mean_of([one[key] for one in found]) for key in keys}


def _mean_of(values: list[Any]) -> Any:
    known = [value for value in values if value is not None]
    if known and isinstance(known[0], dict):
        return _mean(known)
    return float(np.mean(known)) if known else None


if __name__ == "__main__":
    main()
