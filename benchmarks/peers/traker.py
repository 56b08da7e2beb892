"""traker: TRAK with one model. It is not made for the CPU; two of its parts are replaced, as it allows, to spare it most of the cost:

- gradients row by row, each backward pass over its own unpadded row (its own computer goes through the batch's whole graph for each);
- the projection matrix is drawn once and kept (its block-wise default draws all of it again for every batch).
"""

from __future__ import annotations

import logging
import shutil
from typing import Any

import numpy as np
import torch
from trak import TRAKer
from trak.gradient_computers import IterativeGradientComputer
from trak.modelout_functions import AbstractModelOutput
from trak.projectors import BasicSingleBlockProjector, ProjectionType

from benchmarks.peers.task import BATCH_ROWS, IGNORE, Task, by_length, main, padded, unsorted

PROJECTED = 64
RIDGE = 1e-3  # its default, 0, gives noise where there are no more rows than projected numbers


class Margin(AbstractModelOutput):
    """f = sum over tokens of log(p / (1 - p)); Q = mean over tokens of 1 - p."""

    def __init__(self) -> None:
        """The base class has an abstract one."""

    @staticmethod
    def get_output(model: Any, weights: Any, buffers: Any, tokens: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        target_BT, logits_BTV = chosen(model, tokens, mask, labels)
        log_p = -torch.nn.functional.cross_entropy(
            logits_BTV.flatten(0, 1), target_BT.flatten(), reduction="none", ignore_index=IGNORE
        ).view_as(target_BT)
        return ((log_p - torch.log1p(-log_p.exp())) * (target_BT != IGNORE)).sum(1)

    @staticmethod
    def get_out_to_loss_grad(model: Any, weights: Any, buffers: Any, batch: Any) -> torch.Tensor:
        with torch.no_grad():
            target_BT, logits_BTV = chosen(model, *batch)
            loss = torch.nn.functional.cross_entropy(
                logits_BTV.flatten(0, 1), target_BT.flatten(), reduction="none", ignore_index=IGNORE
            ).view_as(target_BT)
        used = target_BT != IGNORE
        return (((1 - (-loss).exp()) * used).sum(1) / used.sum(1))[:, None]


def chosen(model: Any, tokens: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return labels[:, 1:], model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1]


class Kept(BasicSingleBlockProjector):
    def free_memory(self) -> None:
        """Kept: the queries are projected by the same matrix, which the base class would not draw again."""


class RowByRow(IterativeGradientComputer):
    """Gradients of the parameters in scope, [B, D]."""

    def load_model_params(self, model: Any) -> None:
        self.model = model
        self.model_params = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def compute_per_sample_grad(self, batch: Any) -> torch.Tensor:
        rows = zip(*batch, strict=True)
        lengths = batch[1].sum(1).tolist()
        return torch.stack([self.gradient([part[None, :length] for part in row]) for row, length in zip(rows, lengths, strict=True)])

    def gradient(self, row: list[torch.Tensor]) -> torch.Tensor:
        output = self.modelout_fn.get_output(self.model, None, None, *row)
        return torch.cat([part.flatten() for part in torch.autograd.grad(output[0], self.model_params)])


def trak(task: Task) -> np.ndarray:
    shutil.rmtree(task.scratch())
    rows, queries = task.rows(), task.queries()
    order_N, order_Q = by_length(rows), by_length(queries)
    network = scoped(task)
    size = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    with task.stage("features"):
        projector = Kept(size, PROJECTED, 0, ProjectionType.normal, "cpu", dtype=torch.float32, model_id=0)
        traker = TRAKer(
            network,
            Margin(),
            len(rows),
            save_dir=str(task.scratch()),
            device="cpu",
            gradient_computer=RowByRow,
            projector=projector,
            use_half_precision=False,
            lambda_reg=RIDGE,
            logging_level=logging.ERROR,
        )
        traker.load_checkpoint(network.state_dict(), model_id=0)
        for batch in batches(rows, order_N):
            traker.featurize(batch, num_samples=len(batch[0]))
        traker.finalize_features()
    with task.stage("queries"):
        traker.start_scoring_checkpoint("queries", network.state_dict(), 0, len(queries))
        for batch in batches(queries, order_Q):
            traker.score(batch, num_samples=len(batch[0]))
        scores_NQ = np.array(traker.finalize_scores("queries"))
    task.notes.append(f"{PROJECTED} projected numbers in all, one model, ridge {RIDGE:g}")
    return unsorted(scores_NQ.T, order_Q, order_N)


def scoped(task: Task) -> Any:
    network = task.network()
    if task.workload == "w1":
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name.endswith("_proj.weight"))
    return network


def batches(rows: list[np.ndarray], order: list[int]) -> list[tuple[torch.Tensor, ...]]:
    return [
        tuple(padded([rows[i] for i in order[first : first + BATCH_ROWS]])[key] for key in ("input_ids", "attention_mask", "labels"))
        for first in range(0, len(rows), BATCH_ROWS)
    ]


if __name__ == "__main__":
    main("traker", {"trak": trak})
