"""Queries in, ranked training rows out: every method on one index, each answer beside the others.

Writes `scores/<name>/`: trace.json (what a page shows), one safetensors file of scores a method, the queries as they were given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import safetensors.torch
import torch

from headwater import methods
from headwater.atomic import write_atomically, write_json
from headwater.index.examples import stored_examples
from headwater.index.live import LiveIndex, LiveQueries, needs_model, open_live
from headwater.index.memory import MemoryIndex
from headwater.index.queries import position_gradients, query_index, query_members, target_log_probs
from headwater.index.read import StoredIndex
from headwater.methods.shared import check_features, members_of, wanted_roles
from headwater.model import measures
from headwater.model.session import Session
from headwater.progress import say, track
from headwater.rank.answer import rank
from headwater.rank.by_group import adds_up
from headwater.rank.hubs import can_refer, reference_scores
from headwater.rank.tokens import TokenScores, check_supported, token_scores
from headwater.recipe import DEFAULT_METHODS, TraceRecipe
from headwater.types import Example, Index, IntegrityError, Measure, MemberRole, Method, Scores, State, UsageError

__all__ = ["DEFAULT_METHODS", "Traced", "check_index", "default_measure", "fitted", "trace_queries"]

SHORTEST_REFERENCE = 3


@dataclass(frozen=True)
class Traced:
    """What a trace left: its folder, the record that trace.json holds, and the full score matrices."""

    folder: Path
    record: dict[str, Any]
    scores: dict[str, Scores]


@dataclass(frozen=True, eq=False)
class _Asked:
    """What is asked of an index, settled before any scan: the queries with their gradients, the measure, the methods."""

    recipe: TraceRecipe
    session: Session
    index: StoredIndex
    rows: Index  # what methods are given: the index, with the model at hand where one of them needs it
    examples: Sequence[Example]
    queries: MemoryIndex
    measure: Measure
    methods: Mapping[str, Method]

    @property
    def n_reference(self) -> int:
        """Training rows that serve as reference queries: bad ones cannot."""
        return min(self.recipe.n_reference, len(self.index) - self.index.n_bad)


@dataclass(frozen=True)
class _Answer:
    """What one method said: every score, and the rows worth reading of each query."""

    scores: Scores
    ranked: Mapping[str, dict[str, list[dict[str, Any]]]]


def trace_queries(
    run: str | Path,
    recipe: TraceRecipe,
    queries: Sequence[Example],
    *,
    session: Session,
    measure: Measure | None = None,
    given: Sequence[Mapping[str, Any]] = (),
    data: Any = None,
) -> Traced:
    """Score every training row for every query with every method of the recipe, rank, and write the record.

    `measure` is one that is no built-in (`measures.custom`); `given` are the queries as the user wrote them, kept for `headwater replay`;
    `data` the rows of an index of data in memory, where the recipe asks for scores of tokens. Cost: a pass over the queries, and for each
    method one or two scans of the index. Raises IntegrityError where the index is of another model or unfinished, UsageError for wrong
    options.
    """
    index = StoredIndex.open(run)
    check_index(index, session)
    measure = measure or measures.get(recipe.measure or default_measure(session, queries))
    chosen = {name: methods.get(name, **options) for name, options in recipe.methods.items()}
    roles = _roles(chosen.values(), index)
    for role in roles:
        members_of(index, role)  # what a method lacks is said before anything is computed
    rows = open_live(index, session, chosen.values(), data) if needs_model(chosen.values()) else index
    for method in chosen.values():
        check_features(method, rows, "the index")
    if recipe.tokens:
        check_supported(chosen[recipe.primary])
    at_members = query_members(session, index, roles, queries, measure)
    queried = query_index(session, index.layout, queries, measure, extra=index.spec.extra).with_members(at_members)
    if isinstance(rows, LiveIndex):
        queried = LiveQueries(queried, rows.source, queries, measure)
    asked = _Asked(recipe, session, index, rows, queries, queried, measure, chosen)
    answers = {
        name: _answer(asked, method)
        for name, method in track(chosen.items(), total=len(chosen), description=f"scoring {len(queries)} queries")
    }
    folder = Path(run) / "scores" / _name(asked)
    record = _record(asked, answers, _take_apart(asked, answers[recipe.primary].scores, data))
    _write(folder, record, {name: answer.scores for name, answer in answers.items()}, given)
    return Traced(folder, record, {name: answer.scores for name, answer in answers.items()})


def default_measure(session: Session, queries: Sequence[Example]) -> str:
    """By the kind of query: a class margin, a contrast where every query has a second response, else the response's log-probability."""
    if session.task == "sequence-classification":
        return "class_logit_margin"
    contrasts = sum(query.alternative is not None for query in queries)
    if 0 < contrasts < len(queries):
        raise UsageError(f"{contrasts} of {len(queries)} queries have an alternative; trace the two kinds separately, or name the measure")
    return "contrast" if contrasts else "response_log_probability"


