"""How often the interval of a linear datamodeling score holds the truth, by simulation where the truth is known.

`python -m benchmarks.coverage [--json] [--studies 1000] [--seed 0] [--world NAME ...]`

With `--world` only these are simulated, and `--json` keeps the others' lines of the same studies and seed that are recorded already.

A study draws D half subsets and Q queries. The outcome of a subset for a query is the sum of true effects over its rows, plus noise that
all queries share in that retrained model (a lucky seed), plus noise of the pair. The prediction is the sum of scores: the true effects
plus an error of the method's, of which queries differ in size. True is the mean over the queries' population of the correlation over the
subsets' population: it is computed from 20 times 3,000 subsets and 1,000 queries of the same world. Then: how many of the studies' 95 %
intervals hold it, by the two-way interval, by a plain two-way bootstrap of the same table (percentiles), and by a bootstrap over queries
alone.

D subsets · Q queries · N training rows
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from benchmarks.record import RESULTS, record
from headwater.evaluate.agreement import agreement
from headwater.evaluate.two_way import measured, query_only, resampled_means, two_way_figure
from headwater.progress import track

N_ROWS = 60
POPULATION_SUBSETS, POPULATION_QUERIES, POPULATIONS = 3000, 1000, 20


@dataclass(frozen=True)
class World:
    """What is drawn: sizes, how much all queries share of a retrained model's noise, of the method's error, and how queries differ."""

    name: str
    n_subsets: int
    n_queries: int
    shared_noise: float  # of a retrained model, the same direction for all queries, in units of the effect's spread
    noise: float  # of each pair
    error: float  # of the method's scores, in units of the true effects' spread
    spread: float  # of that error over queries (log-normal)
    common: float  # share of the effects that all queries have in common


WORLDS = (
    World("shared noise", 64, 60, 1.0, 0.5, 0.5, 0.5, 0.5),
    World("independent queries", 64, 60, 0.0, 1.5, 1.0, 0.0, 0.0),
    World("queries differ", 100, 30, 0.5, 0.5, 1.0, 1.0, 0.2),
    World("few of both", 32, 20, 0.7, 0.7, 0.7, 0.5, 0.5),
    World("no agreement", 64, 60, 1.0, 0.5, 30.0, 0.0, 0.5),
    World("strong agreement", 64, 60, 0.2, 0.2, 0.2, 0.3, 0.5),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="record the result and print it as the last line")
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--world", action="append", choices=[world.name for world in WORLDS], help="this one only; may be repeated")
    arguments = parser.parse_args()
    studies, seed = arguments.studies, arguments.seed
    chosen = [(place, world) for place, world in enumerate(WORLDS) if arguments.world is None or world.name in arguments.world]
    lines = [simulate(world, studies, np.random.default_rng([seed, place])) for place, world in chosen]
    for line in lines:
        print("  ".join(f"{name} {value}" for name, value in line.items()))
    if arguments.json:
        record(
            "coverage",
            summed(lines, recorded(studies, seed), studies, seed),
            f"python -m benchmarks.coverage --json --studies {studies} --seed {seed}",
        )


def recorded(studies: int, seed: int) -> list[dict[str, Any]]:
    path = RESULTS / "coverage.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return known["worlds"] if (known.get("studies"), known.get("seed")) == (studies, seed) else []


def summed(lines: list[dict[str, Any]], before: list[dict[str, Any]], studies: int, seed: int) -> dict[str, Any]:
    """The lowest and highest coverage over worlds, and every world's line, new ones in the place of old ones."""
    by_name = {line["world"]: line for line in [*before, *lines]}
    worlds = [by_name[world.name] for world in WORLDS if world.name in by_name]
    return {
        "studies": studies,
        "seed": seed,
        "lowest": min(line["two_way"] for line in worlds),
        "highest": max(line["two_way"] for line in worlds),
        "query_only_lowest": min(line["query_only"] for line in worlds),
        "worlds": worlds,
    }


def simulate(world: World, studies: int, rng: np.random.Generator) -> dict[str, Any]:
    truth = true_score(world, rng)
    held = {"two_way": 0, "plain_two_way": 0, "query_only": 0}
    width = {"two_way": 0.0, "plain_two_way": 0.0, "query_only": 0.0}
    for study in track(range(studies), total=studies, description=world.name):
        predicted_DQ, outcome_DQ = draw(world, world.n_subsets, world.n_queries, rng)
        for name, (low, high) in intervals(predicted_DQ, outcome_DQ, study).items():
            held[name] += low <= truth <= high
            width[name] += (high - low) / studies
    shares = {name: round(count / studies, 4) for name, count in held.items()}
    widths = {f"width_{name}": round(value, 4) for name, value in width.items()}
    return {"world": world.name, "true": round(truth, 4), **shares, **widths, **{k: v for k, v in asdict(world).items() if k != "name"}}


def intervals(predicted_DQ: np.ndarray, outcome_DQ: np.ndarray, seed: int) -> dict[str, tuple[float, float]]:
    table = agreement(predicted_DQ, outcome_DQ, kind="spearman")
    plain_B = table.value + resampled_means(table, seed=seed) - np.nanmean(measured(table))
    both, alone = two_way_figure(table, seed=seed, correlation=True).interval, query_only(table, seed=seed).interval
    assert both is not None
    assert alone is not None
    return {"two_way": both, "plain_two_way": tuple(np.quantile(plain_B, [0.025, 0.975])), "query_only": alone}


def draw(world: World, n_subsets: int, n_queries: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and outcomes [D, Q] of one study. What queries have in common is the world's, the same in every study."""
    common_N = np.random.default_rng(12345).standard_normal(N_ROWS)
    own_QN = rng.standard_normal((n_queries, N_ROWS))
    effects_QN = np.sqrt(world.common) * common_N + np.sqrt(1 - world.common) * own_QN
    size_Q = world.error * np.exp(world.spread * rng.standard_normal(n_queries) - world.spread**2 / 2)
    scores_QN = effects_QN + size_Q[:, None] * rng.standard_normal((n_queries, N_ROWS))
    kept_DN = rng.permuted(np.tile(np.arange(N_ROWS) < N_ROWS // 2, (n_subsets, 1)), axis=1)
    unit = np.sqrt(N_ROWS) / 2  # the spread of a half subset's sum
    shared_D, loading_Q = rng.standard_normal(n_subsets), 1 + 0.3 * rng.standard_normal(n_queries)
    noise_DQ = world.shared_noise * shared_D[:, None] * loading_Q + world.noise * rng.standard_normal((n_subsets, n_queries))
    return kept_DN @ scores_QN.T, kept_DN @ effects_QN.T + unit * noise_DQ


def true_score(world: World, rng: np.random.Generator) -> float:
    """The mean over queries of Spearman's correlation in the population, from very many of both."""
    return float(np.mean([_score(*draw(world, POPULATION_SUBSETS, POPULATION_QUERIES, rng)) for _ in range(POPULATIONS)]))


def _score(predicted_DQ: np.ndarray, outcome_DQ: np.ndarray) -> float:
    ranks = [rankdata(table, axis=0) - (POPULATION_SUBSETS + 1) / 2 for table in (predicted_DQ, outcome_DQ)]
    spreads = [np.sqrt((table**2).sum(0)) for table in ranks]
    return float(((ranks[0] * ranks[1]).sum(0) / (spreads[0] * spreads[1])).mean())


if __name__ == "__main__":
    main()
