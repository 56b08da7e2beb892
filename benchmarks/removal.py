"""Removal after Han et al. 2020: does the decision move when the tenth of the rows of highest influence goes, and not when others go?

    python -m benchmarks.removal [--json] [--rows 200] [--queries 10] [--seeds 8] [--draws 3] [--steps 200]

A tanh network of width 10 learns three overlapping Gaussian classes. For each query the measure is the log-probability of the class that
the network itself chose. Its rows' influence on that is by the exact damped Gauss-Newton matrix of one training. Then the network is
trained from other starts without the tenth of highest influence, of lowest, of the smallest in absolute value, and without random
tenths; the change is against the same start's training on all rows. What is said of it comes from `headwater.evaluate.removal`: further
down than random by two standard errors over seeds and draws, or "undetermined". Four worlds, so that one lucky draw of data is no answer.

N rows · Q queries · D designs · S seeds
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.record import record
from benchmarks.small import RootRows, Tanh, cross_entropy, query_gradients, rounded, row_gradients, trained_together, typed
from headwater.evaluate.removal import removal_curve, separation
from headwater.truth.objective import SmallModel
from headwater.types import Scores, Truth

INPUTS, CLASSES, WIDTH, SPREAD = 4, 3, 10, 1.0
DAMPING, DECAY, SHARE = 1e-2, 1e-3, 0.1
WORLDS = 4


@dataclass(frozen=True)
class Size:
    rows: int = 200
    queries: int = 10
    seeds: int = 8
    draws: int = 3
    steps: int = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="record the result and print it as the last line")
    for name, value in vars(Size()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = vars(parser.parse_args())
    torch.set_num_threads(1)
    result = measure(Size(**{name: value for name, value in given.items() if name != "json"}))
    for world in result["worlds"]:
        print(*(f"{point['pick']} {point['change']} +- {point['standard_error']}" for point in world["points"]), sep=" · ")
        print(world["because"])
    if given["json"]:
        record("removal", result, typed("removal"))


def measure(size: Size, *, worlds: Sequence[int] = range(WORLDS)) -> dict[str, Any]:
    found = [one_world(size, world) for world in worlds]
    separated = sum(world["status"] == "ok" for world in found)
    return rounded({"worlds": found, "separated": separated, "of": len(found), "size": vars(size)})


def one_world(size: Size, world: int) -> dict[str, Any]:
    scores, truth = tables(size, world)
    points = removal_curve(scores, truth)
    (finding,) = separation(points)
    facts = {"status": finding.status, "because": finding.because, "most_less_random": finding.value, "interval": finding.interval}
    return {"world": world, **facts, "points": [point.to_json() for point in points]}


def tables(size: Size, world: int) -> tuple[Scores, Truth]:
    """Influence on each query's decision, and the same decisions after trainings without chosen rows."""
    rng, net = np.random.default_rng((world, 0)), Tanh((INPUTS, WIDTH, CLASSES))
    centres = SPREAD * rng.normal(size=(CLASSES, INPUTS))
    y, asked = (np.arange(n) % CLASSES for n in (size.rows, size.queries))
    x_NI, queries_QI = (torch.from_numpy(centres[labels] + rng.normal(size=(len(labels), INPUTS))) for labels in (y, asked))
    y_N = torch.from_numpy(y)

    def trained(kept_SN: np.ndarray, seeds: Sequence[int]) -> torch.Tensor:
        starts = [(world, 1, seed) for seed in seeds]
        return trained_together(net, x_NI, y_N, kept_SN, starts, steps=size.steps, decay=DECAY)

    (final_D,) = trained(np.ones((1, size.rows), dtype=bool), [size.seeds])
    chosen_Q = net(final_D, queries_QI).argmax(1)
    model = SmallModel(
        lambda t: net(t, x_NI), cross_entropy(y_N), lambda t: -cross_entropy(chosen_Q)(net(t, queries_QI)), final_D, decay=DECAY
    )
    values_QN = influence(model)
    designs = removals(values_QN, size, rng)
    kept_DN = np.stack(list(designs.values()))
    pairs = [(d, s) for d in range(len(kept_DN)) for s in range(size.seeds)]
    theta_SD = trained(kept_DN[[d for d, _ in pairs]], [s for _, s in pairs])
    outcomes = torch.stack([model.measures(theta_D) for theta_D in theta_SD]).numpy()
    query_ids, train_ids = tuple(f"query-{q}" for q in range(size.queries)), tuple(f"row-{n}" for n in range(size.rows))
    truth = Truth(
        outcomes_DSQ=outcomes.reshape(len(kept_DN), size.seeds, -1),
        kept_DN=kept_DN,
        train_ids=train_ids,
        query_ids=query_ids,
        seeds=tuple(range(size.seeds)),
        kind="cold",
        unit="nats",
        designs=tuple(designs),
    )
    return Scores(values_QN, query_ids, train_ids, "exact damped Gauss-Newton", "nats"), truth


def influence(model: SmallModel) -> np.ndarray:
    """[Q, N] `- (1/N) grad m (G + damping)^-1 grad L`."""
    matrix_DD = RootRows.of(model).matrix() + (DAMPING + model.decay) * torch.eye(len(model.start_D), dtype=torch.float64)
    solved_QD = torch.linalg.solve(matrix_DD, query_gradients(model).T).T
    return -(solved_QD @ row_gradients(model).T).numpy() / len(model.train_ids)


def removals(values_QN: np.ndarray, size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Kept rows [N] by design: all; each query's tenth of most, least and least absolute influence; random tenths."""
    k = round(SHARE * size.rows)
    designs = {"all": np.ones(size.rows, dtype=bool)}
    for q, values_N in enumerate(values_QN):
        for name, key_N in (("most", -values_N), ("least", values_N), ("zero", np.abs(values_N))):
            designs[f"{name}/{k}/{q}"] = _without(np.argsort(key_N, kind="stable")[:k], size.rows)
    return designs | {f"random/{k}/{i}": _without(rng.permutation(size.rows)[:k], size.rows) for i in range(size.draws)}


def _without(gone: np.ndarray, n_rows: int) -> np.ndarray:
    kept_N = np.ones(n_rows, dtype=bool)
    kept_N[gone] = False
    return kept_N


if __name__ == "__main__":
    main()
