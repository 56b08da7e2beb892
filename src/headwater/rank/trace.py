"""Queries in, ranked training rows out: every method on one index, each answer beside the others.

Writes `scores/<name>/`: trace.json (what a page shows), one safetensors file of scores a method, the queries as they were given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from headwater import methods
from headwater.index.atomic import write_atomically, write_json
from headwater.index.memory import MemoryIndex
from headwater.index.queries import position_gradients, query_index, target_log_probs
from headwater.index.read import StoredIndex
from headwater.model import measures
from headwater.model.session import Session
from headwater.progress import say, track
from headwater.rank.answer import rank
from headwater.rank.hubs import reference_scores
from headwater.recipe import TraceRecipe
from headwater.types import Example, IntegrityError, Measure, Method, Scores, State, UsageError

DEFAULT_METHODS = ("grad_cos", "grad_dot", "repsim", "repsim_response", "lexical", "length", "loss", "random")
SHORTEST_REFERENCE = 3


@dataclass(frozen=True)
class Traced:
    """What a trace left: its folder, the record that trace.json holds, and the full score matrices."""

    folder: Path
    record: dict[str, Any]
    scores: dict[str, Scores]


def trace_queries(
    run: str | Path, recipe: TraceRecipe, queries: Sequence[Example], *, session: Session, given: Sequence[Mapping[str, Any]] = ()
) -> Traced:
    """Score every training row for every query with every method of the recipe, rank, and write the record.

    `given` are the queries as the user wrote them, kept for `headwater replay`. Cost: a pass over the queries and the reference, one or two
    scans of the index a method. Raises IntegrityError where the index is of another model or unfinished, UsageError for wrong options.
    """
    index = StoredIndex.open(run)
    check_index(index, session)
    measure = measures.get(recipe.measure or default_measure(session, queries))
    chosen = {name: methods.get(name, **options) for name, options in recipe.methods.items()}
    if recipe.primary not in chosen:
        raise UsageError(f"the primary method is {recipe.primary!r}, expected one of the methods asked for: {', '.join(chosen)}")
    asked = query_index(session, index.layout, queries, measure)
    scores: dict[str, Scores] = {}
    ranked: dict[str, dict[str, Any]] = {}
    for name, method in track(chosen.items(), total=len(chosen), description=f"scoring {len(queries)} queries"):
        scores[name], ranked[name] = _answer(method, index, asked, recipe)
    record = _record(recipe, index, asked, measure, session, chosen, scores)
    record["queries"] = [_query(q, query, recipe, measure, session, index, asked, scores, ranked) for q, query in enumerate(queries)]
    record["rows"] = _rows(index, ranked)
    folder = Path(run) / "scores" / _name(recipe, asked, index)
    _write(folder, record, scores, given)
    return Traced(folder, record, scores)


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
            f"{index.run}: {n_rows} rows are not indexed yet. Run the `headwater index` command again: it goes on where it stopped."
        )
    expected = index.spec.facts.get("model")
    if expected != session.fingerprint:
        raise IntegrityError(
            f"{index.run} was made with other weights ({expected}) than {session.name} has now ({session.fingerprint}). "
            "Likely cause: the model was trained further or replaced since. Index again, or trace with the model of the index."
        )


def fitted(method: Method, index: StoredIndex) -> State:
    """The method's state for these rows: read from `state/` where it was kept, else fitted and kept."""
    key = _digest([index.spec.fingerprint, list(index.ids), method.name, asdict(method)])  # pyright: ignore[reportArgumentType]
    path = index.run / "state" / f"{method.name}-{key}.safetensors"
    if path.exists():
        return safetensors.torch.load(path.read_bytes())
    state = method.fit(index)
    if state:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, safetensors.torch.save({name: tensor.contiguous() for name, tensor in state.items()}))
    return state


def _answer(method: Method, index: StoredIndex, asked: MemoryIndex, recipe: TraceRecipe) -> tuple[Scores, dict[str, Any]]:
    state = fitted(method, index)
    scores = method.score(state, index, asked)
    n_reference = min(recipe.n_reference, len(index) - index.n_bad)
    reference = None
    if n_reference >= SHORTEST_REFERENCE:
        reference = reference_scores(method, state, index, n_reference=n_reference, seed=recipe.seed)
    return scores, rank(scores, reference, index, asked, k=recipe.k)


