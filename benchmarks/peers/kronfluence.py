"""kronfluence: EK-FAC. Batches of 8 sorted rows without shuffling, all queries in one sweep over the training rows, the paper's damping.

Option `empirical`: factors from the rows' own targets (the empirical Fisher) in place of kronfluence's default, targets sampled from the
model. Option `seed`: of those samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task as KronfluenceTask
from kronfluence.utils.dataset import DataLoaderKwargs

from benchmarks.peers.task import BATCH_ROWS, IGNORE, Task, by_length, main, padded, summed_loss, unsorted

QUERY_BATCH = 8


class LanguageModel(KronfluenceTask):
    """The summed loss of a row; the measure is the same sum on a query: `grad(measure) . H^-1 . grad(loss)` is positive for a proponent."""

    def __init__(self, modules: list[str]) -> None:
        self.modules = modules

    def compute_train_loss(self, batch: Any, model: torch.nn.Module, sample: bool = False) -> torch.Tensor:
        logits_BTV = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        return summed_loss(logits_BTV, drawn(logits_BTV, batch["labels"]) if sample else batch["labels"])

    def compute_measurement(self, batch: Any, model: torch.nn.Module) -> torch.Tensor:
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        return self.modules

    def get_attention_mask(self, batch: Any) -> torch.Tensor:
        return batch["attention_mask"]


@torch.no_grad()
def drawn(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Targets from the model's own prediction, where there is a target."""
    sampled = torch.multinomial(logits_BTV[:, :-1].flatten(0, 1).softmax(-1), 1).view_as(labels_BT[:, 1:])
    result_BT = labels_BT.clone()
    result_BT[:, 1:] = torch.where(labels_BT[:, 1:] == IGNORE, IGNORE, sampled)
    return result_BT


def tracked(network: torch.nn.Module) -> list[str]:
    """Names of the linear layers in scope: those of LoRA where the model has it."""
    names = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    return [name for name in names if "lora_" in name] or [name for name in names if name.endswith("_proj")]


def ekfac(task: Task) -> np.ndarray:
    torch.manual_seed(task.options.get("seed", 0))
    rows, queries = task.rows(), task.queries()
    order_N, order_Q = by_length(rows), by_length(queries)
    network = task.network()
    modules = tracked(network)
    language_model = LanguageModel(modules)
    with task.stage("set-up"):
        analyzer = Analyzer(
            "analysis", prepare_model(network, language_model), language_model, cpu=True, disable_tqdm=True, output_dir=str(task.scratch())
        )
        analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=padded))
    fit(task, analyzer, [rows[i] for i in order_N])
    with task.stage("scores"):
        analyzer.compute_pairwise_scores(
            scores_name="scores",
            factors_name="factors",
            query_dataset=[queries[i] for i in order_Q],
            train_dataset=[rows[i] for i in order_N],
            per_device_query_batch_size=QUERY_BATCH,
            per_device_train_batch_size=BATCH_ROWS,
            score_args=ScoreArguments(damping_factor=None, query_gradient_accumulation_steps=len(queries)),
            overwrite_output_dir=True,
        )
        scores_QN = analyzer.load_pairwise_scores("scores")["all_modules"]
    task.notes.append(
        f"{len(modules)} layers, {'empirical' if task.options.get('empirical') else 'sampled'} Fisher, damping 0.1 x mean eigenvalue"
    )
    return unsorted(scores_QN.numpy(), order_Q, order_N)


def fit(task: Task, analyzer: Analyzer, rows: Any) -> None:
    """Covariances, their eigenvectors, corrected eigenvalues: two passes with a decomposition between."""
    arguments = FactorArguments(strategy="ekfac", use_empirical_fisher=bool(task.options.get("empirical")))
    shared = {"factors_name": "factors", "factor_args": arguments, "overwrite_output_dir": True}
    with task.stage("covariances"):
        analyzer.fit_covariance_matrices(dataset=rows, per_device_batch_size=BATCH_ROWS, **shared)
    with task.stage("eigenvectors"):
        analyzer.perform_eigendecomposition(**shared)
    with task.stage("eigenvalues"):
        analyzer.fit_lambda_matrices(dataset=rows, per_device_batch_size=BATCH_ROWS, **shared)


if __name__ == "__main__":
    main("kronfluence", {"ekfac": ekfac})
