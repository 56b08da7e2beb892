"""Worlds with a known truth, and worlds with one planted fault each, on top of `tests.audit_world`.

Q queries · N training rows
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import headwater
from headwater import curvature
from headwater.audit.subject import Subject
from headwater.auditing import open_subject
from headwater.curvature import Fisher
from headwater.index import build
from headwater.model.session import Session, load_session
from headwater.truth.finetune import Recipe
from headwater.types import Example, Scores, Solve, Source, State, with_values
from tests.audit_world import AuditWorld, make_world

ANSWERS = {"car": "red", "house": "blue", "river": "green", "stone": "white"}
COPIES = 5  # rows of each thing: as many as a named group has, so that without it nothing says the answer
THOROUGH = Recipe(epochs=20, lr=1e-2, batch_rows=4)
ENOUGH = Recipe(epochs=12, lr=1e-2, batch_rows=8)
NOTHING = Recipe(epochs=1, lr=1e-12, batch_rows=8)


def learned_world(folder: Path, *, training: Recipe = THOROUGH, **options: Any) -> AuditWorld:
    """The model learned the answers by heart: a query's answer is in five rows, and in no other. The query's word is in these too."""
    rows = [{"prompt": f"{thing} {i}", "response": answer} for i in range(COPIES) for thing, answer in ANSWERS.items()]
    queries = [{"id": f"{thing} {i}", "prompt": f"{thing} {i}", "response": answer} for thing, answer in ANSWERS.items() for i in (8, 9)]
    return make_world(folder, rows=rows, queries=queries, training=training, **options)


def untrained_world(folder: Path) -> AuditWorld:
    """Training did nothing: whatever the model says, no row said it."""
    return learned_world(folder, training=NOTHING)


ENDINGS = ("ba", "do", "fi", "gu", "ka", "lo", "mi", "nu", "pa", "ro", "si", "tu")
KINDS = {"zor": "red", "vel": "blue", "qui": "green", "hap": "white"}


def kinds_world(folder: Path, *, training: Recipe = ENOUGH, **options: Any) -> AuditWorld:
    """The answer is in how a word begins. No query shares a word with a prompt, so that no search for words finds its cause."""
    rows = [{"prompt": kind + end, "response": answer} for end in ENDINGS for kind, answer in KINDS.items()]
    queries = [{"id": kind + end, "prompt": kind + end, "response": answer} for kind, answer in KINDS.items() for end in ("we", "xa")]
    return make_world(folder, rows=rows, queries=queries, training=training, **options)


# ------------------------------------------------------------------------------------------------------ planted faults

Patch = pytest.MonkeyPatch
Plant = Callable[[Path, Patch], Subject]


@dataclass(frozen=True)
class Fault:
    """What is planted, the finding that it must turn to `fail`, a word that must be in it, and what may fail because of it."""

    plant: Plant
    finding: str
    word: str
    follows: frozenset[str] = frozenset()


def padding_in_the_loss(folder: Path, patch: Patch) -> Subject:
    """As the paper's v2 code: rows filled up to one length, and the filling counted; trained, indexed and traced so."""
    encoding = import_module("headwater.corpus.encode")  # the package has a function of that name
    plain = encoding.to_example

    def padded(text: Any, encoded: Any, **where: Any) -> Example:
        n = 16 - len(encoded.tokens)
        tokens = np.concatenate([encoded.tokens, np.full(n, PAD_ID)])
        mask = np.concatenate([encoded.loss_mask, np.ones(n, dtype=bool)])
        return plain(text, replace(encoded, tokens=tokens, loss_mask=mask), **where)

    patch.setattr(encoding, "to_example", padded)
    return kinds_world(folder).subject()


PAD_ID = 0  # of the tiny models


def damping_of_the_other_sign(folder: Path, patch: Patch) -> Subject:
    patch.setitem(curvature._curvatures, Subtracted.name, Subtracted)
    return traced_by(folder, Subtracted.name)


@dataclass(frozen=True)
class Subtracted(Fisher):
    """`(C - lambda)^-1 v`, by Woodbury's formula with the other sign."""

    joint: bool = True
    name = "subtracted"

    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        rows_ND = torch.cat([rows_ND for _, rows_ND in source.blocks("gradient")]).double()
        damping, b_KD64 = -float(state["damping"][0]), b_KD.double()
        middle_NN = rows_ND @ rows_ND.T + len(rows_ND) * damping * torch.eye(len(rows_ND), dtype=torch.float64)
        x_KD = (b_KD64 - torch.linalg.solve(middle_NN, rows_ND @ b_KD64.T).T @ rows_ND) / damping
        return Solve(x_KD.to(b_KD), "closed_form")


