"""The queries' side of an index: the gradient of the measure, sketched as the training rows are, kept in memory.

Letters: Q queries · T positions · D stored numbers of a gradient row · H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from headwater.atomic import read_json
from headwater.corpus import collate
from headwater.gradient.rows import RowEngine, row_engine
from headwater.gradient.team import plan_work, row_engines
from headwater.gradient.transform import Transform
from headwater.index.build import example_columns, open_session, open_transform
from headwater.index.memory import MemoryIndex
from headwater.index.read import StoredIndex
from headwater.model.session import Session
from headwater.progress import track
from headwater.recipe import IndexRecipe
from headwater.types import DataError, Example, IntegrityError, Layout, Measure, Member, MemberRole


def query_index(
    session: Session,
    layout: Layout,
    queries: Sequence[Example],
    measure: Measure,
    *,
    token_budget: int = 2048,
    transform: Transform | None = None,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
) -> MemoryIndex:
    """Float32 rows with `gradient_of="measure"`; columns "measure" (each query's value) and "measure_name". Cost: a pass over the queries.

    `transform` is what becomes of the measure's gradient before the sketch, where the rows' is transformed on both sides; `extra` the
    further features that the index has of its rows. Raises DataError for a query whose measure or gradient is not a finite number, with
    its id.
    """
    value_Q = torch.empty(len(queries), dtype=torch.float64)
    features = {"gradient": torch.empty(len(queries), layout.size)}
    features |= {name: torch.empty(len(queries), session.hidden_size) for name in ("representation", "representation_response")}
    features |= {name: torch.empty(len(queries), int(about["width"])) for name, about in (extra or {}).items()}

    def put(engine: RowEngine, positions: Sequence[int]) -> None:
        rows = engine.rows(collate([queries[i] for i in positions], pad_id=session.pad_id), measure)
        where = torch.tensor(positions)
        value_Q[where] = rows.value_B.double().cpu()
        further = [feature.of_query(rows.extra[feature.name]) for feature in engine.features]
        found = (rows.gradient_BD, rows.representation_BH, rows.representation_response_BH, *further)
        for name, values in zip(features, found, strict=True):
            features[name][where] = values.float().cpu()

    lengths = [query.n_tokens for query in queries]
    with row_engines(session, layout, lengths, token_budget, transform=transform, extra=extra) as engines:
        for _ in engines.each(plan_work(session, lengths, token_budget), put):
            pass
    _check_finite(queries, value_Q, features["gradient"])
    measured = {"measure": value_Q.numpy(), "measure_name": [measure.name] * len(queries)}
    columns = {**example_columns(queries), **measured, "bad": [False] * len(queries)}
    return MemoryIndex([query.id for query in queries], layout, "measure", features, columns)


def query_members(
    session: Session, index: StoredIndex, roles: Sequence[MemberRole], queries: Sequence[Example], measure: Measure
) -> list[Member]:
    """The queries as the model of each of the index's members sees them, under the member's name. Cost: a pass over them for each.

    `session` is the main model's; beside it one member's model is in memory at a time. Adam members have queries with plain gradients:
    an update is what a training row does. Raises IntegrityError where a member's model or optimizer state has changed since.
    """
    asked = [member for role in roles for member in index.members(role)]
    main = session.fingerprint if asked else ""
    found: list[Member] = []
    for member in track(asked, total=len(asked), description="queries at each member"):
        stored = cast(StoredIndex, member.index)
        own = session if stored.spec.facts["model"] == main else member_session(stored, session)
        transform = _query_transform(stored, own)
        found.append(replace(member, index=query_index(own, stored.layout, queries, measure, transform=transform)))
    return found


def member_session(member: StoredIndex, main: Session) -> Session:
    session = open_session(_recipe(member).model, tokenizer=main.tokenizer)
    expected = member.spec.facts["model"]
    if session.fingerprint != expected:
        raise IntegrityError(
            f"{member.run} was made with other weights ({expected}) than {session.adapter or session.name} has now "
            f"({session.fingerprint}). Put the checkpoint of that time back, or delete the member's folder and index again."
        )
    return session


def _query_transform(member: StoredIndex, session: Session) -> Transform | None:
    expected = member.spec.facts.get("transform")
    if expected is None or expected["kind"] != "second_moment":
        return None
    transform = open_transform(_recipe(member).transform, session)
    if transform is None or transform.describe() != expected:
        raise IntegrityError(
            f"{member.run} was made with another state of the optimizer than there is now. Put the checkpoint of that time back, or "
            "delete the member's folder and index again."
        )
    return transform


def _recipe(member: StoredIndex) -> IndexRecipe:
    way_out = "It says how the member was made: delete the member's folder and index again."
    return IndexRecipe.parse(read_json(member.run / "run.json", way_out=way_out)["recipe"])


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
