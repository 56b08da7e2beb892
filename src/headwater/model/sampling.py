"""Where a backward pass over training rows begins: at their own targets, or at targets drawn from the model's prediction.

Both come out of one forward pass: the derivative of `-log p(y)` with respect to a hidden state is `W'(p - onehot(y))`, and `W'p`, the dear
part, does not depend on y.

Letters: P target positions · C positions of one chunk · H hidden size · V vocabulary · B rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import xxhash
from torch import Tensor

from headwater.model.head import Head, chunk_rows
from headwater.model.outputs import SessionOutputs
from headwater.types import Labels

RUN = 64  # neighbouring probabilities that are summed first, so that a draw reads a row of V numbers once


class Start(NamedTuple):
    """`root.backward(gradient)` gives the gradient of the rows' summed loss."""

    root: Tensor
    gradient: Tensor | None


def loss_starts(outputs: SessionOutputs, labels: Sequence[Labels], *, seed: int, through_logits: bool) -> list[Start]:
    """One start for each kind of labels, all on the same graph. `through_logits`: the head's own weight is in scope.

    Draws are keyed by (seed, row id, position): they do not depend on how rows are batched.
    """
    session, batch = outputs.session, outputs.batch
    if session.task == "sequence-classification":
        assert batch.labels_B is not None, "a classifier's rows have labels"
        drawing = _Drawing(batch.labels_B, _uniforms(batch.ids, seed, torch.zeros(len(batch), dtype=torch.long), labels))
        return _plain_starts(outputs.class_logits(), labels, drawing)
    rows_P, before_P = batch.loss_mask_BT[:, 1:].nonzero(as_tuple=True)
    uniforms = _uniforms([batch.ids[i] for i in rows_P.tolist()], seed, before_P, labels)
    drawing = _Drawing(batch.tokens_BT[rows_P, before_P + 1], uniforms)
    if through_logits or session.head is None:
        return _plain_starts(outputs.logits()[rows_P, before_P], labels, drawing)
    hidden_PH = outputs.hidden_BTH[rows_P, before_P]
    return [Start(hidden_PH, slope_PH) for slope_PH in _head_slopes(session.head, hidden_PH.detach(), labels, drawing)]


class _Drawing(NamedTuple):
    """The targets themselves, and the random numbers of each kind of labels that is drawn."""

    targets_P: Tensor
    uniforms: Mapping[Labels, Tensor]

    def choose(self, kind: Labels, probabilities_CV: Tensor, rows: slice = slice(None)) -> Tensor:
        """[C] the labels of that kind at the positions `rows`."""
        if kind == "true":
            return self.targets_P[rows]
        return draw(probabilities_CV, self.uniforms[kind][rows].to(probabilities_CV.device))


def draw(probabilities_CV: Tensor, uniform_C: Tensor) -> Tensor:
    """[C] indexes, each with its (unnormalised) probability: the inverse of the cumulative sum, in two levels."""
    C, V = probabilities_CV.shape
    padded_CV = probabilities_CV if V % RUN == 0 else torch.nn.functional.pad(probabilities_CV, (0, -V % RUN))
    runs_CRr = padded_CV.view(C, -1, RUN)
    ends_CR = runs_CRr.sum(-1).cumsum(-1)
    reach_C1 = (uniform_C.to(ends_CR.dtype) * ends_CR[:, -1]).unsqueeze(1)
    run_C1 = torch.searchsorted(ends_CR, reach_C1, right=True).clamp(max=ends_CR.shape[1] - 1)
    rest_C1 = reach_C1 - torch.where(run_C1 > 0, ends_CR.gather(1, (run_C1 - 1).clamp(min=0)), 0.0)
    inside_Cr = runs_CRr.gather(1, run_C1.unsqueeze(-1).expand(-1, -1, RUN)).squeeze(1).cumsum(-1)
    within_C1 = torch.searchsorted(inside_Cr, rest_C1, right=True).clamp(max=RUN - 1)
    return (run_C1 * RUN + within_C1).squeeze(1).clamp(max=V - 1)


@torch.no_grad()
def _head_slopes(head: Head, hidden_PH: Tensor, labels: Sequence[Labels], drawing: _Drawing) -> list[Tensor]:
    """[P, H] for each kind of labels: the loss's derivative with respect to the hidden states, in chunks of positions."""
    slopes = [torch.empty_like(hidden_PH) for _ in labels]
    for rows in _chunks(len(hidden_PH), chunk_rows(head.linear, torch.promote_types(hidden_PH.dtype, torch.float32))):
        probabilities_CV, inner_CV = head.probabilities(hidden_PH[rows])
        weights_CV = probabilities_CV if inner_CV is None else probabilities_CV * inner_CV
        mean_CH = weights_CV.to(hidden_PH.dtype) @ head.linear.weight
        for slope_PH, kind in zip(slopes, labels, strict=True):
            chosen_C = drawing.choose(kind, probabilities_CV, rows)
            own_CH = head.linear.weight[chosen_C]
            if inner_CV is not None:
                own_CH = own_CH * inner_CV.expand_as(probabilities_CV).gather(1, chosen_C[:, None])
            slope_PH[rows] = mean_CH - own_CH
    return slopes


def _plain_starts(logits_PV: Tensor, labels: Sequence[Labels], drawing: _Drawing) -> list[Start]:
    log_probs_PV = logits_PV.to(torch.promote_types(logits_PV.dtype, torch.float32)).log_softmax(-1)
    chosen = [drawing.choose(kind, log_probs_PV.detach().exp()) for kind in labels]
    return [Start(-log_probs_PV.gather(1, one_P[:, None]).sum(), None) for one_P in chosen]


def _uniforms(ids: Sequence[str], seed: int, positions_P: Tensor, labels: Sequence[Labels]) -> dict[Labels, Tensor]:
    """[P] float64 in [0, 1) for each kind that is drawn, a function of (kind, seed, id, position) alone."""
    ends: dict[Labels, str] = {"sampled": "", "resampled": "/again"}
    places = [f"{row_id}/{t}" for row_id, t in zip(ids, positions_P.tolist(), strict=True)] if set(labels) - {"true"} else []
    return {kind: _uniform([place + ends[kind] for place in places], seed) for kind in labels if kind != "true"}


def _uniform(places: Sequence[str], seed: int) -> Tensor:
    keys = np.array([xxhash.xxh3_64_intdigest(place.encode(), seed=seed) for place in places], dtype=np.uint64)
    return torch.from_numpy((keys >> np.uint64(11)) * 2.0**-53)


def _chunks(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
