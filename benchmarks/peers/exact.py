"""Gradient products by plain autograd in float64, a few pairs of them: what an engine's exact scores have to be."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.peers.task import Task, padded, summed_loss

N_QUERIES, N_ROWS = 2, 4


def products(task: Task) -> np.ndarray:
    """[2, 4] `grad L_q . grad L_n` of the first queries and rows: minus and minus, as the measure is minus the loss, cancel."""
    network = task.network().double()
    inside = [name for name, _ in network.named_parameters() if "lora_" in name] or [
        name for name, _ in network.named_parameters() if name.endswith("_proj.weight")
    ]
    rows, queries = task.rows()[:N_ROWS], task.queries()[:N_QUERIES]
    return (_gradients(network, queries, inside) @ _gradients(network, rows, inside).T).numpy()


def _gradients(network: torch.nn.Module, rows: list[np.ndarray], inside: list[str]) -> torch.Tensor:
    weights = [network.get_parameter(name) for name in inside]

    def one(row: np.ndarray) -> torch.Tensor:
        batch = padded([row])
        loss = summed_loss(network(input_ids=batch["input_ids"], use_cache=False).logits, batch["labels"])
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights)])

    return torch.stack([one(row) for row in rows])


def error(scores_QN: np.ndarray, truth: np.ndarray) -> float:
    """Largest difference over the largest truth; 0.5 and more: another sign, another scale, another order."""
    return float(np.abs(scores_QN[: len(truth), : truth.shape[1]] - truth).max() / np.abs(truth).max())
