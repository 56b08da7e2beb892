"""The fast scan against the plain one, its error bound against the truth, and the best rows against float64's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_index_write import columns
from torch import Tensor

from headwater.index import scan
from headwater.index.memory import MemoryIndex
from headwater.index.read import StoredIndex
from headwater.index.scan import _products_plain, _scan_bfloat16, _scan_float32, top_products
from headwater.index.spec import IndexSpec
from headwater.index.write import ShardData, Writer
from headwater.types import Block, DataError, Layout, UsageError

LAYOUT = Layout((Block("big", (40, 20), (40, 20)), Block("small", (24,), (24,))))
D = LAYOUT.size
DTYPES = ("float32", "bfloat16", "int8")


def rows_with_structure(n: int, *, seed: int = 0) -> Tensor:
    """Common directions, noise, lengths over two orders of magnitude, and a few equal rows."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n, 3, generator=generator) @ torch.randn(3, D, generator=torch.Generator().manual_seed(9))
    rows_ND = (common + torch.randn(n, D, generator=generator)) * torch.randn(n, 1, generator=generator).exp()
    rows_ND[n // 2] = rows_ND[n // 3]
    return rows_ND


def store(run: Path, rows_ND: Tensor, dtype: str) -> StoredIndex:
    writer = Writer.open(run, IndexSpec(LAYOUT, dtype=dtype, shard_rows=300))
    for rows in writer.begin("corpus", len(rows_ND)).missing():
        chosen_ND = rows_ND[rows.start : rows.stop]
        writer.write(rows, ShardData(chosen_ND, torch.zeros(len(rows), 2), columns(rows)))
    return StoredIndex.open(run)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast way is right everywhere; only where the processor helps is it fast."""
    monkeypatch.setattr(scan, "bfloat16_is_fast", lambda: True)


def exact_products(index: StoredIndex | MemoryIndex, queries_QD: Tensor) -> Tensor:
    return queries_QD.double() @ index.take("gradient", range(len(index))).double().T


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("fast")
def test_the_best_rows_are_float64s(tmp_path: Path, dtype: str):
    index, queries_QD = store(tmp_path, rows_with_structure(1000), dtype), rows_with_structure(70, seed=1)
    exact_QN = exact_products(index, queries_QD)
    top = top_products(index, queries_QD, 100)
    best = exact_QN.sort(dim=1, descending=True, stable=True)
    assert torch.equal(top.positions_QK, best.indices[:, :100])
    torch.testing.assert_close(top.values_QK, best.values[:, :100], rtol=1e-12, atol=1e-9)
    rounded = _products_plain(index, "gradient", queries_QD.bfloat16().float()).bfloat16().argsort(dim=1, descending=True)[:, :100]
    assert not torch.equal(rounded, top.positions_QK), "rounding changes no rank here: the test could not fail"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("fast")
def test_products_agree_with_the_plain_way_and_are_exact_at_both_ends(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scan, "RESCORED", 20)
    index, queries_QD = store(tmp_path, rows_with_structure(1000), dtype), rows_with_structure(5, seed=1)
    plain_QN, fast_QN = _products_plain(index, "gradient", queries_QD), index.products("gradient", queries_QD)
    assert fast_QN.dtype == torch.float32
    sizes_QN = torch.outer(queries_QD.norm(dim=1), index.norms("gradient"))
    assert ((fast_QN - plain_QN).abs() / sizes_QN).max() < 2**-8
    exact_QN = exact_products(index, queries_QD)
    for sign in (1, -1):
        order_QN = (sign * fast_QN).argsort(dim=1, descending=True, stable=True)[:, :20]
        assert torch.equal(order_QN, (sign * exact_QN).argsort(dim=1, descending=True, stable=True)[:, :20])
        torch.testing.assert_close(fast_QN.gather(1, order_QN), exact_QN.gather(1, order_QN).float(), rtol=1e-6, atol=0)


@pytest.mark.usefixtures("fast")
def test_a_scale_ranks_by_cosine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scan, "RESCORED", 20)
    index, queries_QD = store(tmp_path, rows_with_structure(1000), "bfloat16"), rows_with_structure(5, seed=1)
    scale_N = 1 / index.norms("gradient")
    exact_QN = exact_products(index, queries_QD) * scale_N.double()
    best_QK = exact_QN.argsort(dim=1, descending=True, stable=True)[:, :20]
    assert torch.equal(top_products(index, queries_QD, 20, scale_N=scale_N).positions_QK, best_QK)
    assert torch.equal(index.products("gradient", queries_QD, scale_N=scale_N).argsort(dim=1, descending=True)[:, :20], best_QK)
    assert not torch.equal(top_products(index, queries_QD, 20).positions_QK, best_QK)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), exponent=st.integers(-40, 18), n_rows=st.integers(1, 40), constant=st.booleans())
def test_the_error_bound_holds(seed: int, exponent: int, n_rows: int, constant: bool):
    """Against float64, from numbers near the smallest float32 to large ones, and where all rounding errors have one sign."""
    generator = torch.Generator().manual_seed(seed)
    rows_ND = torch.randn(n_rows, D, generator=generator) * 10.0**exponent
    queries_QD = torch.full((3, D), 1 + 2**-9 + 2**-12) if constant else torch.randn(3, D, generator=generator)
    index = MemoryIndex([str(i) for i in range(n_rows)], LAYOUT, "loss", {"gradient": (rows_ND.abs() if constant else rows_ND).bfloat16()})
    for way in (_scan_float32, _as_bfloat16):
        found = way(index, "gradient", queries_QD)
        for q, exact_N in enumerate(exact_products(index, queries_QD)):
            values_N, errors_N = found.query(q)
            assert ((values_N.double() - exact_N).abs() <= errors_N.double()).all()


def _as_bfloat16(index: MemoryIndex, feature: str, queries_QD: Tensor) -> scan.Scan:
    class Rounded(MemoryIndex):
        def stored_blocks(self, feature: str):
            for start, stored in super().stored_blocks(feature):
                yield start, scan.Stored(stored.values_ND.bfloat16())

    rounded = Rounded(index.ids, index.layout, index.gradient_of, {feature: index.take(feature, range(len(index)))})
    return _scan_bfloat16(rounded, feature, queries_QD)


def test_the_bound_is_what_makes_the_answer_right(tmp_path: Path, fast, monkeypatch: pytest.MonkeyPatch):
    """Without it the best rows of the scan alone would be re-scored, and some of the true ones missed."""
    close_ND = torch.nn.functional.normalize(torch.randn(3000, D, generator=torch.Generator().manual_seed(3)))
    index, queries_QD = store(tmp_path, close_ND, "bfloat16"), rows_with_structure(70, seed=1)
    right = top_products(index, queries_QD, 10).positions_QK
    honest = scan._scan
    monkeypatch.setattr(scan, "_scan", lambda *args: honest(*args)._replace(lost_Q=torch.zeros(len(queries_QD)), unit=0.0))
    assert not torch.equal(top_products(index, queries_QD, 10).positions_QK, right)


@pytest.mark.usefixtures("fast")
def test_a_query_alone_gets_the_numbers_it_gets_in_company(tmp_path: Path):
    index, queries_QD = store(tmp_path, rows_with_structure(700), "bfloat16"), rows_with_structure(70, seed=1)
    together_QN = index.products("gradient", queries_QD)
    for q in (0, 37, 69):
        assert torch.equal(index.products("gradient", queries_QD[q : q + 1])[0], together_QN[q])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("fast")
def test_bad_rows_are_never_among_the_best(tmp_path: Path, dtype: str):
    rows_ND = rows_with_structure(50)
    rows_ND[7], rows_ND[8, 3], rows_ND[9, 5] = torch.nan, torch.inf, -torch.inf
    index, queries_QD = store(tmp_path, rows_ND, dtype), rows_with_structure(3, seed=1)
    top = top_products(index, queries_QD, 1000)
    assert top.positions_QK.shape == (3, 47)
    assert all({*row} == set(range(50)) - {7, 8, 9} for row in top.positions_QK.tolist())
    assert torch.isfinite(top.values_QK).all()
    bad_QN = torch.isnan(index.products("gradient", queries_QD))
    assert (bad_QN == torch.isin(torch.arange(50), torch.tensor([7, 8, 9]))).all()


@pytest.mark.usefixtures("fast")
def test_products_too_large_for_the_scan_are_still_ranked(tmp_path: Path):
    rows_ND = rows_with_structure(60).clamp(-1, 1)
    rows_ND[[3, 11]] *= 3e38 / rows_ND[[3, 11]].abs().amax(1, keepdim=True)
    index, queries_QD = store(tmp_path, rows_ND, "bfloat16"), rows_with_structure(4, seed=1) * 1e3
    assert torch.isinf(scan._scan(index, "gradient", queries_QD).query(1).errors_N).any()
    exact_QN = exact_products(index, queries_QD)
    assert torch.equal(top_products(index, queries_QD, 5).positions_QK, exact_QN.argsort(dim=1, descending=True)[:, :5])


@pytest.mark.usefixtures("fast")
def test_a_query_that_is_not_finite(tmp_path: Path):
    index, queries_QD = store(tmp_path, rows_with_structure(20), "bfloat16"), rows_with_structure(3, seed=1)
    queries_QD[1, 2] = torch.nan
    with pytest.raises(DataError, match=r"queries \[1\] have numbers that are not finite"):
        top_products(index, queries_QD, 5)
    assert torch.isnan(index.products("gradient", queries_QD)).all(1).tolist() == [False, True, False]


@pytest.mark.usefixtures("fast")
def test_nothing_to_rank(tmp_path: Path):
    rows_ND, queries_QD = rows_with_structure(5), rows_with_structure(3, seed=1)
    with pytest.raises(UsageError, match="k is 0"):
        top_products(store(tmp_path / "good", rows_ND, "bfloat16"), queries_QD, 0)
    index = store(tmp_path / "bad", rows_ND * torch.nan, "bfloat16")
    assert top_products(index, queries_QD, 4).positions_QK.shape == (3, 0)
    assert torch.isnan(index.products("gradient", queries_QD)).all()


def test_equal_rows_stand_in_the_order_of_the_rows(tmp_path: Path):
    rows_ND = rows_with_structure(1)[[0] * 9]
    top = top_products(store(tmp_path, rows_ND, "bfloat16"), rows_ND[:2], 5)
    assert top.positions_QK.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_removed_rows_are_not_scanned(tmp_path: Path):
    from headwater.index.tombstones import add_tombstones

    rows_ND, queries_QD = rows_with_structure(700), rows_with_structure(4, seed=1)
    index = store(tmp_path, rows_ND, "bfloat16")
    best = top_products(index, queries_QD, 1).positions_QK[:, 0].unique()
    add_tombstones(tmp_path, [index.ids[i] for i in best], reason="test")
    shorter = StoredIndex.open(tmp_path)
    top = top_products(shorter, queries_QD, 10)
    expected = exact_products(shorter, queries_QD).argsort(dim=1, descending=True)[:, :10]
    assert len(shorter) == 700 - len(best)
    assert torch.equal(top.positions_QK, expected)


def test_without_bfloat16_arithmetic_the_plain_way_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scan, "bfloat16_is_fast", lambda: False)
    index, queries_QD = store(tmp_path, rows_with_structure(400), "bfloat16"), rows_with_structure(4, seed=1)
    assert torch.equal(index.products("gradient", queries_QD), _products_plain(index, "gradient", queries_QD))


def test_queries_in_memory_meet_stored_rows(tmp_path: Path):
    queries_QD = rows_with_structure(4, seed=1)
    queries = MemoryIndex([str(i) for i in range(4)], LAYOUT, "measure", {"gradient": queries_QD})
    index = store(tmp_path, rows_with_structure(30), "float32")
    torch.testing.assert_close(index.products("gradient", queries.take("gradient", [2])), queries_QD[2:3] @ rows_with_structure(30).T)
