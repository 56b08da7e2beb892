"""The checks of a method."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwater.methods.shared import MEMBERS, member_roles
from headwater.testing.outcomes import RELATIVE, Outcome, expect, ratio, refuses, run_checks
from headwater.testing.toys import Reblocked, Toy, as_queries, toy_of, toy_queries, toy_rows
from headwater.types import Block, HeadwaterError, Index, IntegrityError, Layout, LayoutMismatch, Scores


@dataclass(frozen=True)
class Case:
    """What a check is given: a method, training rows and queries."""

    method: Any
    train: Toy
    queries: Toy

    @property
    def requires(self) -> frozenset[str]:
        return frozenset(getattr(self.method, "requires", ()))

    def scores(self, *, train: Toy | None = None, queries: Toy | None = None) -> Scores:
        index = (train or self.train).index()
        return self.method.score(self.method.fit(index), index, (queries or self.queries).index())


def method_checks(method: Any, *, index: Index | None = None, queries: Index | None = None) -> list[tuple[str, Callable[[], None]]]:
    """(id, check) for every check that applies to this method; a check returns nothing, or raises.

    Checks about gradients apply where the method requires "gradient" or members, the one about 1/N where its unit is nats. The toys have
    members of the roles that the method requires, and of those that it uses where there are any.
    """
    roles = member_roles(method, optional=True)
    rows = toy_of(index) if index else toy_rows(20, seed=1).with_members(roles, seed=10)
    case = Case(method, rows, toy_of(queries) if queries else toy_queries(4, seed=2).with_members(roles, seed=20))
    of_gradients = "gradient" in case.requires or any(name.startswith(MEMBERS) for name in case.requires)
    chosen = [*ALWAYS, *(GRADIENT if of_gradients else ()), *(NATS if method.unit == "nats" else ())]
    return [(check.__name__.removeprefix("check_"), partial(check, case)) for check in chosen]


def check_method(
    method: Any, *, index: Index | None = None, queries: Index | None = None, known_failures: Mapping[str, str] | None = None
) -> list[Outcome]:
    """Run every check. `known_failures` maps a check's id to the reason why this method need not pass it.

    Raises AssertionError that lists each failed check; also where a declared failure passes, so that declarations stay true.
    UsageError for an id that no check has.
    """
    return run_checks(method.name, method_checks(method, index=index, queries=queries), known_failures or {})


# ---------------------------------------------------------------------------------------------- checks of any method


def check_declares_what_it_is(case: Case) -> None:
    """name, unit, requires: what a user and a table need to know before anything runs."""
    method = case.method
    expect(isinstance(getattr(method, "name", None), str) and method.name, f"name is {getattr(method, 'name', None)!r}, expected a word")
    unit = getattr(method, "unit", "missing")
    expect(unit is None or unit == "nats", f"unit is {unit!r}, expected 'nats' (it predicts a change) or None (it only ranks)")
    expect(isinstance(getattr(method, "requires", None), frozenset), "requires is not a frozenset of feature names")


def check_shape_and_ids(case: Case) -> None:
    """[Q, N] float32 under both sides' ids, in their order, with the method's own name and unit."""
    scores = case.scores()
    expect(scores.values_QN.shape == (len(case.queries), len(case.train)), f"scores are {scores.values_QN.shape}, expected [Q, N]")
    expect(scores.values_QN.dtype == np.float32, f"scores are {scores.values_QN.dtype}, expected float32")
    expect(scores.query_ids == case.queries.ids, "query_ids are not the queries' ids in their order")
    expect(scores.train_ids == case.train.ids, "train_ids are not the index's ids in their order")
    expect((scores.method, scores.unit) == (case.method.name, case.method.unit), "scores carry another method name or unit")


def check_determinism(case: Case) -> None:
    """The same input, the same bits; nothing reads a global generator."""
    first = case.scores().values_QN
    torch.manual_seed(torch.initial_seed() + 1)
    expect(np.array_equal(first, case.scores().values_QN, equal_nan=True), "two runs on the same input differ")


def check_inputs_untouched(case: Case) -> None:
    """Index and queries hold the same numbers afterwards."""
    sides = case.train.index(), case.queries.index()
    before = [{name: torch.cat([rows for _, rows in side.blocks(name)]).clone() for name in side.features} for side in sides]
    case.method.score(case.method.fit(sides[0]), *sides)
    for side, kept in zip(sides, before, strict=True):
        changed = [name for name in kept if not torch.equal(kept[name], torch.cat([rows for _, rows in side.blocks(name)]))]
        expect(not changed, f"{changed} changed in place")


def check_query_subset_equals_slice(case: Case) -> None:
    """A query's scores do not depend on which other queries are asked, nor on their order."""
    chosen = list(range(len(case.queries)))[::-2]
    _same(case.scores(queries=case.queries.rows(chosen)).values_QN, case.scores().values_QN[chosen], "with fewer queries, in another order")


