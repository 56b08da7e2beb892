"""Deliberately broken methods, each with a silent fault that has been met: the check that is there for it must turn red."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from headwater.methods import GradCos, GradDot, Less, Random, TracIn, TrackStar
from headwater.methods.shared import check, fit_norms, make_scores, pairs, unit_length, whole
from headwater.testing import check_method
from headwater.types import Index, Scores, State, UsageError, with_values


@dataclass(frozen=True)
class IdsInAnotherOrder(GradDot):
    """The numbers are right, the names on them are not."""

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        scores = super().score(state, index, queries)
        return replace(scores, train_ids=tuple(sorted(scores.train_ids)))


@dataclass(frozen=True)
class ValuesInAnotherOrder(GradDot):
    def score(self, state: State, index: Index, queries: Index) -> Scores:
        scores = super().score(state, index, queries)
        return with_values(scores, scores.values_QN[:, ::-1])


@dataclass(frozen=True)
class SignFlipped(GradDot):
    def score(self, state: State, index: Index, queries: Index) -> Scores:
        scores = super().score(state, index, queries)
        return with_values(scores, -scores.values_QN)


@dataclass(frozen=True)
class CosineSignFlipped(GradCos):
    def score(self, state: State, index: Index, queries: Index) -> Scores:
        scores = super().score(state, index, queries)
        return with_values(scores, -scores.values_QN)


@dataclass(frozen=True)
class AcceptsSwappedSides(GradDot):
    def score(self, state: State, index: Index, queries: Index) -> Scores:
        index.layout.check(queries.layout)
        return make_scores(self, index.products("gradient", whole(queries, "gradient")) / -len(index), index, queries)


@dataclass(frozen=True)
class IgnoresTheLayout(GradDot):
    def score(self, state: State, index: Index, queries: Index) -> Scores:
        if (index.gradient_of, queries.gradient_of) != ("loss", "measure"):
            raise UsageError("swapped")
        return make_scores(self, index.products("gradient", whole(queries, "gradient")) / -len(index), index, queries)


@dataclass(frozen=True)
class WithoutOneOverN(GradDot):
    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        return make_scores(self, -index.products("gradient", whole(queries, "gradient")), index, queries)


@dataclass(frozen=True)
class CentredPerBlock(GradDot):
    """A mean that is taken over whatever rows come together."""

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        queries_QD = whole(queries, "gradient")
        blocks = [queries_QD @ (rows_ND - rows_ND.mean(0)).T for _, rows_ND in index.blocks("gradient")]
        return make_scores(self, torch.cat(blocks, 1) / -len(index), index, queries)


@dataclass(frozen=True)
class ScaledByTheBatchOfQueries(GradDot):
    """Scores divided by their own largest: the company of a query changes its numbers."""

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        scores = super().score(state, index, queries)
        return with_values(scores, scores.values_QN / np.nanmax(np.abs(scores.values_QN)))


@dataclass(frozen=True)
class CosineCalledNats(GradCos):
    unit: Any = "nats"


@dataclass(frozen=True)
class NanToZero(GradDot):
    def score(self, state: State, index: Index, queries: Index) -> Scores:
        scores = super().score(state, index, queries)
        return with_values(scores, np.nan_to_num(scores.values_QN))


@dataclass(frozen=True)
class DividesByZero(GradCos):
    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        values_QN = -index.products("gradient", unit_length(whole(queries, "gradient"))) / fit_norms(index, "gradient")["norm"]
        return make_scores(self, values_QN, index, queries)


@dataclass(frozen=True)
class TrustsAnyState(GradCos):
    """Norms of other rows, taken as these rows' norms."""

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        values_QN = -index.products("gradient", unit_length(whole(queries, "gradient"))) / state["norm"].clamp(min=1e-30)
        return make_scores(self, values_QN, index, queries)


@dataclass(frozen=True)
class StateOfLists(GradCos):
    def fit(self, index: Index) -> Any:
        return {**super().fit(index), "names": list(index.ids)}


@dataclass(frozen=True)
class ByPosition(Random):
    def score(self, state: State, index: Index, queries: Index) -> Scores:
        scores = super().score(state, index, queries)
        return with_values(scores, scores.values_QN + np.arange(len(index), dtype=np.float32))


@dataclass(frozen=True)
class GlobalGenerator(GradDot):
    def score(self, state: State, index: Index, queries: Index) -> Scores:
        scores = super().score(state, index, queries)
        return with_values(scores, scores.values_QN * (1 + 0.01 * torch.rand(scores.values_QN.shape).numpy()))


@dataclass(frozen=True)
class NormalisesInPlace(GradCos):
    def fit(self, index: Index) -> State:
        for _, rows_ND in index.blocks("gradient"):
            rows_ND /= torch.linalg.vector_norm(rows_ND, dim=1, keepdim=True)
        return super().fit(index)


