"""Inside an engine's process: what a job is given, and what it leaves behind.

    python -m benchmarks.peers.ENGINE JOB --folder WORKLOAD --out FOLDER --workload w1 --rows 1000 --queries 64 --threads 2 [--options JSON]

A job is a function `job(task) -> scores [Q, N]`, rows in the workload's order, larger = the row helps the query; None where it has no
scores to show. Gradient products are `grad L_q . grad L_n`, without 1/N. Its work is inside `task.stage(NAME)` blocks; what is outside is
not timed (reading the workload, bringing it into the engine's shape). `OUT/result.json` has

    stages_s          seconds of each stage, in order
    training_pass_s   one plain training pass over the same rows, from every second batch: half of them before the job, half after it, so
                      that a drift of the machine's speed cancels
    peak_mb           largest resident memory during the job (of the whole process, interpreter and model included)
    version           of the engine
    note              settings that the reader should know
    values            further numbers of the job

and `OUT/scores.npy` the scores. A job that fails raises: its process ends with a traceback and writes no result.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.metadata
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

BATCH_ROWS = 8
PAD = 0
IGNORE = -100


@dataclass(frozen=True)
class Task:
    """One job's input, and the clock it runs against."""

    folder: Path  # the workload: benchmarks/workload.py says what is in it
    out: Path
    workload: str
    n_rows: int
    n_queries: int
    threads: int
    options: Mapping[str, Any] = field(default_factory=dict)
    stages_s: dict[str, float] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a part of the job; the times of stages with the same name add up."""
        start = time.perf_counter()
        yield
        self.stages_s[name] = self.stages_s.get(name, 0.0) + time.perf_counter() - start

    def rows(self) -> list[np.ndarray]:
        return _tokens(self.folder / "rows.npz")[: self.n_rows]

    def queries(self) -> list[np.ndarray]:
        return _tokens(self.folder / "queries.npz")[: self.n_queries]

    def network(self) -> Any:
        """The workload's model, freshly read, in evaluation mode."""
        from transformers import LlamaForCausalLM

        network = LlamaForCausalLM.from_pretrained(self.folder / "model", dtype=torch.float32)
        if self.workload == "w2":
            from peft import PeftModel

            network = PeftModel.from_pretrained(network, str(self.folder / "adapter"), is_trainable=True)
        return network.eval()

    def scratch(self) -> Path:
        """A folder for what the engine writes."""
        path = self.out / "scratch"
        path.mkdir(parents=True, exist_ok=True)
        return path


def _tokens(path: Path) -> list[np.ndarray]:
    with np.load(path) as stored:
        return np.split(stored["tokens"], np.cumsum(stored["lengths"])[:-1])


def by_length(rows: list[np.ndarray]) -> list[int]:
    """The order of rows from short to long, in which every engine is given them."""
    return sorted(range(len(rows)), key=lambda i: len(rows[i]))


def unsorted(scores_QN: np.ndarray, order_Q: list[int], order_N: list[int]) -> np.ndarray:
    """Scores of sorted queries and rows -> in the workload's order."""
    result = np.empty_like(scores_QN)
    result[np.ix_(order_Q, order_N)] = scores_QN
    return result


def padded(rows: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """A batch as transformers' own loss takes it: padded on the right, with an attention mask and labels."""
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), PAD)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for b, row in enumerate(rows):
        tokens[b, : len(row)], mask[b, : len(row)] = torch.from_numpy(row), 1
    return {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, IGNORE)}


def summed_loss(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """The sum over rows and tokens of the cross-entropy; `labels` are the tokens themselves, shifted here."""
    return torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum"
    )


# ----------------------------------------------------------------------------------------------------- measurement


def training_batches(rows: list[np.ndarray]) -> list[dict[str, torch.Tensor]]:
    order = by_length(rows)
    return [padded([rows[i] for i in order[first : first + BATCH_ROWS]]) for first in range(0, len(rows), BATCH_ROWS)]


def train(network: Any, batches: list[dict[str, torch.Tensor]]) -> float:
    """Seconds of a plain forward and backward pass over the batches, without an optimiser step."""
    network.train()
    start = time.perf_counter()
    for batch in batches:
        network.zero_grad()
        network(**batch, use_cache=False).loss.backward()
    seconds = time.perf_counter() - start
    network.zero_grad()
    return seconds


def forget_peak() -> None:
    """Give freed memory back and begin a new VmHWM, so that the peak is the job's own and not the training pass's."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float | None:
    """VmHWM; None where there is no /proc. (getrusage's figure outlives exec: a child would report its parent's peak.)"""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


Job = Callable[[Task], np.ndarray | None]


def measure(job: Job, task: Task) -> tuple[dict[str, Any], np.ndarray | None]:
    """A quarter of a training pass, the job, another quarter."""
    batches = training_batches(task.rows())
    network = task.network()
    train(network, batches[len(batches) // 2 :][:3])  # the first passes of a process are slower
    before, after = batches[0::4], batches[2::4]
    first_s = train(network, before)
    del network
    forget_peak()
    scores_QN = job(task)
    peak = peak_mb()
    second_s = train(task.network(), after)
    share = len(batches) / (len(before) + len(after))
    result = {
        "stages_s": task.stages_s,
        "training_pass_s": share * (first_s + second_s),
        "peak_mb": peak,
        "note": "; ".join(task.notes),
        "values": task.values,
    }
    return result, scores_QN


def main(package: str, jobs: Mapping[str, Job]) -> None:
    """The command line of an engine's file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=sorted(jobs))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workload", choices=("w1", "w2"), required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--queries", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--options", type=json.loads, default={})
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    task = Task(
        folder=given.folder,
        out=given.out,
        workload=given.workload,
        n_rows=given.rows,
        n_queries=given.queries,
        threads=given.threads,
        options=given.options,
    )
    given.out.mkdir(parents=True, exist_ok=True)
    result, scores_QN = measure(jobs[given.job], task)
    if scores_QN is not None:
        assert scores_QN.shape == (task.n_queries, task.n_rows), f"{given.job} gave scores {scores_QN.shape}"
        np.save(given.out / "scores.npy", scores_QN.astype(np.float32))
    result["version"] = importlib.metadata.version(package)
    (given.out / "result.json").write_text(json.dumps(result), encoding="utf-8")
