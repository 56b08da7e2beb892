"""Tail patch: from the final weights a step on some rows, or a few, and what that does to the measure. The cheap counterfactual.

For models that cannot be trained again: it costs a step and a pass over the queries for each set of rows. What it shows is what training on
the rows once *more* does (or once away from them), not what having trained without them would have done.

D sets of rows · N rows · Q queries
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from headwater.corpus import collate, plan_batches
from headwater.model import measures
from headwater.model.session import Session
from headwater.progress import track
from headwater.truth.design import Designs
from headwater.truth.finetune import mean_loss
from headwater.truth.retrain import measured
from headwater.types import Example, Measure, Truth, UsageError

TOKEN_BUDGET = 1024
RESPONSE = measures.get("response_log_probability")
NONE = "none"  # the design without a step: what the others are a change from


@dataclass(frozen=True)
class Patch:
    """`steps` steps of `optimizer` with the learning rate `lr`, each on all rows of a set. Nothing is clipped, nothing decays.

    `way`: down the loss of the rows, towards them, or up, away from them.
    """

    lr: float
    steps: int = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    way: Literal["down", "up"] = "down"

    def __post_init__(self) -> None:
        if not self.lr > 0 or self.steps < 1 or self.optimizer not in ("sgd", "adamw") or self.way not in ("down", "up"):
            raise UsageError(f"{self}: expected lr above 0, at least one step, sgd or adamw, and down or up")


def tail_patch(
    session: Session,
    rows: Sequence[Example],
    queries: Sequence[Example],
    patch: Patch,
    *,
    sets: Designs | None = None,
    asked_DQ: np.ndarray | None = None,
    scope: Collection[str] | None = None,
    measure: Measure = RESPONSE,
) -> Truth:
    """The measure of every query after steps on each row, or on each set of `sets` (kept: stepped on), always from the model as it is.

    The loss of a set is the sum over its rows of `sum_t -log p(token_t | before)`. With sgd and one step down it the change is, to first
    order, `-lr grad m_q . grad L_set`: what gradient methods predict, times lr. The trainable parameters (an adapter's, where there is
    one; those named in `scope`, where that is given) are stepped on and put back, bit for bit. `asked_DQ` says which queries are measured
    after which set, all of them where not given; the others are NaN. The first design, "none", has no step: `changes` takes the others'
    difference from it. A set whose step is not finite is marked as diverged. Cost: for each set `steps` passes over its rows, and a pass
    over the queries.
    """
    word = "step" if patch.way == "down" else "unlearn"
    sets = sets or Designs(tuple(f"{word}/{row.id}" for row in rows), np.eye(len(rows), dtype=bool))
    if sets.kept_DN.shape[1] != len(rows):
        raise UsageError(f"the sets are of {sets.kept_DN.shape[1]} rows, and there are {len(rows)}: make them for these")
    asked_DQ = np.ones((len(sets), len(queries)), dtype=bool) if asked_DQ is None else asked_DQ
    with _stepping_on(session.model, scope) as parameters:
        outcomes_DQ = _outcomes(session, rows, queries, patch, sets=sets, asked_DQ=asked_DQ, parameters=parameters, measure=measure)
    wanted_DQ = np.concatenate([np.ones((1, len(queries)), dtype=bool), asked_DQ])
    diverged_D = np.logical_not(np.where(wanted_DQ, np.isfinite(outcomes_DQ), True).all(1))
    return Truth(
        outcomes_DSQ=np.where(diverged_D[:, None], np.nan, outcomes_DQ)[:, None],
        kept_DN=np.concatenate([np.zeros((1, len(rows)), dtype=bool), sets.kept_DN]),
        train_ids=tuple(row.id for row in rows),
        query_ids=tuple(query.id for query in queries),
        seeds=(0,),
        kind="tail_patch",
        unit=measure.unit,
        designs=(NONE, *sets.names),
        diverged_DS=diverged_D[:, None],
        recipe={**asdict(patch), "model": session.name, "measure": measure.name},
    )


def unlearn_step(
    session: Session,
    rows: Sequence[Example],
    queries: Sequence[Example],
    patch: Patch,
    *,
    sets: Designs | None = None,
    asked_DQ: np.ndarray | None = None,
    scope: Collection[str] | None = None,
    measure: Measure = RESPONSE,
) -> Truth:
    """The same, away from the rows: up their loss."""
    return tail_patch(session, rows, queries, replace(patch, way="up"), sets=sets, asked_DQ=asked_DQ, scope=scope, measure=measure)


def changes(truth: Truth) -> np.ndarray:
    """[D, Q] each set's outcome less that without a step, in the measure's unit."""
    none = truth.designs.index(NONE)
    return np.delete(truth.outcomes_DSQ[:, 0] - truth.outcomes_DSQ[none, 0], none, axis=0)


def _outcomes(
    session: Session,
    rows: Sequence[Example],
    queries: Sequence[Example],
    patch: Patch,
    *,
    sets: Designs,
    asked_DQ: np.ndarray,
    parameters: list[nn.Parameter],
    measure: Measure,
) -> np.ndarray:
    """[1 + D, Q] without a step, then after each set's; NaN where a gradient was not finite, or nothing was asked."""
    outcomes_DQ = np.full((1 + len(sets), len(queries)), np.nan)
    with _put_back(session.model) as put_back:
        outcomes_DQ[0] = measured(session, measure, queries)
        for d, (kept_N, asked_Q) in track(
            enumerate(zip(sets.kept_DN, asked_DQ, strict=True), 1), total=len(sets), description="tail patches"
        ):
            if _take_steps(session, [rows[n] for n in np.flatnonzero(kept_N).tolist()], parameters, patch):
                outcomes_DQ[d, asked_Q] = measured(session, measure, [queries[q] for q in np.flatnonzero(asked_Q).tolist()])
            put_back()
    return outcomes_DQ