@dataclass(frozen=True)
class InFloat64(GradDot):
    def score(self, state: State, index: Index, queries: Index) -> Scores:
        scores = super().score(state, index, queries)
        return with_values(scores, scores.values_QN.astype(np.float64))


@dataclass(frozen=True)
class UnknownUnit(GradCos):
    unit: Any = "points"


@dataclass(frozen=True)
class WithTheStepInsteadOfAgainstIt(Less):
    """Adam's update taken for the way the parameters go, when they go against it."""

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        scores = super().score(state, index, queries)
        return with_values(scores, -scores.values_QN)


@dataclass(frozen=True)
class FinalModelForEveryCheckpoint(TracIn):
    """The queries' gradient at the final model against rows of each checkpoint: right in number and shape."""

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        members = index.members("checkpoint")
        products = [m.index.products("gradient", whole(queries, "gradient")) for m in members]
        return make_scores(self, -torch.stack(products).sum(0), index, queries)


@dataclass(frozen=True)
class RowsOfABlockWhitenedTogether(TrackStar):
    """Lengths taken from whatever rows come together."""

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        member, asked = pairs(index, queries, "second_moment")[0]
        blocks = [rows_ND / rows_ND.norm() for _, rows_ND in member.index.blocks("gradient")]
        return make_scores(self, -whole(asked, "gradient") @ torch.cat(blocks).T, index, queries)


FAULTS = {
    IdsInAnotherOrder: {"shape_and_ids"},
    ValuesInAnotherOrder: {"train_permutation", "duplicated_example", "nan_row"},
    SignFlipped: {"sign"},
    CosineSignFlipped: {"sign"},
    AcceptsSwappedSides: {"swapped_sides_refused"},
    IgnoresTheLayout: {"layout_mismatch_refused"},
    WithoutOneOverN: {"twice_the_corpus_halves_nats"},
    CentredPerBlock: {"block_size"},
    ScaledByTheBatchOfQueries: {"query_subset_equals_slice"},
    CosineCalledNats: {"scaled_measure"},
    NanToZero: {"nan_row", "nan_query"},
    DividesByZero: {"zero_features"},
    TrustsAnyState: {"stale_state"},
    StateOfLists: {"state_round_trip"},
    ByPosition: {"duplicated_example", "train_permutation"},
    GlobalGenerator: {"determinism"},
    NormalisesInPlace: {"inputs_untouched"},
    InFloat64: {"shape_and_ids"},
    UnknownUnit: {"declares_what_it_is"},
    WithTheStepInsteadOfAgainstIt: {"sign"},
    FinalModelForEveryCheckpoint: {"swapped_sides_refused", "layout_mismatch_refused"},
    RowsOfABlockWhitenedTogether: {"block_size"},
}


def failures(method: Any) -> set[str]:
    with pytest.raises(AssertionError) as caught:
        check_method(method)
    return {line.split(":")[0] for line in str(caught.value).splitlines()[1:]}


@pytest.mark.parametrize(("broken", "expected"), FAULTS.items(), ids=[broken.__name__ for broken in FAULTS])
def test_the_right_check_turns_red(broken: Any, expected: set[str]) -> None:
    assert expected <= failures(broken())


def test_a_sign_and_nothing_else() -> None:
    """The suite says what is wrong, not only that something is."""
    assert failures(SignFlipped()) == {"sign"}
    assert failures(IgnoresTheLayout()) == {"layout_mismatch_refused"}
    assert failures(TrustsAnyState()) == {"stale_state"}


def test_a_missing_factor_is_seen_at_a_glance() -> None:
    with pytest.raises(AssertionError, match=r"1/N missing\?\): ratio 2 \(from 2 to 2\)"):
        check_method(WithoutOneOverN())


def test_known_failures_are_declared_with_a_reason() -> None:
    outcomes = check_method(SignFlipped(), known_failures={"sign": "measures a loss, not a log-probability"})
    assert [(outcome.id, outcome.message) for outcome in outcomes if outcome.status == "known"] == [
        ("sign", "measures a loss, not a log-probability")
    ]


def test_a_declared_failure_that_passes_is_red() -> None:
    with pytest.raises(AssertionError, match=r"determinism: declared as a known failure \(dice\), but it passes"):
        check_method(GradDot(), known_failures={"determinism": "dice"})


def test_a_declared_failure_of_no_check_is_refused() -> None:
    with pytest.raises(UsageError, match="no_such_check"):
        check_method(GradDot(), known_failures={"no_such_check": "because"})


def test_a_method_that_raises_fails_its_checks_and_does_not_end_the_suite() -> None:
    @dataclass(frozen=True)
    class Raises(GradDot):
        def score(self, state: State, index: Index, queries: Index) -> Scores:
            raise RuntimeError("boom")

    assert "shape_and_ids" in failures(Raises())
