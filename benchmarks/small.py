"""Models small enough for every truth: a tanh network on one flat vector, its exact matrices, and agreement that may be undetermined.

N rows · Q queries · D parameters · I inputs · O outputs · M removals · R trainings at once
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy.stats import pearsonr, rankdata
from torch import Tensor

from headwater.atomic import write_json
from headwater.progress import track
from headwater.truth.objective import SmallModel
from headwater.truth.optimum import Minimiser
from headwater.truth.response import training_loss
from headwater.types import Block, Layout, Truth

RATE = 0.03  # of Adam at its start
CONSTANT = 1e-9  # a spread below this share of the largest value is rounding, not an effect


@dataclass(frozen=True)
class Tanh:
    """`widths` 6-12-12-1: tanh between layers; weights of variance 1 / inputs, biases 0. Without hidden layers it is linear."""

    widths: tuple[int, ...]

    @property
    def size(self) -> int:
        return sum(i * o + o for i, o in pairwise(self.widths))

    def drawn(self, seed: int | Sequence[int]) -> Tensor:
        rng = np.random.default_rng(seed)
        parts = [np.concatenate([rng.normal(size=i * o) / i**0.5, np.zeros(o)]) for i, o in pairwise(self.widths)]
        return torch.from_numpy(np.concatenate(parts))

    def __call__(self, theta_D: Tensor, x_NI: Tensor) -> Tensor:
        """[N, O]"""
        start, layers = 0, list(pairwise(self.widths))
        for k, (i, o) in enumerate(layers):
            weight_OI, bias_O = theta_D[start : start + i * o].view(o, i), theta_D[start + i * o : start + i * o + o]
            x_NI = torch.addmm(bias_O, x_NI, weight_OI.T)
            x_NI = torch.tanh(x_NI) if k < len(layers) - 1 else x_NI
            start += i * o + o
        return x_NI


def squared_loss(y_N: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda outputs_NO: (outputs_NO[:, 0] - y_N).square() / 2


def cross_entropy(y_N: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda outputs_NO: torch.nn.functional.cross_entropy(outputs_NO, y_N, reduction="none")


def at_minimum(model: SmallModel, minimise: Minimiser) -> SmallModel:
    """The model after training on all rows from where it starts. RuntimeError where the training did not reach its end."""
    weights_N = torch.ones(len(model.train_ids), dtype=torch.float64)
    reached = minimise(training_loss(model, weights_N), model.start_D)
    if not reached.usable:
        raise RuntimeError(f"training ended {reached.status} at a gradient norm of {reached.gradient_norm:.3g}")
    return replace(model, start_D=reached.theta_D)


class Net(Protocol):
    """A network on one flat vector, such as `Tanh`."""

    def drawn(self, seed: int | Sequence[int]) -> Tensor: ...

    def __call__(self, theta_D: Tensor, x_NI: Tensor, /) -> Tensor: ...


def trained_together(
    net: Net, x_NI: Tensor, y_N: Tensor, kept_SN: np.ndarray, seeds_S: Sequence[int | Sequence[int]], *, steps: int, decay: float = 0.0
) -> Tensor:
    """[S, D] as many networks, each on its kept rows from its own start: cross-entropy in the mean over them, by Adam over all at once.

    Adam treats every number by itself, so the trainings do not know of each other.
    """
    theta_SD = torch.stack([net.drawn(seed) for seed in seeds_S]).requires_grad_(True)
    weights_SN = torch.from_numpy(kept_SN / kept_SN.sum(1, keepdims=True))
    optimizer = torch.optim.Adam([theta_SD], lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=steps)
    for _ in range(steps):
        logits_SNO = torch.func.vmap(net, in_dims=(0, None))(theta_SD, x_NI)
        losses_SN = -logits_SNO.log_softmax(-1)[:, torch.arange(len(y_N)), y_N]
        optimizer.zero_grad()
        ((weights_SN * losses_SN).sum() + decay / 2 * theta_SD.square().sum()).backward()
        optimizer.step()
        schedule.step()
    return theta_SD.detach()


@dataclass(frozen=True)
class Momentum:
    """Gradient descent over all rows: `v <- momentum v + grad J`, `theta <- theta - rate v`. Nothing is random."""

    rate: float
    momentum: float


@dataclass(frozen=True, eq=False)
class Underway:
    """R trainings after the same number of steps: their weights, and the optimiser's state."""

    theta_RD: Tensor
    v_RD: Tensor

    @staticmethod
    def at_rest(theta_D: Tensor) -> Underway:
        return Underway(theta_D[None], torch.zeros_like(theta_D)[None])

    def copies(self, n: int) -> Underway:
        """Of one training, n that go on from where it is."""
        return Underway(self.theta_RD.expand(n, -1), self.v_RD.expand(n, -1))


