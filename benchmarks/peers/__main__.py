"""Headwater beside its peers: cost in training passes, memory, agreement of the scores, on one workload in one run.

    python -m benchmarks.peers [--json] [--rows 1000] [--peer-rows 400] [--full] [--threads 2] [--only ENGINE ...]

One pass is a plain forward and backward pass over the same rows in length-sorted batches of 8, timed in the engine's own process around its
job. Each engine is given sorted rows and the best settings that we know of; the notes say which. The exact methods of all engines, ours
too, are run on `--peer-rows` rows to keep the run below ten minutes on two cores; `--full` runs everything on all rows. The first run makes
the engines' environments (in `.venvs`, about 6 GB), which is not timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import table
from benchmarks.peers.engines import CHECKOUT, ENGINES, interpreter
from benchmarks.peers.job import OURS, PEERS, Job, Outcome, Setting, run
from benchmarks.record import record
from benchmarks.workload import WORKLOADS, write


def main() -> None:
    given = options()
    jobs = [job for job in (*OURS, *PEERS) if job.engine in given.only]
    for name in dict.fromkeys(job.engine for job in jobs):
        prepare(name, given.environments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        setting = Setting(
            workload=write(folder / "workload", n_rows=given.rows, n_queries=given.queries),
            environments=given.environments,
            out=folder,
            n_rows=given.rows,
            n_peer_rows=given.rows if given.full else given.peer_rows,
            n_queries=given.queries,
            threads=given.threads,
            limit_s=given.limit,
        )
        start = time.perf_counter()
        outcomes = [told(job, setting) for job in jobs]
        result = summary(outcomes, setting) | {"total_s": round(time.perf_counter() - start)}
    table.show(result["table"])
    for pair, correlation in result["agreement"].items():
        print(f"rank correlation, {pair}: {correlation}")
    if given.json:
        record("peers", result, command=f"python -m benchmarks.peers {' '.join(sys.argv[1:])}".strip())


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object, the last line of output; kept in benchmarks/results")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--peer-rows", type=int, default=400, help="rows for the costly jobs of all engines")
    parser.add_argument("--full", action="store_true", help="all jobs on all rows")
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(ENGINES), default=list(ENGINES), help="engines to run")
    parser.add_argument("--limit", type=float, default=900, help="seconds after which a job counts as failed")
    parser.add_argument("--folder", type=Path, help="keep the workload, the scores and the results here")
    parser.add_argument("--environments", type=Path, default=CHECKOUT / ".venvs", help="where the engines' environments are kept")
    return parser.parse_args()


def prepare(name: str, environments: Path) -> None:
    """Make the engine's environment before the clock runs; where that fails, its jobs will say so."""
    try:
        interpreter(ENGINES[name], environments)
    except (OSError, RuntimeError) as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)


def told(job: Job, setting: Setting) -> Outcome:
    outcome = run(job, setting)
    figures = ", ".join(f"{figure.what} {outcome.passes(figure):.2f}" for figure in job.figures) if not outcome.error else outcome.error
    print(f"{job.name}: {figures or 'done'}", file=sys.stderr, flush=True)
    return outcome


def summary(outcomes: list[Outcome], setting: Setting) -> dict[str, Any]:
    return {
        **table.headlines(outcomes),
        "table": table.rows(outcomes),
        "failed": {outcome.job.name: outcome.error for outcome in outcomes if outcome.error},
        "agreement": table.agreement(outcomes),
        "workloads": WORKLOADS,
        "rows": setting.n_rows,
        "peer_rows": setting.n_peer_rows,
        "queries": setting.n_queries,
        "threads": setting.threads,
    }


if __name__ == "__main__":
    main()