def check_train_permutation(case: Case) -> None:
    """Rows in another order: each keeps its scores."""
    order = np.random.default_rng(0).permutation(len(case.train)).tolist()
    _same(case.scores(train=case.train.rows(order)).values_QN, case.scores().values_QN[:, order], "with the rows in another order")


def check_block_size(case: Case) -> None:
    """How many rows an index hands out at a time changes nothing."""
    whole, queries = case.scores().values_QN, case.queries.index()
    for rows in (1, 7):
        index: Any = Reblocked(case.train.index(), rows)
        _same(case.method.score(case.method.fit(index), index, queries).values_QN, whole, f"with {rows} rows in a block")


def check_state_round_trip(case: Case) -> None:
    """The state is tensors, and scores the same after being written and read."""
    from safetensors.torch import load_file, save_file

    index = case.train.index()
    state = case.method.fit(index)
    wrong = {name: type(value).__name__ for name, value in state.items() if not isinstance(value, Tensor)}
    expect(not wrong, f"the state holds {wrong}, expected tensors only")
    with tempfile.TemporaryDirectory() as folder:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, Path(folder) / "state.safetensors")
        read = load_file(Path(folder) / "state.safetensors")
        again = case.method.score(read, index, case.queries.index()).values_QN
    expect(np.array_equal(again, case.method.score(state, index, case.queries.index()).values_QN, equal_nan=True), "scores differ after it")


def check_stale_state(case: Case) -> None:
    """A state fitted on the rows in another order is refused, or does not matter. It never gives a row another's score."""
    index = case.train.index()
    stale = case.method.fit(case.train.rows(range(len(case.train))[::-1]).index())
    try:
        found = case.method.score(stale, index, case.queries.index()).values_QN
    except IntegrityError:
        return
    _same(found, case.scores().values_QN, "with a state that was fitted on the rows in another order")


def check_duplicated_example(case: Case) -> None:
    """Copies of a row get the row's score: a score belongs to what is in the row, not to where it stands."""
    n = len(case.train)
    values_QN = case.scores(train=case.train.rows([*range(n), 0, n - 1, 0])).values_QN
    _same(values_QN[:, n:], values_QN[:, [0, n - 1, 0]], "for copies of rows")


def check_nan_row(case: Case) -> None:
    """A bad row scores NaN, never a number made up for it; the others are scored."""
    values_QN = case.scores(train=case.train.filled(3, torch.nan)).values_QN
    others_QN = np.delete(values_QN, 3, axis=1)
    expect(np.isfinite(others_QN).all(), "one bad row left others without a score")
    if case.requires:
        expect(np.isnan(values_QN[:, 3]).all(), f"a row of NaN scores {values_QN[:, 3]}, expected NaN")


def check_nan_query(case: Case) -> None:
    """A query without a finite gradient gets NaN; the others get what they get without it."""
    values_QN = case.scores(queries=case.queries.filled(1, torch.nan)).values_QN
    _same(np.delete(values_QN, 1, axis=0), np.delete(case.scores().values_QN, 1, axis=0), "beside a query of NaN")
    if case.requires:
        expect(np.isnan(values_QN[1]).all(), "a query of NaN got scores, expected NaN")


def check_zero_features(case: Case) -> None:
    """A row or a query whose features are all zero is no evidence for anything: exactly 0, not NaN."""
    for what, values in (
        ("row", case.scores(train=case.train.filled(2, 0.0)).values_QN[:, 2]),
        ("query", case.scores(queries=case.queries.filled(2, 0.0)).values_QN[2]),
    ):
        expect(np.isfinite(values).all(), f"a {what} of zeros scores {values[:4]}")
        if case.requires:
            expect((values == 0).all(), f"a {what} of zeros scores {values[:4]}, expected 0")


# ------------------------------------------------------------------------------------------ checks of gradient methods


def check_scaled_measure(case: Case) -> None:
    """A measure three times as large: a score in nats is too; one that only ranks is too, or does not change at all."""
    before, after = case.scores().values_QN, case.scores(queries=case.queries.scaled(3)).values_QN
    if case.method.unit is not None:
        return _same(after, 3 * before, "with a measure three times as large, against three times the score")
    unchanged = np.allclose(after, before, rtol=RELATIVE, atol=RELATIVE * np.nanmax(np.abs(before)), equal_nan=True)
    return None if unchanged else _same(after, 3 * before, "with a measure three times as large")


