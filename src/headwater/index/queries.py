"""The queries' side of an index: the gradient of the measure, sketched as the training rows are, kept in memory.

Letters: Q queries · T positions · D stored numbers of a gradient row · H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headwater.corpus import collate, plan_batches
from headwater.gradient.rows import row_engine
from headwater.index.build import example_columns
from headwater.index.memory import MemoryIndex
from headwater.model.session import Session
from headwater.types import DataError, Example, Layout, Measure


def query_index(session: Session, layout: Layout, queries: Sequence[Example], measure: Measure, *, token_budget: int = 1024) -> MemoryIndex:
    """Float32 rows with `gradient_of="measure"`; the column "measure" has each query's value. Cost: a pass over the queries.

    Raises DataError for a query whose measure or gradient is not a finite number, with its id.
    """
    value_Q = torch.empty(len(queries), dtype=torch.float64)
    features = {"gradient": torch.empty(len(queries), layout.size)}
    features |= {name: torch.empty(len(queries), session.hidden_size) for name in ("representation", "representation_response")}
    with row_engine(session, layout) as engine:
        for positions in plan_batches([query.n_tokens for query in queries], token_budget=token_budget):
            rows = engine.rows(collate([queries[i] for i in positions], pad_id=session.pad_id), measure)
            where = torch.tensor(positions)
            value_Q[where] = rows.value_B.double().cpu()
            for name, values in zip(features, (rows.gradient_BD, rows.representation_BH, rows.representation_response_BH), strict=True):
                features[name][where] = values.float().cpu()
    _check_finite(queries, value_Q, features["gradient"])
    columns = {**example_columns(queries), "measure": value_Q.numpy(), "bad": [False] * len(queries)}
    return MemoryIndex([query.id for query in queries], layout, "measure", features, columns)


def position_gradients(session: Session, layout: Layout, query: Example, measure: Measure) -> Tensor:
    """[T, D] what each position of one query adds to its gradient. Memory T D numbers; cost one pass over the query."""
    with row_engine(session, layout, per_token=True) as engine:
        rows = engine.rows(collate([query], pad_id=session.pad_id), measure)
    return rows.gradient_BD[0, : query.n_tokens].float().cpu()


@torch.no_grad()
def target_log_probs(session: Session, query: Example) -> list[float | None]:
    """[T] log p of each target token; None where a token is no target, or the model is a classifier."""
    if session.task != "causal-lm":
        return [None] * query.n_tokens
    log_probs_T = session.run(collate([query], pad_id=session.pad_id)).token_log_probs()[0].tolist()
    return [value if target else None for value, target in zip(log_probs_T, query.loss_mask, strict=False)]


def _check_finite(queries: Sequence[Example], value_Q: Tensor, gradient_QD: Tensor) -> None:
    bad = [query.id for query, ok in zip(queries, value_Q.isfinite() & gradient_QD.isfinite().all(1), strict=True) if not ok]
    if bad:
        raise DataError(
            f"{len(bad)} of {len(queries)} queries have a measure or gradient that is not a finite number, the first is {bad[0]}. "
            "Likely cause: weights that overflowed in this dtype; load the model in float32."
        )