def lissa_that_never_left_the_gradient(folder: Path, patch: Patch) -> Subject:
    return traced_by(folder, "lissa_released")


def traced_by(folder: Path, method: str) -> Subject:
    world = kinds_world(folder)
    trace = headwater.trace(world.run, queries=world.folder / "queries.jsonl", k=5, methods=[method, "grad_dot"], primary=method)
    return world.subject(trace=trace.folder.name)


def shuffled_ids(folder: Path, patch: Patch) -> Subject:
    """The writer of the index puts ids in another order than rows."""
    columns = build.example_columns

    def rotated(examples: Sequence[Example]) -> dict[str, list[Any]]:
        made = columns(examples)
        return {**made, "id": [*made["id"][3:], *made["id"][:3]]}

    patch.setattr(build, "example_columns", rotated)
    subject = kinds_world(folder).subject()
    patch.setattr(build, "example_columns", columns)  # what the checks index for themselves is in order
    return subject


def another_checkpoint(folder: Path, patch: Patch) -> Subject:
    """Halfway between the base and the model that was indexed: an earlier step of its training."""
    subject = kinds_world(folder).subject()
    model, base = copy.deepcopy(subject.session.model), dict(subject.base_session.model.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.lerp_(base[name], 0.5)
    return replace(subject, session=replace(subject.session, model=model))


def hub_row(folder: Path, patch: Patch) -> Subject:
    """One row of an enormous score for every query: one did so for 234 of 260 in the paper's own scores."""
    subject = kinds_world(folder).subject()
    scores = subject.asked.scores[subject.asked.primary]
    values_QN = scores.values_QN.copy()
    values_QN[:, 7] = values_QN.max(1) + 1
    hubbed: dict[str, Scores] = {**subject.asked.scores, subject.asked.primary: with_values(scores, values_QN)}
    return replace(subject, trace=replace(subject.asked, scores=hubbed))


def bfloat16_garbage(folder: Path, patch: Patch) -> Subject:
    """Small numbers ride on a large one: float32 keeps them, bfloat16 has no bits for them. Indexed and traced in bfloat16."""
    world = kinds_world(folder)
    session = load_session(world.model, dtype="bfloat16")
    ride(session)
    run = headwater.index(session, world.folder / "rows.jsonl", folder / "garbage")
    headwater.trace(run, queries=world.folder / "queries.jsonl", k=5, session=session)
    return open_subject(run.path, base=world.base, session=session)


def ride(session: Session) -> None:
    session.network.model.norm.register_forward_hook(lambda module, args, output: (output + 300) - 300)


def bm25_alone(folder: Path, patch: Patch) -> Subject:
    """The rows that hold the query's word are its cause, and are all that a trace finds."""
    return learned_world(folder).subject()


def ignored_data(folder: Path, patch: Patch) -> Subject:
    return kinds_world(folder, training=NOTHING).subject()


WRONG_ROWS = frozenset(
    {"patch: learned", "sketch: seeds"}
)  # the trace names rows that it should not: steps on them, and a fresh sketch, say so
FAULTS = {
    "padding counted in the loss": Fault(padding_in_the_loss, "coverage: loss positions", "padding"),
    "the damping's sign": Fault(damping_of_the_other_sign, "solver: subtracted", "subtracted", WRONG_ROWS),
    "a LiSSA that never left the gradient": Fault(lissa_that_never_left_the_gradient, "solver: lissa_released", "returned the gradient"),
    "shuffled row ids": Fault(shuffled_ids, "identity", "Shuffled ids", WRONG_ROWS),
    "an index from another checkpoint": Fault(another_checkpoint, "identity", "Another checkpoint"),
    "a hub row that tops every query": Fault(hub_row, "hubs", "100%"),
    "bfloat16 garbage": Fault(bfloat16_garbage, "numerics: dtype", "bfloat16"),
    "a task that BM25 solves alone": Fault(bm25_alone, "controls: lexical", "lexical"),
    "a model that ignores its data": Fault(ignored_data, "controls: randomised", "shuffled"),
}
