"""Headwater beside its peers: cost in training passes, memory, agreement of the scores, on one workload in one run.

    python -m benchmarks.peers [--json] [--rows 1000] [--peer-rows 200] [--full] [--repeats 1] [--threads 2] [--only ENGINE ...]

One pass is a plain forward and backward pass over the same rows in length-sorted batches of 8, timed in the engine's own process around its
job. Each engine is given sorted rows and the best settings that we know of; the notes say which. The exact methods of the peers are run on
`--peer-rows` rows, and as many queries for each row, to keep the run below ten minutes on two cores; ours are run on all rows, and on as
few as theirs beside them. `--full` runs everything on all rows. `--repeats 3` runs our jobs three times and keeps the median one, for a
machine whose pace changes. The first run makes the engines' environments (in `.venvs`, about 6 GB), which is not timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import exact, table
from benchmarks.peers.engines import CHECKOUT, ENGINES, interpreters
from benchmarks.peers.job import OURS, PEERS, Job, Outcome, Setting, run
from benchmarks.peers.task import Task
from benchmarks.record import record
from benchmarks.workload import WORKLOADS, write


def main() -> None:
    given = options()
    jobs = [job for job in (*OURS, *PEERS) if job.engine in given.only]
    found = interpreters(dict.fromkeys(job.engine for job in jobs), given.environments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        setting = Setting(
            workload=write(folder / "workload", n_rows=given.rows, n_queries=given.queries),
            interpreters=found,
            out=folder,
            n_rows=given.rows,
            n_peer_rows=given.rows if given.full else given.peer_rows,
            n_queries=given.queries,
            threads=given.threads,
            limit_s=given.limit,
            repeats=given.repeats,
        )
        start = time.perf_counter()
        outcomes = [told(job, setting) for job in jobs]
        result = summary(outcomes, setting) | {"total_s": round(time.perf_counter() - start)}
    table.show(result["table"])
    for pair, correlation in result["agreement"].items():
        print(f"rank correlation, {pair}: {correlation}")
    for engine, error in result["graddot_error"].items():
        print(f"largest error of {engine}'s gradient products: {error:.1e}")
    if given.json:
        record("peers", result, command=f"python -m benchmarks.peers {' '.join(sys.argv[1:])}".strip())


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object, the last line of output; kept in benchmarks/results")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--peer-rows", type=int, default=200, help="rows for the costly jobs of all engines")
    parser.add_argument("--full", action="store_true", help="all jobs on all rows")
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="of our jobs with a figure that was asked for; the median one is shown")
    parser.add_argument("--only", nargs="+", choices=list(ENGINES), default=list(ENGINES), help="engines to run")
    parser.add_argument("--limit", type=float, default=300, help="seconds after which a job counts as failed")
    parser.add_argument("--folder", type=Path, help="keep the workload, the scores and the results here")
    parser.add_argument("--environments", type=Path, default=CHECKOUT / ".venvs", help="where the engines' environments are kept")
    given = parser.parse_args()
    if given.repeats < 1:
        parser.error(f"--repeats {given.repeats}: expected 1 or more")
    return given


def told(job: Job, setting: Setting) -> Outcome:
    outcome = run(job, setting)
    figures = ", ".join(f"{figure.what} {outcome.passes(figure):.2f}" for figure in job.figures) if not outcome.error else outcome.error
    print(f"{job.name}: {figures or 'done'}", file=sys.stderr, flush=True)
    return outcome


def graddot_errors(outcomes: list[Outcome], setting: Setting) -> dict[str, float]:
    """Of each engine's exact gradient products, against autograd's on a few pairs."""
    scored = {outcome.job.engine: outcome.scores_QN for outcome in outcomes if outcome.job.function == "graddot"}
    task = Task(setting.workload, setting.out, "w2", setting.n_rows, setting.n_queries, setting.threads)
    truth = exact.products(task) if scored else None
    return {engine: exact.error(scores, truth) for engine, scores in scored.items() if scores is not None}


def summary(outcomes: list[Outcome], setting: Setting) -> dict[str, Any]:
    return {
        **table.headlines(outcomes),
        "table": table.rows(outcomes),
        "failed": {outcome.job.name: outcome.error for outcome in outcomes if outcome.error},
        "agreement": table.agreement(outcomes),
        "graddot_error": graddot_errors(outcomes, setting),
        "workloads": WORKLOADS,
        "rows": setting.n_rows,
        "peer_rows": setting.n_peer_rows,
        "queries": setting.n_queries,
        "seconds": {outcome.job.name: round(outcome.wall_s, 1) for outcome in outcomes},
        "threads": setting.threads,
        "repeats": setting.repeats,
    }


if __name__ == "__main__":
    main()