def trained_on(model: SmallModel, kept_RN: np.ndarray, at: Underway, rule: Momentum, *, steps: int) -> Underway:
    """So many steps further, each training r on its own rows, all at once; the trainings do not know of each other.

        J_r(theta) = (1/N) sum_n kept_rn L_n(theta) + decay/2 ||theta||^2        N counts every row, as in `headwater.truth.retrained`

    Cost: steps passes over R x N rows; at R 18 and N 120 little more than at R 1.
    """
    weights_RN, (theta_RD, v_RD) = torch.from_numpy(kept_RN).double() / kept_RN.shape[1], (at.theta_RD, at.v_RD)
    losses = torch.func.vmap(lambda theta_D: model.losses(model.outputs(theta_D)))
    for _ in range(steps):
        leaf_RD = theta_RD.detach().requires_grad_(True)
        total = (weights_RN * losses(leaf_RD)).sum() + model.decay / 2 * leaf_RD.square().sum()
        v_RD = rule.momentum * v_RD + torch.autograd.grad(total, leaf_RD)[0]
        theta_RD = theta_RD - rule.rate * v_RD
    return Underway(theta_RD, v_RD)


# --------------------------------------------------------------------------------------------------- exact derivatives


def row_gradients(model: SmallModel) -> Tensor:
    """[N, D] of each row's loss at the start."""
    return torch.func.jacrev(lambda theta_D: model.losses(model.outputs(theta_D)))(model.start_D)


def query_gradients(model: SmallModel) -> Tensor:
    """[Q, D]"""
    return torch.func.jacrev(model.queries)(model.start_D)


