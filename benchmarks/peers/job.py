"""What is run: which engine does what on which workload, and the rows of the table that come of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers.engines import CHECKOUT, ENGINES, Interpreters, last_line


class Figure(NamedTuple):
    """A row of the table: what was done, the stages of the job that count in it (none named: all), the key it is known by."""

    what: str
    stages: tuple[str, ...] = ()
    key: str = ""


@dataclass(frozen=True)
class Job:
    """`function` is the engine's, in `benchmarks/peers/ENGINE.py`. A costly job is run on `--peer-rows` rows, not on all."""

    engine: str
    function: str
    workload: str
    figures: tuple[Figure, ...]
    costly: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.engine}-{self.function}-{self.workload}"


EXACT = "EK-FAC, exact: fit + queries"
SKETCHED = "curvature in the sketch: index + fit + queries"
NEXT = "the next queries"
DOT = "gradient product, exact: index + queries"

OURS = (
    Job("headwater", "ekfac_all", "w1", (Figure(EXACT, key="ekfac_exact_passes"),)),
    Job("headwater", "ekfac", "w1", (Figure(EXACT),), costly=True),
    Job(
        "headwater",
        "ekfac_index",
        "w1",
        (
            Figure(SKETCHED, ("index", "fit", "queries"), "ekfac_index_passes"),
            Figure(NEXT, ("next queries",), "next_queries_passes"),
        ),
    ),
    Job("headwater", "ekfac_all", "w2", (Figure(EXACT, key="ekfac_lora_passes"),), options={"labels": "sampled"}),
    Job("headwater", "ekfac", "w2", (Figure(EXACT),), costly=True),
    Job("headwater", "fisher", "w2", (Figure("damped Fisher, exact: index + fit + queries", key="fisher_lora_passes"),)),
    Job("headwater", "graddot", "w2", (Figure(DOT, key="graddot_lora_passes"),)),
    Job("headwater", "accuracy", "w2", (), costly=True),  # values: ekfac_cg_spearman; its rows are the kept reference's
)

PEERS = (
    Job("kronfluence", "ekfac", "w1", (Figure(EXACT), Figure(NEXT, ("scores",))), costly=True, options={"empirical": True}),
    Job("bergson", "ekfac", "w1", (Figure(EXACT), Figure(NEXT, ("scores",))), costly=True, options={"empirical": True}),
    Job("dattri-llm", "ekfac", "w1", (Figure(EXACT),), costly=True),
    Job("bergson", "sketch", "w1", (Figure(SKETCHED), Figure(NEXT, ("queries",)))),
    Job("bergson", "sketch_in_memory", "w1", (Figure(SKETCHED),)),
    Job("dattri-llm", "sketch", "w1", (Figure(SKETCHED), Figure(NEXT, ("queries",)))),
    Job("traker", "trak", "w1", (Figure("TRAK, one model: features + queries"),), costly=True),
    Job("kronfluence", "ekfac", "w2", (Figure(EXACT), Figure(NEXT, ("scores",))), costly=True, options={"empirical": True}),
    Job("bergson", "ekfac", "w2", (Figure(EXACT), Figure(NEXT, ("scores",))), costly=True, options={"empirical": True}),
    Job("dattri-llm", "ekfac", "w2", (Figure(EXACT),), costly=True, options={"residency": "memory"}),
    Job("bergson", "graddot", "w2", (Figure(DOT),)),
    Job("dattri-llm", "graddot", "w2", (Figure(DOT),)),
    Job("traker", "trak", "w2", (Figure("TRAK, one model: features + queries"),), costly=True),
)


@dataclass(frozen=True)
class Outcome:
    """A job's result, or the error it ended with."""

    job: Job
    n_rows: int
    n_queries: int
    result: Mapping[str, Any] = field(default_factory=dict)
    scores_QN: np.ndarray | None = None
    error: str = ""
    wall_s: float = 0.0  # the whole process, with what is not timed in a figure
    repeated: tuple[float, ...] = ()  # passes of the first figure, each time that the job was run

    def seconds(self, figure: Figure) -> float:
        stages = self.result["stages_s"]
        return sum(stages[name] for name in figure.stages or stages)

    def passes(self, figure: Figure) -> float:
        return self.seconds(figure) / self.result["training_pass_s"]


class Setting(NamedTuple):
    """What all jobs of a run share."""

    workload: Path
    interpreters: Interpreters
    out: Path
    n_rows: int
    n_peer_rows: int
    n_queries: int
    threads: int
    limit_s: float
    repeats: int = 1  # of a job with a headline figure

    def size(self, job: Job) -> tuple[int, int]:
        """Rows and queries of a job. A costly one has as many queries a row as the others: passes that compare."""
        if not job.costly or self.n_peer_rows >= self.n_rows:
            return self.n_rows, self.n_queries
        return self.n_peer_rows, max(1, round(self.n_queries * self.n_peer_rows / self.n_rows))


def run(job: Job, setting: Setting) -> Outcome:
    """Of a job with a headline figure that is run several times the outcome of median cost, or the first that failed."""
    times = setting.repeats if any(figure.key for figure in job.figures) else 1
    found = [_timed(job, setting) for _ in range(times)]
    if failed := next((outcome for outcome in found if outcome.error), None):
        return failed
    if not job.figures:
        return found[0]
    found.sort(key=lambda outcome: outcome.passes(job.figures[0]))
    return replace(found[len(found) // 2], repeated=tuple(round(outcome.passes(job.figures[0]), 3) for outcome in found))


def _timed(job: Job, setting: Setting) -> Outcome:
    start = time.perf_counter()
    return replace(_run(job, setting), wall_s=time.perf_counter() - start)


def _run(job: Job, setting: Setting) -> Outcome:
    """The job in a process of its engine's environment. An engine that does not install, fails or takes too long is an outcome too."""
    n_rows, n_queries = setting.size(job)
    outcome = Outcome(job, n_rows, n_queries)
    out = setting.out / job.name
    if job.engine in setting.interpreters.errors:
        return _failed(outcome, setting.interpreters.errors[job.engine])
    shutil.rmtree(out, ignore_errors=True)  # what an earlier time left would be gone on with
    try:
        subprocess.run(
            _command(job, setting, out=out),
            check=True,
            capture_output=True,
            text=True,
            timeout=setting.limit_s,
            cwd=CHECKOUT,
            env=_environment(setting.threads),
        )
        result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    except subprocess.CalledProcessError as error:
        return _failed(outcome, last_line(error.stderr))
    except subprocess.TimeoutExpired:
        return _failed(outcome, f"no result after {setting.limit_s:.0f} s")
    except (OSError, ValueError) as error:
        return _failed(outcome, str(error))
    scores = out / "scores.npy"
    return replace(outcome, result=result, scores_QN=np.load(scores) if scores.exists() else None)


def _failed(outcome: Outcome, error: str) -> Outcome:
    return replace(outcome, error=error)


def _command(job: Job, setting: Setting, *, out: Path) -> list[str]:
    n_rows, n_queries = setting.size(job)
    values = {
        "--folder": setting.workload,
        "--out": out,
        "--workload": job.workload,
        "--rows": n_rows,
        "--queries": n_queries,
        "--threads": setting.threads,
        "--options": json.dumps(dict(job.options)),
    }
    start = (setting.interpreters.pythons[job.engine], "-W", "ignore", "-m", ENGINES[job.engine].module, job.function)
    return [str(part) for part in (*start, *(part for pair in values.items() for part in pair))]


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