def check_layout_mismatch_refused(case: Case) -> None:
    """Gradients under another sketch have the same length and mean something else."""
    refuses(lambda: case.scores(queries=case.queries.resketched()), LayoutMismatch, "queries of another layout")


def check_swapped_sides_refused(case: Case) -> None:
    """Queries in the place of training rows give numbers of the right shape that mean nothing."""
    refuses(lambda: case.scores(train=case.queries, queries=case.train), HeadwaterError, "queries and training rows swapped")
    refuses(lambda: case.scores(queries=case.train), HeadwaterError, "training rows in the place of queries")


def check_sign(case: Case) -> None:
    """A toy with a known answer: for "this input has this label", the row that says so is a proponent, its contradiction an opponent."""
    train, queries = _logistic_toy(case.method)
    same, contradiction = case.scores(train=train, queries=queries).values_QN[0, :2]
    expect(
        same > 0 > contradiction, f"the row that teaches the query scores {same:.3g}, its contradiction {contradiction:.3g}: sign flipped?"
    )


def check_twice_the_corpus_halves_nats(case: Case) -> None:
    """Training minimises the mean over rows: in a corpus where each row stands twice, one of the two matters half as much."""
    n = len(case.train)
    doubled_QN = case.scores(train=case.train.rows([*range(n), *range(n)])).values_QN[:, :n]
    _same(2 * doubled_QN, case.scores().values_QN, "in a corpus of every row twice, times 2 (is 1/N missing?)")


ALWAYS = (
    check_declares_what_it_is,
    check_shape_and_ids,
    check_determinism,
    check_inputs_untouched,
    check_query_subset_equals_slice,
    check_train_permutation,
    check_block_size,
    check_state_round_trip,
    check_stale_state,
    check_duplicated_example,
    check_nan_row,
    check_nan_query,
    check_zero_features,
)
GRADIENT = (check_scaled_measure, check_layout_mismatch_refused, check_swapped_sides_refused, check_sign)
NATS = (check_twice_the_corpus_halves_nats,)


def _logistic_toy(method: Any) -> tuple[Toy, Toy]:
    """Logistic regression in four parameters, loss `log(1 + exp(-y theta.x))`; the query asks for row 0's label on row 0's input.

    Each member is the same problem at parameters of its own; but a base model knows nothing of it: gradients of zero, which is no evidence.
    """
    rng = torch.Generator().manual_seed(3)
    x_NI = torch.randn(12, 4, generator=rng, dtype=torch.float64)
    y_N = torch.where(torch.arange(12) % 2 == 0, 1.0, -1.0).double()
    x_NI[1] = x_NI[0]  # row 1: the same input, the other label

    def at_random_parameters(toy: Toy) -> Toy:
        margin_N = y_N * (x_NI @ (0.1 * torch.randn(4, generator=rng, dtype=torch.float64)))
        gradient_NI = -(y_N * torch.sigmoid(-margin_N)).unsqueeze(1) * x_NI
        loss_N = torch.nn.functional.softplus(-margin_N)
        layout = Layout((Block("theta", (4,), (4,)),), sketch_seed=toy.layout.sketch_seed)
        features = {**toy.features, "gradient": gradient_NI.float()}
        return replace(toy, layout=layout, features=features, columns={**toy.columns, "loss": loss_N.float().numpy()})

    rows = toy_rows(12, seed=4).with_members(member_roles(method, optional=True), seed=30)
    members = [replace(one, rows=at_random_parameters(one.rows).scaled(0.0 if one.role == "base" else 1.0)) for one in rows.members]
    train = replace(at_random_parameters(rows), members=tuple(members))
    return train, replace(as_queries(train.rows([0])).scaled(-1.0), ids=("query",))  # log-probability: minus the loss


def _same(found: np.ndarray, expected: np.ndarray, when: str) -> None:
    """Equal to within float32 sums of another order; the ratio of the two shows a missing factor at a glance."""
    scale = float(np.nanmax(np.abs(expected), initial=0.0))
    if found.shape == expected.shape and np.allclose(found, expected, rtol=RELATIVE, atol=RELATIVE * scale, equal_nan=True):
        return
    shapes = f"shapes {found.shape} and {expected.shape}" if found.shape != expected.shape else f"ratio {ratio(found, expected)}"
    raise AssertionError(f"scores differ {when}: {shapes}")