def hessian(model: SmallModel) -> Tensor:
    """[D, D] of the mean loss, decay included."""
    everything_N = torch.ones(len(model.train_ids), dtype=torch.float64)
    return model.hessian(model.start_D, everything_N) + model.decay * torch.eye(len(model.start_D), dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class RootRows:
    """A `types.Source` whose second moment is the model's Gauss-Newton matrix: the rows of `sqrt(O) H_n^(1/2) J_n`, O for each row.

    So whatever solves on stored rows solves on the exact matrix.
    """

    rows_RD: Tensor
    layout: Layout

    @staticmethod
    def of(model: SmallModel) -> RootRows:
        outputs_NO = model.outputs(model.start_D)
        jacobian_NOD = torch.func.jacrev(model.outputs)(model.start_D)
        hessians_NOO = _output_hessians(model, outputs_NO)
        values_NO, vectors_NOO = torch.linalg.eigh(hessians_NOO)
        roots_NOO = values_NO.clamp(min=0).sqrt()[..., None] * vectors_NOO.mT
        rows_RD = (roots_NOO @ jacobian_NOD).flatten(0, 1) * outputs_NO.shape[1] ** 0.5
        size = rows_RD.shape[1]
        return RootRows(rows_RD, Layout((Block("theta", (size,), (size,)),)))

    def matrix(self) -> Tensor:
        """[D, D]"""
        return self.rows_RD.T @ self.rows_RD / len(self.rows_RD)

    def __len__(self) -> int:
        return len(self.rows_RD)

    def blocks(self, feature: str) -> Iterator[tuple[int, Tensor]]:
        assert feature == "gradient"
        yield 0, self.rows_RD

    def take(self, feature: str, positions: Sequence[int]) -> Tensor:
        return self.rows_RD[list(positions)]


def gauss_newton(model: SmallModel) -> Tensor:
    """[D, D] `(1/N) sum_n J_n' H_n J_n + decay`: the Hessian less what the network's own bend adds, so without a negative part."""
    return RootRows.of(model).matrix() + model.decay * torch.eye(len(model.start_D), dtype=torch.float64)


def _output_hessians(model: SmallModel, outputs_NO: Tensor) -> Tensor:
    """[N, O, O]: rows do not mix, so the Hessian of the sum is block by block."""
    _, pulled = torch.func.vjp(torch.func.grad(lambda z_NO: model.losses(z_NO).sum()), outputs_NO)
    columns = [pulled(one_NO)[0] for one_NO in torch.eye(outputs_NO.shape[1]).to(outputs_NO)[:, None].expand(-1, len(outputs_NO), -1)]
    return torch.stack(columns, dim=-1)


# ----------------------------------------------------------------------------------------------------------- agreement


def without(n_rows: int, removed: Sequence[int] | np.ndarray) -> np.ndarray:
    """[M, N] kept rows, one removal each."""
    kept_MN = np.ones((len(removed), n_rows), dtype=bool)
    kept_MN[np.arange(len(removed)), list(removed)] = False
    return kept_MN


def changes(truth: Truth, before_Q: Tensor, *, seed: int = 0) -> np.ndarray:
    """[M, Q] from the measures at the final weights."""
    return truth.outcomes_DSQ[:, seed] - before_Q.numpy()


def agreement(found_M: np.ndarray, truth_M: np.ndarray) -> dict[str, float] | None:
    """Pearson, Spearman, and the slope of truth on estimate; None, undetermined, where a number is missing or a side does not vary."""
    if len(found_M) < 3 or not (np.isfinite(found_M).all() and np.isfinite(truth_M).all()) or constant(found_M) or constant(truth_M):
        return None
    slope = np.cov(found_M, truth_M)[0, 1] / np.var(found_M, ddof=1)
    pearson, spearman = pearsonr(found_M, truth_M)[0], pearsonr(rankdata(found_M), rankdata(truth_M))[0]
    return {"pearson": float(pearson), "spearman": float(spearman), "slope": float(slope)}


def constant(values_M: np.ndarray) -> bool:
    return bool(np.ptp(values_M) <= CONSTANT * np.abs(values_M).max())


def mean_agreement(found_QM: np.ndarray, truth_QM: np.ndarray) -> dict[str, Any]:
    """The mean over queries of each figure; those undetermined are counted, not averaged in; removals not measured are left out."""
    measured_M = np.isfinite(truth_QM).any(0)
    found_QM, truth_QM = found_QM[:, measured_M], truth_QM[:, measured_M]
    each = [agreement(found_M, truth_M) for found_M, truth_M in zip(found_QM, truth_QM, strict=True)]
    known = [one for one in each if one is not None]
    means = {name: float(np.mean([one[name] for one in known])) if known else None for name in ("pearson", "spearman", "slope")}
    return {**means, "undetermined": len(each) - len(known), "removals": int(measured_M.sum())}


def resumed(jobs: Mapping[str, Callable[[], Any]], *, kept: Path | None = None) -> dict[str, Any]:
    """Each job's result by its name. `kept` is a file of finished jobs: what stands there is not done again, each is added as it ends."""
    known: dict[str, Any] = json.loads(kept.read_text()) if kept is not None and kept.exists() else {}
    for name, job in track(jobs.items(), total=len(jobs), description="parts"):
        if name not in known:
            known[name] = job()
            if kept is not None:
                write_json(kept, known)
    return {name: known[name] for name in jobs}


def typed(name: str) -> str:
    """The command that was given, but for the file of finished parts."""
    words = iter(sys.argv[1:])
    shown = [word for word in words if not (word == "--kept" and next(words))]
    return " ".join(["python", "-m", f"benchmarks.{name}", *shown])


def rounded(value: Any, digits: int = 4) -> Any:
    """Numbers anywhere in a result to so many significant digits."""
    if isinstance(value, dict):
        return {key: rounded(one, digits) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one, digits) for one in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value
