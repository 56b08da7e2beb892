"""The verdict held against removal and retraining: fitted on two tasks, judged on the others.

    python -m benchmarks.verdict [--json] [--write] [--fresh SEED] [--work runs/verdict] [--processes 2] [--small]

Four tasks (a planted behaviour, facts that are said 2 to 36 times, classes of 3 to 100 rows, pieces of wikitext-2), two worlds of each, 42
queries in a world: most have their cause in some rows, a sixth have none, a sixth are the model's own answers to what no row is about. A
tiny language model is trained on each world's 300 rows and traced; the first ten rows of the primary method are a query's named group. What
the checks measure about it without training again is the evidence. The truth: the model is trained again, from the start with five seeds,
without the group, and without each of five random groups of ten rows. A group is a cause where the answer's log-probability falls further
without it than without random rows by two standard errors (over seeds, paired, and over random groups), and to less than half (.69 nats).

The work folder is gone on with where a call stopped. `--write` puts the records into the package: what its verdicts are fitted to.
`--fresh 4` makes one more world of each task, on which nothing was fitted or decided, and judges it by those records.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import record
from benchmarks.small import rounded
from benchmarks.verdict.judge import figures, fresh_figures
from benchmarks.verdict.world import PRIMARY, SMALL, Size, World, known_tasks, make_base
from headwater.atomic import write_json

SHIPPED = Path(__file__).parents[2] / "src" / "headwater" / "audit" / "calibration.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="record the result and print it as the last line")
    parser.add_argument("--write", action="store_true", help="put the records into the package")
    parser.add_argument("--fresh", type=int, metavar="SEED", help="make a further world of each task, and judge it by what was recorded")
    parser.add_argument("--work", type=Path, default=Path("runs/verdict"))
    parser.add_argument("--processes", type=int, default=2, help="trainings at a time, of one thread each")
    parser.add_argument("--small", action="store_true", help="a size at which nothing is learned: that the parts fit together")
    given = parser.parse_args()
    command = f"python -m benchmarks.verdict {' '.join(sys.argv[1:])}".strip()
    size = SMALL if given.small else Size()
    if given.fresh is not None:
        result = measure_fresh(given.work, size, given.fresh, processes=given.processes)
    else:
        result = measure(given.work, size, processes=given.processes)
    for name in ("auroc", "ece", "supported_true", "caused_supported", "uncaused_supported"):
        print(f"{name}: {result[name]}")
    if given.write and given.fresh is None:
        kept = ("id", "task", "world", "kind", "caused", "effect", "standard_error", "evidence")
        records = [{name: one[name] for name in kept} for one in result["records"]]
        write_json(SHIPPED, {"command": command, "method": PRIMARY, "rows": size.rows, "k": size.k, "records": records})
    if given.json:
        record("verdict" if given.fresh is None else "verdict_fresh", result, command)


def measure(work: Path, size: Size, *, processes: int = 1) -> dict[str, Any]:
    worlds, found = made(work, size, range(size.worlds), processes=processes)
    records = [one for world, evidence in zip(worlds, found, strict=True) for one in joined(world, evidence)]
    return rounded({"n_queries": len(records), **figures(records), "cost": cost(found, size), "records": records, "size": vars(size)})


def measure_fresh(work: Path, size: Size, seed: int, *, processes: int = 1) -> dict[str, Any]:
    """A further world of each task, judged by the records that the package has."""
    worlds, found = made(work, size, [seed], processes=processes)
    fresh = [one for world, evidence in zip(worlds, found, strict=True) for one in joined(world, evidence)]
    known = json.loads(SHIPPED.read_text(encoding="utf-8"))["records"]
    return rounded({**fresh_figures(known, fresh), "records": fresh, "size": vars(size)})


def made(work: Path, size: Size, seeds: Sequence[int], *, processes: int) -> tuple[list[World], list[dict[str, Any]]]:
    """Worlds with their truth, and each one's evidence."""
    torch.set_num_threads(1)
    make_base(work, size)
    worlds = [World(work, name, seed, size) for seed in seeds for name in known_tasks()]
    for world in worlds:
        world.trace()
    for world in worlds:
        world.truth(processes=processes)
    return worlds, [world.evidence() for world in worlds]


def joined(world: World, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Truth and evidence of each query; what is NaN is null."""
    outcomes = world.outcomes()
    evidence = {name: [None if np.isnan(value) else value for value in values] for name, values in found["evidence"].items()}
    return [
        {
            **outcome,
            "evidence": {name: values[q] for name, values in evidence.items()},
            "raw": {name: values[q] for name, values in found["raw"].items()},
        }
        for q, outcome in enumerate(outcomes)
    ]


def cost(measured: list[dict[str, Any]], size: Size) -> dict[str, float]:
    """Of a verdict without retraining: seconds a query beyond one training pass over the rows, in the dearest world and the median one."""
    beyond = [(sum(found["seconds"].values()) - found["training_pass_s"]) / size.queries for found in measured]
    return {"seconds_a_query": max(beyond), "median_seconds_a_query": float(np.median(beyond))}


if __name__ == "__main__":
    main()