def check_index(index: StoredIndex, session: Session) -> None:
    """Raise unless the index is complete and of this very model."""
    if index.missing_rows:
        n_rows = sum(len(rows) for rows in index.missing_rows)
        raise IntegrityError(
            f"{index.run}: {n_rows:,} rows are not indexed yet. Run the same `headwater index` command again: it goes on where it stopped."
        )
    expected = index.spec.facts.get("model")
    if expected != session.fingerprint:
        raise IntegrityError(
            f"{index.run} was made with other weights ({expected}) than {session.name} has now ({session.fingerprint}). "
            "Likely cause: the model was trained further or replaced since. Index again, or trace with the model of the index."
        )


def fitted(method: Method, index: StoredIndex, rows: Index | None = None) -> State:
    """The method's state for these rows and members: read from `state/` where it was kept, else fitted to `rows` (the index) and kept."""
    used = _members_key(index, _roles([method], index))
    key = _digest([index.spec.fingerprint, list(index.ids), repr(method), *used])
    path = index.run / "state" / f"{method.name}-{key}.safetensors"
    if path.exists():
        return safetensors.torch.load(path.read_bytes())
    state = method.fit(rows or index)
    if state:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, safetensors.torch.save({name: tensor.contiguous() for name, tensor in state.items()}))
    return state


def _roles(chosen: Iterable[Method], index: StoredIndex) -> list[MemberRole]:
    """The roles of the members on which these methods need the queries."""
    wanted = {role for method in chosen for role in wanted_roles(method, index)}
    return [role for role in get_args(MemberRole) if role in wanted]


def _members_key(index: StoredIndex, roles: Sequence[MemberRole]) -> list[Any]:
    """What decides a number that rests on members: their models, sketches and transforms, steps and learning rates. Nothing without any."""
    members = [member for role in roles for member in index.members(role)]
    return [[m.name, m.role, m.step, m.learning_rate, cast(StoredIndex, m.index).spec.fingerprint] for m in members]


def _answer(asked: _Asked, method: Method) -> _Answer:
    state = fitted(method, asked.index, asked.rows)
    if hasattr(method, "for_task"):  # what depends on the set of queries is settled once, for the reference queries too
        state = cast(Any, method).for_task(state, asked.rows, asked.queries)
    scores = method.score(state, asked.rows, asked.queries)
    for note in scores.provenance.get("notes", ()):
        say(note)
    if adds_up(scores):  # a method that predicts a change of the measure predicts it in the measure's own unit
        scores = replace(scores, unit=asked.measure.unit)
    reference = None
    if asked.n_reference >= SHORTEST_REFERENCE and not needs_model([method]) and can_refer(asked.index, wanted_roles(method, asked.index)):
        reference = reference_scores(method, state, asked.index, n_reference=asked.n_reference, seed=asked.recipe.seed)
    return _Answer(scores, rank(scores, reference, asked.index, asked.queries, k=asked.recipe.k))


def _record(asked: _Asked, answers: Mapping[str, _Answer], taken_apart: Mapping[str, list[TokenScores]]) -> dict[str, Any]:
    """trace.json: what a reader needs without our code, and the recipe that repeats it."""
    recipe, session, index = asked.recipe, asked.session, asked.index
    return {
        "format": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "headwater": version("headwater"),
        "model": session.name,
        "revision": session.revision,
        "adapter": session.adapter,
        "n_train": len(index),
        "n_bad": index.n_bad,
        "n_reference": asked.n_reference,
        "measure": {"name": asked.measure.name, "unit": asked.measure.unit},
        "primary": recipe.primary,
        "recipe": {**recipe.model_dump(mode="json"), "measure": asked.measure.name},
        "methods": [_method_record(method, answers[name].scores) for name, method in asked.methods.items()],
        "queries": [_query_record(asked, answers, taken_apart, q) for q in range(len(asked.examples))],
        "rows": _rows(index, answers),
        "experiment": None,
    }


def _method_record(method: Method, scores: Scores) -> dict[str, Any]:
    summary = getattr(method, "summary", "")
    return {"name": method.name, "unit": scores.unit, "summary": summary, "provenance": dict(scores.provenance)}


def _query_record(asked: _Asked, answers: Mapping[str, _Answer], taken_apart: Mapping[str, list[TokenScores]], q: int) -> dict[str, Any]:
    query = asked.examples[q]
    texts = [asked.session.tokenizer.decode([token]) for token in query.tokens.tolist()]
    log_probs = target_log_probs(asked.session, query)
    matrices = taken_apart.get(query.id, [])
    own = matrices[0].by_query_token.tolist() if matrices else _contributions(asked, answers[asked.recipe.primary].scores, q)
    contributions = own[: query.n_tokens]  # a contrast's second response may be longer
    return {
        "id": query.id,
        "kind": query.meta.get("kind"),
        "prompt": query.prompt,
        "response": query.response,
        "alternative": query.alternative.response if query.alternative else None,
        "measure_value": float(asked.queries.column("measure")[q]),
        "tokens": [
            {"text": text, "target": bool(target), "log_prob": log_prob, "contribution": contribution}
            for text, target, log_prob, contribution in zip(texts, query.loss_mask, log_probs, contributions, strict=True)
        ],
        "token_scores": [one.to_json() for one in matrices],
        "ranked": {name: answer.ranked[query.id] for name, answer in answers.items()},
    }