def _record(
    recipe: TraceRecipe,
    index: StoredIndex,
    asked: MemoryIndex,
    measure: Measure,
    session: Session,
    chosen: Mapping[str, Method],
    scores: Mapping[str, Scores],
) -> dict[str, Any]:
    return {
        "format": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "headwater": version("headwater"),
        "model": session.name,
        "revision": session.revision,
        "adapter": session.adapter,
        "n_train": len(index),
        "n_bad": index.n_bad,
        "n_reference": min(recipe.n_reference, len(index) - index.n_bad),
        "measure": {"name": measure.name, "unit": measure.unit},
        "primary": recipe.primary,
        "recipe": recipe.model_dump(mode="json"),
        "methods": [
            {"name": name, "unit": method.unit, "summary": getattr(method, "summary", ""), "provenance": dict(scores[name].provenance)}
            for name, method in chosen.items()
        ],
        "experiment": None,
    }


def _query(
    q: int, query: Example, recipe: TraceRecipe, measure: Measure, session: Session, index: StoredIndex, asked: MemoryIndex,
    scores: Mapping[str, Scores], ranked: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    contributions = _contributions(q, query, measure, session, index, asked, scores[recipe.primary])
    log_probs = target_log_probs(session, query)
    texts = [session.tokenizer.decode([token]) for token in query.tokens.tolist()]
    return {
        "id": query.id,
        "kind": query.meta.get("kind"),
        "prompt": query.prompt,
        "response": query.response,
        "alternative": query.alternative.response if query.alternative else None,
        "measure_value": float(asked.column("measure")[q]),
        "tokens": [
            {"text": text, "target": bool(target), "log_prob": log_prob, "contribution": contribution}
            for text, target, log_prob, contribution in zip(texts, query.loss_mask, log_probs, contributions, strict=True)
        ],
        "ranked": {name: answers[query.id] for name, answers in ranked.items()},
    }


def _contributions(
    q: int, query: Example, measure: Measure, session: Session, index: StoredIndex, asked: MemoryIndex, scores: Scores
) -> list[float | None]:
    """What each position adds to the primary score of the first row; None for methods that use no gradient product."""
    kernel = scores.provenance.get("kernel")
    first = scores.top(q, 1)
    if kernel not in ("dot", "cosine") or not first:
        return [None] * query.n_tokens
    row_D = index.take("gradient", index.positions_of([first[0][0]]))[0]
    terms_T = -(position_gradients(session, index.layout, query, measure) @ row_D)
    scale = len(index) if kernel == "dot" else float(asked.take("gradient", [q])[0].norm() * row_D.norm())
    return (terms_T / scale).tolist() if scale else [0.0] * query.n_tokens


def _rows(index: StoredIndex, ranked: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What a reader wants to know of every row that any method listed."""
    listed = dict.fromkeys(
        row["id"] for answers in ranked.values() for answer in answers.values() for rows in answer.values() for row in rows
    )
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


def _name(recipe: TraceRecipe, asked: MemoryIndex, index: StoredIndex) -> str:
    """The hash of everything that decides the answer: the same trace again has the same name."""
    options = recipe.model_dump(mode="json", exclude={"queries"})
    queries = [
        list(asked.ids),
        asked.column("measure").round(6).tolist(),
        asked.column("prompt").tolist(),
        asked.column("response").tolist(),
    ]
    return f"trace-{_digest([options, queries, index.spec.fingerprint, list(index.ids)])}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _write(folder: Path, record: Mapping[str, Any], scores: Mapping[str, Scores], given: Sequence[Mapping[str, Any]]) -> None:
    """Score matrices first, trace.json last: a folder with a trace.json is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, one in scores.items():
        write_atomically(folder / f"{name}.safetensors", safetensors.torch.save({"scores": torch.from_numpy(one.values_QN)}))
    ids = {"query_ids": list(next(iter(scores.values())).query_ids), "train_ids": list(next(iter(scores.values())).train_ids)}
    write_json(folder / "ids.json", ids)
    lines = "".join(json.dumps(dict(query), ensure_ascii=False) + "\n" for query in given)
    write_atomically(folder / "queries.jsonl", lines.encode())
    write_json(folder / "trace.json", record)
    say(f"wrote {folder / 'trace.json'}")
