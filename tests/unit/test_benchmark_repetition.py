"""The benchmark of repeated data at a size of seconds: every cell is there, and what has to hold at any size holds."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from benchmarks import repetition
from benchmarks.repetition import SMALL, Cell, Size

from headwater.progress import quiet


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    kept = tmp_path_factory.mktemp("kept") / "parts.json"
    with quiet():
        result = repetition.measure(SMALL, kept=kept)
    assert len(json.loads(kept.read_text())) == 2 * (len(repetition.cells(SMALL)) + 1)
    assert set(result) == {"factored", "table"}
    return result["factored"]


def test_every_factor_has_its_cells(found: dict) -> None:
    plain = {"1.5 epochs", "12 epochs"}
    factors = {f"12 epochs, {f}" for f in ("dropout", "dropout everywhere", "dropstage")} | {
        f"{e}, {f}" for e in plain for f in ("width 8", "experts", "spans")
    }
    assert set(found["cells"]) == plain | factors
    assert all(0 < one["validation"] < 10 for one in found["cells"].values())
    assert found["cells"]["1.5 epochs"]["unique"] == 64
    assert found["cells"]["12 epochs"]["unique"] == 8
    assert all(one.startswith(("reached: ", "missed: ")) for one in found["accepted"].values())
    assert len(found["accepted"]) == 13


def test_a_cluster_is_predicted_to_weigh_k_copies(found: dict) -> None:
    assert found["copies"]["4 copies"]["predicted_cluster_over_copy"] == pytest.approx(4, rel=1e-3)
    assert found["copies"]["1 copies"]["predicted_cluster_over_copy"] == pytest.approx(1, rel=1e-3)
    assert found["copies"]["1 copies"]["true_cluster_over_copy"] == pytest.approx(1, abs=1)
    assert found["copies"]["4 copies"]["predicted_all"] > 0


@pytest.mark.parametrize("source", repetition.SOURCES)
def test_sequences_follow_their_source(source: str) -> None:
    """What a next token's log-probability is on average is the source's entropy, and streams differ."""
    tokens_NT = repetition.sequences(400, 0, 0, source).numpy()
    p = repetition.transitions(0, source)
    np.testing.assert_allclose(p.sum(-1), 1)
    steps = [(p[a, b, c], -(p[a, b] * np.log(np.maximum(p[a, b], 1e-300))).sum())
             for row in tokens_NT for a, b, c in zip(row, row[1:], row[2:], strict=False)]  # fmt: skip
    probabilities, entropies = np.array(steps).T
    assert (probabilities > 0).all()
    assert -np.log(probabilities).mean() == pytest.approx(entropies.mean(), abs=0.06)
    assert repetition.source_entropy(0, source) == pytest.approx(entropies.mean(), abs=0.06)
    assert not np.array_equal(tokens_NT, repetition.sequences(400, 0, 1, source).numpy())
    np.testing.assert_array_equal(tokens_NT, repetition.sequences(400, 0, 0, source).numpy())


def test_a_span_is_marked_and_follows() -> None:
    tokens_BT = torch.arange(16).repeat(5, 1)
    masked_BT, targets_BT = repetition.spans(tokens_BT, torch.Generator().manual_seed(0))
    assert masked_BT.shape == (5, 18)
    assert targets_BT.sum(1).tolist() == [4] * 5
    for row_T in masked_BT:
        at = int((row_T == repetition.MASK).nonzero())
        assert row_T[-5] == repetition.GAP
        assert torch.cat([row_T[:at], row_T[-4:], row_T[at + 1 : -5]]).tolist() == list(range(16))


def test_every_sequence_comes_once_before_any_comes_again() -> None:
    size = Size(steps=6, batch=4)
    drawn = torch.cat(list(repetition.batches(torch.arange(8)[:, None], size, 0))).flatten().tolist()
    for start in (0, 8, 16):
        assert sorted(drawn[start : start + 8]) == list(range(8))


def test_one_expert_is_chosen_for_each_position() -> None:
    layer = repetition.TopOne(8, 4, 0.0).double()
    x_BTH = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gate_BTE = layer.router(x_BTH).softmax(-1)
    chosen_BT = gate_BTE.argmax(-1)
    assert len(chosen_BT.unique()) > 1
    places = [(b, t, int(chosen_BT[b, t])) for b in range(2) for t in range(5)]
    slow = torch.stack([gate_BTE[b, t, e] * layer.experts[e](x_BTH[b, t]) for b, t, e in places]).view_as(x_BTH)
    torch.testing.assert_close(layer(x_BTH), slow)


def test_experts_have_as_many_parameters_as_the_dense_layer() -> None:
    dense, experts = (sum(p.numel() for p in repetition.gpt(Cell(1, 48, experts=n), 0).parameters()) for n in (1, 4))
    assert experts == pytest.approx(dense, rel=0.02)


def test_one_copy_and_all_copies_are_left_out() -> None:
    rows, documents_DT, n_copies_D = repetition.planted(SMALL, 0)
    assert n_copies_D.tolist() == [1, 4]
    assert [int((rows.document_N == d).sum()) for d in range(2)] == [1, 4]
    assert (rows.tokens_NT[torch.from_numpy(rows.document_N == 1)] == documents_DT[1]).all()
    assert rows.document_N[rows.last_copy_N].tolist() == [0, 1]
    assert np.flatnonzero(rows.last_copy_N).max() == len(rows.document_N) - 1


def test_without_some_sequences_the_others_keep_their_order() -> None:
    size, tokens_NT = Size(steps=6, batch=4), torch.arange(12)[:, None]
    whole, fewer = (torch.cat(list(repetition.batches(tokens_NT, size, 0, gone))).flatten().tolist() for gone in (None, np.arange(12) == 5))
    assert 5 not in fewer
    assert fewer[:22] == [n for n in whole if n != 5][:22]


def test_dropout_begins_where_the_cell_says(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[bool] = []
    model = repetition.gpt(Cell(1, 8, 0.2, dropout_from=0.5), 0)
    loss_of = repetition.loss_of
    monkeypatch.setattr(repetition, "loss_of", lambda m, *args: modes.append(m.training) or loss_of(m, *args))
    repetition.train(model, repetition.sequences(8, 0, 0, "table"), Cell(1, 8, 0.2, dropout_from=0.5), Size(steps=4, batch=8), 0)
    assert modes == [False, False, True, True]
    assert not model.training


def test_lines_are_reached_or_missed_by_their_figures() -> None:
    assert repetition.rising([1, 2, 3])
    assert not repetition.rising([1, 3, 3])
    assert repetition.near_zero(-0.04).startswith("reached")
    assert repetition.near_zero(math.nan).startswith("missed")