def _take_apart(asked: _Asked, scores: Scores, data: Any) -> dict[str, list[TokenScores]]:
    """{query: the token scores of its first rows by the primary method}, for as many as the recipe asks for."""
    method, n = asked.methods[asked.recipe.primary], asked.recipe.tokens
    if not n:
        return {}
    tops = {query.id: [row_id for row_id, score in scores.top(q, n) if score > 0] for q, query in enumerate(asked.examples)}
    wanted = list(dict.fromkeys(row_id for ids in tops.values() for row_id in ids))
    rows = dict(zip(wanted, stored_examples(asked.index, asked.session, wanted, data=data), strict=True))
    state, sides = fitted(method, asked.index, asked.rows), {"session": asked.session, "measure": asked.measure}
    return {
        query.id: [token_scores(method, state, asked.rows, query=query, row=rows[row_id], **sides) for row_id in tops[query.id]]
        for query in track(asked.examples, total=len(asked.examples), description="scores of tokens")
    }


def _contributions(asked: _Asked, scores: Scores, q: int) -> list[float | None]:
    """What each position adds to the primary score of the first row; None for methods that use no gradient product."""
    query, index = asked.examples[q], asked.index
    kernel, first = scores.provenance.get("kernel"), scores.top(q, 1)
    if kernel not in ("dot", "cosine") or scores.provenance.get("feature") != "gradient" or not first:
        return [None] * query.n_tokens
    row_D = index.take("gradient", index.positions_of([first[0][0]]))[0]
    terms_T = -(position_gradients(asked.session, index.layout, query, asked.measure) @ row_D)
    scale = len(index) if kernel == "dot" else float(asked.queries.take("gradient", [q])[0].norm() * row_D.norm())
    return (terms_T / scale).tolist() if scale else [0.0] * query.n_tokens


def _rows(index: StoredIndex, answers: Mapping[str, _Answer]) -> dict[str, dict[str, Any]]:
    """What a reader wants to know of every row that any method listed."""
    sides = [side for answer in answers.values() for sides in answer.ranked.values() for side in sides.values()]
    listed = dict.fromkeys(row["id"] for side in sides for row in side)
    positions = index.positions_of(list(listed))
    groups = index.column("group")
    names, counts = np.unique(groups.astype(str), return_counts=True)
    copies = dict(zip(names.tolist(), counts.tolist(), strict=True))
    columns = {
        name: index.column(name)[positions]
        for name in ("prompt", "response", "source", "row", "group", "label", "n_tokens", "n_loss_tokens", "loss")
    }
    return {
        row_id: {**{name: _plain(values[i]) for name, values in columns.items()}, "copies": copies[str(columns["group"][i])]}
        for i, row_id in enumerate(listed)
    }


def _plain(value: Any) -> Any:
    """A numpy scalar as JSON has it; NaN is null."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and value != value else value


def _name(asked: _Asked) -> str:
    """The hash of everything that decides the answer: the same trace again has the same name."""
    options = {**asked.recipe.model_dump(mode="json", exclude={"queries", "tokens"}), "measure": asked.measure.name}
    queries = [[query.id, value] for query, value in zip(asked.examples, asked.queries.column("measure").round(6).tolist(), strict=True)]
    contents = [[part.tokens.tolist(), part.loss_mask.tolist()] for query in asked.examples for part in (query, query.alternative) if part]
    members = _members_key(asked.index, _roles(asked.methods.values(), asked.index))
    return f"trace-{_digest([options, queries, contents, asked.index.spec.fingerprint, list(asked.index.ids), *members])}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _write(folder: Path, record: Mapping[str, Any], scores: Mapping[str, Scores], given: Sequence[Mapping[str, Any]]) -> None:
    """Score matrices first, trace.json last: a folder with a trace.json is complete."""
    for name, one in scores.items():
        write_atomically(folder / f"{name}.safetensors", safetensors.torch.save({"scores": torch.from_numpy(one.values_QN)}))
    one = next(iter(scores.values()))
    write_json(folder / "ids.json", {"query_ids": list(one.query_ids), "train_ids": list(one.train_ids)})
    lines = "".join(json.dumps(dict(query), ensure_ascii=False, default=str) + "\n" for query in given)
    write_atomically(folder / "queries.jsonl", lines.encode())
    write_json(folder / "trace.json", record)
    say(f"wrote {folder / 'trace.json'}")
