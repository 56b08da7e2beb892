"""dattri-llm: a sketched store with EK-FAC in the sketch, exact EK-FAC, the exact inner product.

Its data loader has no collator to set, so the data set pads each row to the longest of its batch of 8 sorted rows. Weights are frozen, the
embedding aside, so that autograd computes no weight gradient. Its EK-FAC is from the rows' own targets (the empirical Fisher).
"""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import torch
from dattri_llm import AttributionArguments, AttributionTask, EKFACAttributor, GradientStorageManager, HookManagerConfig, TracInAttributor

from benchmarks.peers.task import BATCH_ROWS, Task, by_length, main, padded, summed_loss, unsorted

SKETCH = 16
DAMPING = {"damping": 0.1, "relative_damping": True}  # its rule for 0.1 x mean eigenvalue


def sketch(task: Task) -> np.ndarray:
    """A rank-16 store with the covariances of the sketched factors, EK-FAC fitted from the store, queries against it."""
    attributor, rows, queries = prepared(task, EKFACAttributor)
    config = hooks(
        task,
        capture_style="materialized",
        projection_kwargs={"__default__": {"style": "logra", "proj_dim": SKETCH, "proj_max_batch_size": 8}},
    )
    stores = {name: str(task.scratch() / name) for name in ("rows", "queries", "fisher")}
    with task.stage("index"):
        attributor.collect_gradients(attributor.generate_train_rep(rows, hook_config=config), GradientStorageManager(stores["rows"]))
    with task.stage("fit"):
        attributor.fit(stores["rows"], stores["fisher"])
    with task.stage("queries"):
        attributor.collect_gradients(attributor.generate_test_rep(queries, hook_config=config), GradientStorageManager(stores["queries"]))
        score = attributor.attribute_from_cache(stores["rows"], stores["queries"], fisher_dir=stores["fisher"], **DAMPING)
    task.notes.append(f"rank {SKETCH} a side, EK-FAC of the sketched factors, empirical Fisher, damping 0.1 x mean eigenvalue")
    return in_order(task, score)


def ekfac(task: Task) -> np.ndarray:
    """Exact EK-FAC in one call. Option `residency`: where the gradients are kept between sweeps; none: the model is run for each."""
    attributor, rows, queries = prepared(task, EKFACAttributor)
    residency = task.options.get("residency")
    with task.stage("fit and scores"):
        score = attributor.attribute(rows, queries, hook_config=hooks(task), gradient_cache_residency=residency, **DAMPING)
    task.notes.append(
        f"{'gradients kept in ' + residency if residency else 'gradients recomputed'}, empirical Fisher, damping 0.1 x mean eigenvalue"
    )
    return in_order(task, score)


def graddot(task: Task) -> np.ndarray:
    """The exact inner product, gradients scored as they come."""
    attributor, rows, queries = prepared(task, TracInAttributor)
    with task.stage("index and queries"):
        score = attributor.attribute(rows, queries, hook_config=hooks(task, capture_style="auto"))
    task.notes.append("one call, nothing stored on disk")
    return in_order(task, score)


class Padded(torch.utils.data.Dataset):
    """Sorted rows, each padded to the width of its batch."""

    def __init__(self, rows: list[np.ndarray]) -> None:
        ordered = [rows[i] for i in by_length(rows)]
        batches = [padded(ordered[first : first + BATCH_ROWS]) for first in range(0, len(rows), BATCH_ROWS)]
        self.items = [{key: value[b] for key, value in batch.items()} for batch in batches for b in range(len(batch["input_ids"]))]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return self.items[i]


def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """A sum: under the batch's mean a score would depend on what else is in the batch."""
    logits_BTV = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return summed_loss(logits_BTV, batch["labels"])


def prepared(task: Task, kind: Any) -> tuple[Any, Padded, Padded]:
    shutil.rmtree(task.scratch())
    network = task.network().requires_grad_(False)
    network.get_input_embeddings().requires_grad_(True)
    arguments = AttributionArguments(
        output_dir=str(task.scratch() / "scores"),
        per_device_train_batch_size=BATCH_ROWS,
        per_device_eval_batch_size=BATCH_ROWS,
        use_cpu=True,
    )
    return kind(arguments, task=AttributionTask(loss, network)), Padded(task.rows()), Padded(task.queries())


def hooks(task: Task, **options: Any) -> HookManagerConfig:
    return HookManagerConfig(linear_io=[r"lora_[AB]\." if task.workload == "w2" else r"_proj$"], include_frozen=True, **options)


def in_order(task: Task, score: Any) -> np.ndarray:
    """[Q, N] in the workload's order."""
    _, matrix_NQ = score.agnostic_matrix()
    return unsorted(matrix_NQ.numpy().T, by_length(task.queries()), by_length(task.rows()))


if __name__ == "__main__":
    main("dattri-llm", {"sketch": sketch, "ekfac": ekfac, "graddot": graddot})
