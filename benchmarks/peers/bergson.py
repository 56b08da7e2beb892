"""bergson: a sketched index with a preconditioner, an unsketched index, EK-FAC. Its own steps, as its command line runs them.

It sorts and batches by itself. Its damping rule, 0.1 x mean eigenvalue, is its default. Option `empirical`: EK-FAC from the rows' own
targets in place of its default, targets sampled from the model.
"""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from bergson import Attributor, CollectorComputer, InMemoryCollector, PreprocessConfig, QuerySetConfig, ScoreConfig, load_gradients
from bergson.build import build
from bergson.config.config import DataConfig, HessianConfig, HessianPipelineConfig, IndexConfig
from bergson.data import allocate_batches, column_offsets, load_scores
from bergson.hessians.hessian_approximations import approximate_hessians
from bergson.hessians.pipeline import hessian_pipeline
from bergson.hessians.preconditioner import DensePreconditioner
from bergson.utils.worker_utils import processor_for, setup_data_pipeline, setup_model_and_peft
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from benchmarks.peers.task import Task, main

SKETCH = 16  # its own default in `trackstar`, and what its documentation recommends
BATCH_TOKENS = 512  # it refuses more than the model's longest input


def sketch(task: Task) -> np.ndarray:
    """A rank-16 index, the preconditioner in the sketch, then queries against both: three of its commands, `build`, `hessian`, `query`."""
    rows, queries = prepared(task, projection_dim=SKETCH)
    with task.stage("index"):
        index = built(rows, "index")
    with task.stage("preconditioner"):
        hessian = deepcopy(rows)
        hessian.run_path += "/hessian"
        approximate_hessians(hessian, HessianConfig(method="autocorrelation"))
    with task.stage("queries"):
        scores_QN = searched(index, built(queries, "queries"), hessian.run_path)
    task.notes.append(f"rank {SKETCH} a side in the sketch, damping 0.1 x mean eigenvalue, at most {BATCH_TOKENS} tokens a batch")
    return scores_QN


def sketch_in_memory(task: Task) -> np.ndarray:
    """The same from its parts: one pass keeps the sketched gradients in memory and fits the preconditioner. No index is left behind."""
    rows, queries = prepared(task, projection_dim=SKETCH)
    with task.stage("index and preconditioner"):
        model, _ = setup_model_and_peft(rows)
        stored = collected(model, rows, skip_hessians=False)
    with task.stage("queries"):
        asked = DensePreconditioner.from_processor(stored.processor).apply(collected(model, queries, skip_hessians=True).gradients)
        scores_QN = sum(asked[name] @ gradient.T for name, gradient in stored.gradients.items())
    task.notes.append(f"rank {SKETCH} a side, kept in memory, damping 0.1 x mean eigenvalue")
    return scores_QN.numpy()


def collected(model: torch.nn.Module, config: IndexConfig, *, skip_hessians: bool) -> InMemoryCollector:
    config.partial_run_path.mkdir(parents=True, exist_ok=True)
    data, _ = setup_data_pipeline(config)
    collector = InMemoryCollector(
        model=model.base_model, data=data, cfg=config, processor=processor_for(config), skip_hessians=skip_hessians
    )
    batches = allocate_batches(data["length"][:], config.token_batch_size)
    CollectorComputer(model, data, collector=collector, batches=batches, cfg=config).run_with_collector_hooks()
    return collector


def graddot(task: Task) -> np.ndarray:
    """The unsketched index and the inner product."""
    rows, queries = prepared(task)
    with task.stage("index"):
        index = built(rows, "index")
    with task.stage("queries"):
        scores_QN = searched(index, built(queries, "queries"))
    task.notes.append(f"nothing sketched, at most {BATCH_TOKENS} tokens a batch")
    return scores_QN


def ekfac(task: Task) -> np.ndarray:
    """`bergson ekfac`; its first half, the fit, is run before it, so that the two are timed apart."""
    rows, queries = prepared(task)
    config = HessianConfig(method="kfac", ev_correction=True, use_dataset_labels=bool(task.options.get("empirical")))
    with task.stage("fit"):
        hessian = deepcopy(rows)
        hessian.run_path += "/hessian/kfac"
        approximate_hessians(hessian, config)
    with task.stage("scores"):
        pipeline = HessianPipelineConfig(query=QuerySetConfig.from_data(queries.data), resume=True)
        hessian_pipeline(rows, config, ScoreConfig(), PreprocessConfig(), pipeline)
        scores_NQ = load_scores(Path(rows.run_path) / "scores")[:]
    task.notes.append(f"{'empirical' if config.use_dataset_labels else 'sampled'} Fisher, damping 0.1 x mean eigenvalue")
    return np.asarray(scores_NQ).T


def prepared(task: Task, **options: int) -> tuple[IndexConfig, IndexConfig]:
    """What its steps read: data sets on disk, a tokenizer (it asks for one even where rows are tokenised), configurations."""
    folder = task.scratch()
    shutil.rmtree(folder)
    words = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(str(folder / "tokenizer"))
    for name, tokens in {"rows": task.rows(), "queries": task.queries()}.items():
        lengths = [len(row) for row in tokens]
        Dataset.from_dict({"input_ids": [row.tolist() for row in tokens], "length": lengths}).save_to_disk(str(folder / "data" / name))
    shared = {
        "run_path": str(folder / "run"),
        "model": str(task.folder / ("adapter" if task.workload == "w2" else "model")),
        "tokenizer": str(folder / "tokenizer"),
        "token_batch_size": task.options.get("batch_tokens", BATCH_TOKENS),
        **options,
    }
    first, second = (IndexConfig(data=DataConfig(dataset=str(folder / "data" / name)), **shared) for name in ("rows", "queries"))
    return first, second


def built(config: IndexConfig, name: str) -> str:
    config = deepcopy(config)
    config.run_path += f"/{name}"
    build(config, PreprocessConfig())
    return config.run_path


def searched(index: str, queries: str, hessian: str | None = None) -> np.ndarray:
    """[Q, N] inner products of the preconditioned queries with the stored rows."""
    attributor = Attributor(index, hessian_path=hessian)
    stored = torch.from_numpy(np.array(load_gradients(queries), dtype=np.float32))
    sizes = {name: gradient.shape[1] for name, gradient in attributor.grads.items()}
    found = attributor.search({name: stored[:, first:last] for name, (first, last) in column_offsets(sizes).items()}, k=None)
    return torch.empty_like(found.values).scatter_(1, found.indices, found.values).numpy()


if __name__ == "__main__":
    main("bergson", {"sketch": sketch, "sketch_in_memory": sketch_in_memory, "graddot": graddot, "ekfac": ekfac})