@contextmanager
def _stepping_on(model: nn.Module, scope: Collection[str] | None) -> Iterator[list[nn.Parameter]]:
    """The parameters to step on, which alone require a gradient inside. Raises UsageError where there are none."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    wanted = {name for name, requires in before.items() if requires} if scope is None else set(scope)
    if missing := sorted(wanted - before.keys()):
        raise UsageError(f"{len(missing)} parameters to step on are not in this model, the first is {missing[0]}")
    if not wanted:
        raise UsageError("no parameter of this model requires a gradient, so there is nothing to step on; call requires_grad_()")
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in wanted)
        yield [parameter for parameter in model.parameters() if parameter.requires_grad]
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])


@contextmanager
def _put_back(model: nn.Module) -> Iterator[_Restore]:
    """Whatever happens inside, the model is afterwards as it was: weights, buffers, gradients, mode. Memory: the model once more."""
    restore = _Restore(model)
    model.eval()
    try:
        yield restore
    finally:
        restore()
        for parameter, gradient in zip(model.parameters(), restore.gradients, strict=True):
            parameter.grad = gradient
        model.train(restore.training)


class _Restore:
    def __init__(self, model: nn.Module) -> None:
        self.training, self.gradients = model.training, [parameter.grad for parameter in model.parameters()]
        self.tensors = [*(p for p in model.parameters() if p.requires_grad), *model.buffers()]
        self.values = [tensor.detach().clone() for tensor in self.tensors]

    @torch.no_grad()
    def __call__(self) -> None:
        for tensor, value in zip(self.tensors, self.values, strict=True):
            tensor.copy_(value)


def _take_steps(session: Session, rows: Sequence[Example], parameters: list[nn.Parameter], patch: Patch) -> bool:
    """Whether every gradient was finite."""
    sign = 1 if patch.way == "down" else -1
    make = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[patch.optimizer]
    optimizer = make(parameters, lr=patch.lr, weight_decay=0.0)
    for _ in range(patch.steps):
        optimizer.zero_grad(set_to_none=True)
        for positions in plan_batches([row.n_tokens for row in rows], token_budget=TOKEN_BUDGET):
            (sign * _loss(session, [rows[i] for i in positions])).backward()
        if not all(torch.isfinite(p.grad).all() for p in parameters if p.grad is not None):
            return False
        optimizer.step()
    return True


def _loss(session: Session, rows: Sequence[Example]) -> Tensor:
    """Summed over rows. Through the model's own head: a measure's way past the logits has no gradient of the head's weight."""
    if session.task == "causal-lm":
        return mean_loss(session.model, rows, pad_id=session.pad_id) * sum(int(row.loss_mask[1:].sum()) for row in rows)
    batch = collate(rows, pad_id=session.pad_id).to(session.device)
    return measures.LOSS.fn(session.run(batch), batch).sum()
