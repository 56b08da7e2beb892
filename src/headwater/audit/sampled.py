"""A few rows, passed through the live model: what the cheap checks hold against each other. S sampled rows · D numbers of a gradient row"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from headwater.audit.subject import Subject
from headwater.corpus import collate, plan_batches
from headwater.gradient.rows import row_engine
from headwater.gradient.scope import find_scope, make_layout
from headwater.gradient.sketch import SketchSpec
from headwater.index.read import StoredIndex
from headwater.model.measures import LOSS
from headwater.model.session import Session
from headwater.types import Batch, Example, Layout

SMALL_SHARE = 0.01  # of the median norm: a gradient shorter than this is judged on that scale, where rounding is not all there is
KNOWN_BY_HEART = 0.05  # nats: below it the losses of all rows are alike


@dataclass(frozen=True)
class Passed:
    """Losses [S] and sketched gradients [S, D] of the same rows, in float64."""

    loss_S: Tensor
    gradient_SD: Tensor

    @property
    def finite_S(self) -> Tensor:
        return self.loss_S.isfinite() & self.gradient_SD.isfinite().all(1)

    def of(self, chosen_S: Tensor) -> Passed:
        return Passed(self.loss_S[chosen_S], self.gradient_SD[chosen_S])


def some_positions(subject: Subject, n: int, *, key: int) -> list[int]:
    """n positions of rows without replacement, in order; another `key` draws others."""
    n_rows = len(subject.rows)
    return sorted(np.random.default_rng([subject.seed, key]).choice(n_rows, size=min(n, n_rows), replace=False).tolist())


def layout_of(subject: Subject) -> Layout:
    """That of the index; before there is one, what an index with the default options would have."""
    if subject.index is not None:
        return subject.index.layout
    return make_layout(subject.session.model, find_scope(subject.session.model), SketchSpec())


def passed(
    session: Session,
    layout: Layout,
    rows: Sequence[Example],
    *,
    batches: Sequence[Sequence[int]] | None = None,
    token_budget: int = 1024,
    extra: int = 0,
) -> Passed:
    """Loss and sketched gradient of these rows, in their order, in the batches given or in those that an index would make.

    `extra` positions of padding are put to the right of every batch. Cost: one forward and backward pass over the rows.
    """
    batches = plan_batches([row.n_tokens for row in rows], token_budget=token_budget) if batches is None else batches
    loss_S = torch.empty(len(rows), dtype=torch.float64)
    gradient_SD = torch.empty(len(rows), layout.size, dtype=torch.float64)
    with row_engine(session, layout) as engine:
        for positions in batches:
            found = engine.rows(widened([rows[i] for i in positions], session.pad_id, extra), LOSS)
            loss_S[list(positions)] = found.value_B.double().cpu()
            gradient_SD[list(positions)] = found.gradient_BD.double().cpu()
    return Passed(loss_S, gradient_SD)


@torch.no_grad()
def losses(session: Session, rows: Sequence[Example], *, token_budget: int = 1024) -> np.ndarray:
    """[S] each row's loss, the sum over its targets, without dropout. Cost: a forward pass over the rows."""
    found_S = np.empty(len(rows))
    training = [module for module in session.model.modules() if module.training]
    session.model.eval()
    for positions in plan_batches([row.n_tokens for row in rows], token_budget=token_budget):
        outputs = session.run(collate([rows[i] for i in positions], pad_id=session.pad_id))
        found_S[list(positions)] = LOSS.fn(outputs, outputs.batch).double().cpu().numpy()
    for module in training:
        module.training = True
    return found_S


def widened(rows: Sequence[Example], pad_id: int, extra: int) -> Batch:
    """The rows in one batch, with more padding to the right than they need."""
    batch = collate(rows, pad_id=pad_id)
    pad = torch.nn.functional.pad
    tokens_BT = pad(batch.tokens_BT, (0, extra), value=pad_id)
    return replace(batch, tokens_BT=tokens_BT, loss_mask_BT=pad(batch.loss_mask_BT, (0, extra)))


def differences(one: Passed, other: Passed) -> Tensor:
    """[S] `max(|l - l'| / max(l, 1 nat), ||g - g'|| / ||g||)`, of rows that are finite in both; a tiny gradient counts as `SMALL_SHARE`."""
    norm_S = one.gradient_SD.norm(dim=1)
    scale_S = norm_S.clamp(min=float(SMALL_SHARE * norm_S.median()) if len(norm_S) else 0.0)
    loss_S = (one.loss_S - other.loss_S).abs() / one.loss_S.abs().clamp(min=1.0)
    apart_S = (one.gradient_SD - other.gradient_SD).norm(dim=1)
    return torch.maximum(loss_S, torch.where(scale_S > 0, apart_S / scale_S, apart_S))


def stored_loss_apart(index: StoredIndex, rows: Sequence[Example], live: Passed) -> Tensor:
    """[S] `|stored - live| / live` of the losses under the rows' ids, live ones of `KNOWN_BY_HEART` at least; infinite where not known."""
    at = index.positions_of([row.id for row in rows])
    stored_S = torch.from_numpy(np.asarray(index.column("loss"), dtype=np.float64)[at])
    return torch.nan_to_num((stored_S - live.loss_S).abs() / live.loss_S.abs().clamp(min=KNOWN_BY_HEART), nan=torch.inf)


def cosines(one_SD: Tensor, other_SD: Tensor) -> Tensor:
    """[S] of each row with its counterpart; 1 where both are zero, 0 where one is."""
    norms_S = one_SD.norm(dim=1) * other_SD.norm(dim=1)
    both_zero_S = (one_SD == 0).all(1) & (other_SD == 0).all(1)
    return torch.where(norms_S > 0, (one_SD * other_SD).sum(1) / norms_S.clamp(min=1e-300), both_zero_S.double())
