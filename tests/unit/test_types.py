"""The core types: a layout owns the order, factors are their dense gradient, scores know their sign and their gaps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.types import Block, Example, Factors, Finding, Layout, LayoutMismatch, Scores

LAYOUT = Layout((Block("a", (2, 3), (2, 3)), Block("b", (4,), (4,)), Block("c", (9, 9), (2, 2))), sketch_seed=3)


def test_split_and_join_are_inverse() -> None:
    rows = torch.arange(28.0).reshape(2, 14)
    parts = LAYOUT.split(rows)
    assert {name: tuple(part.shape) for name, part in parts.items()} == {"a": (2, 2, 3), "b": (2, 4), "c": (2, 2, 2)}
    torch.testing.assert_close(LAYOUT.join(dict(reversed(parts.items()))), rows)
    assert LAYOUT.offsets == (0, 6, 10, 14)


def test_a_layout_survives_json_and_refuses_another() -> None:
    again = Layout.from_json(LAYOUT.to_json())
    assert again == LAYOUT
    LAYOUT.check(again)
    for other in (
        Layout(LAYOUT.blocks, sketch_seed=4),
        Layout(LAYOUT.blocks[::-1], sketch_seed=3),
        Layout(LAYOUT.blocks[:2], sketch_seed=3),
    ):
        with pytest.raises(LayoutMismatch, match=LAYOUT.fingerprint):
            LAYOUT.check(other)
    with pytest.raises(LayoutMismatch, match="13"):
        LAYOUT.split(torch.zeros(1, 13))
    with pytest.raises(LayoutMismatch, match="'c'"):
        LAYOUT.join({name: part for name, part in LAYOUT.split(torch.zeros(1, 14)).items() if name != "c"})


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 3))
def test_factors_are_their_dense_gradient(positions: int, inputs: int, outputs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    factors = Factors(
        torch.randn(2, positions, inputs, dtype=torch.float64, generator=generator),
        torch.randn(2, positions, outputs, dtype=torch.float64, generator=generator),
    )
    dense = torch.einsum("bto,bti->boi", factors.g_BTO, factors.a_BTI)
    torch.testing.assert_close(factors.dense(), dense)
    torch.testing.assert_close(factors.per_token().sum(1), dense)
    torch.testing.assert_close(factors.squared_norm(), dense.square().sum((1, 2)))
    left = torch.randn(3, outputs, dtype=torch.float64, generator=generator)
    right = torch.randn(2, inputs, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(factors.map(left, right).dense(), left @ dense @ right.T)


def test_scores_rank_proponents_first_and_never_nan() -> None:
    values = np.array([[1.0, np.nan, 3.0, 3.0, -2.0]])
    scores = Scores(values, ("q",), tuple("abcde"), "toy", "nats")
    assert scores.top("q", 10) == [("c", 3.0), ("d", 3.0), ("a", 1.0), ("e", -2.0)]
    table = scores.to_pandas()
    assert table["id"].tolist() == ["c", "d", "a", "e", "b"]
    assert set(table.columns) == {"query", "id", "score", "method"}


def test_scores_refuse_ids_that_do_not_fit() -> None:
    with pytest.raises(AssertionError):
        Scores(np.zeros((1, 2)), ("q",), ("a",), "toy", None)


def test_the_last_prompt_position_is_before_the_first_target() -> None:
    example = Example("x", np.arange(5), np.array([False, False, True, True, False]))
    assert (example.last_prompt_position, example.n_loss_tokens, example.n_tokens) == (1, 2, 5)
    assert Example("x", np.arange(5), np.zeros(5, dtype=bool)).last_prompt_position == 4


def test_a_finding_is_plain_json() -> None:
    assert Finding("sketch", "ok", "small", value=0.1, interval=(0.0, 0.2), n=3).to_json()["interval"] == [0.0, 0.2]


def test_what_is_no_number_is_null_in_a_findings_json():
    found = Finding("a", "unknown", "b", value=float("nan"), interval=(0.0, float("inf"))).to_json()
    assert (found["value"], found["interval"]) == (None, None)
    assert Finding("a", "ok", "b", value=1.0, interval=(0.0, 2.0)).to_json()["interval"] == [0.0, 2.0]
