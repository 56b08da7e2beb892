"""Queries that are held while the rows go by: in every dtype the product of the numbers themselves, but for the rounding."""

from __future__ import annotations

import pytest
import torch

from headwater.gradient.factors import each_dense
from headwater.index import held
from headwater.index.held import ADDED, Held, int8_product, whole_rows
from headwater.index.scan import int8_is_fast
from headwater.types import Block, Factors, Layout

LAYOUT = Layout((Block("a", (40, 30), (40, 30)), Block("b", (20, 30), (20, 30))))
fast_at_int8 = pytest.mark.skipif(not int8_is_fast(), reason="this processor has no VNNI")


def factors(n: int, n_out: int, n_in: int, *, seed: int = 0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(n, 7, n_in, generator=generator), torch.randn(n, 7, n_out, generator=generator))


@pytest.mark.parametrize(("dtype", "n_rows"), [(torch.float64, 5), (torch.float32, 5), (torch.bfloat16, 16), (torch.int8, 16)])
def test_narrow_rows_have_zeros_up_to_a_multiple_of_sixteen(dtype: torch.dtype, n_rows: int) -> None:
    some = factors(5, 4, 3)
    rows = whole_rows([some], dtype)
    assert rows.values_ND.dtype == dtype
    assert rows.values_ND.shape == (n_rows, 12)
    assert not rows.values_ND[5:].any()
    expected = torch.cat([g_bOI.clone() for g_bOI in each_dense(some)]).flatten(1)
    got = rows.values_ND[:5].float() * (1.0 if rows.scale_NK is None else rows.scale_NK[:5])
    rounding = {torch.bfloat16: 2**-8, torch.int8: 0.51 / 127}.get(dtype, 1e-6)
    torch.testing.assert_close(got, expected, rtol=0, atol=rounding * float(expected.abs().max()))


def test_what_is_widened_panel_by_panel_is_the_product_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    held_QX = torch.randint(-127, 128, (5, 1000), dtype=torch.int8, generator=generator)
    rows_BX = torch.randn(3, 1000, dtype=torch.float64, generator=generator)
    for widened in (1, 64, 5000, 1 << 19):  # one column at a time, an uneven last panel, exactly all, more than all
        monkeypatch.setattr(held, "PANEL", widened)
        torch.testing.assert_close(held._wide_product(rows_BX, held_QX), rows_BX @ held_QX.double().T)


@pytest.mark.parametrize("panel", [1, 9 * 30, 4 * 9 * 30, 1 << 20])  # one output at a time, an uneven last panel, all of them
def test_rows_that_are_made_panel_by_panel_are_multiplied_whole(monkeypatch: pytest.MonkeyPatch, panel: int) -> None:
    monkeypatch.setattr(held, "PANEL", panel)
    kept = Held(9, LAYOUT, whole=torch.float64)
    asked_QD = torch.randn(9, LAYOUT.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    kept.put(0, asked_QD)
    for block, part_QX in zip(LAYOUT.blocks, asked_QD.split([block.size for block in LAYOUT.blocks], 1), strict=True):
        batches = [Factors(one.a_BTI.double(), one.g_BTO.double()) for one in (factors(n, *block.shape, seed=n) for n in (4, 1, 2))]
        expected_QB = torch.cat([part_QX @ one.dense().flatten(1).T for one in batches], 1)
        torch.testing.assert_close(kept.factor_products(block.name, batches), expected_QB)


def test_factors_of_a_model_in_bfloat16_are_multiplied_in_float32() -> None:
    kept = Held(3, LAYOUT, whole=torch.bfloat16)
    asked_QD = torch.randn(3, LAYOUT.size, generator=torch.Generator().manual_seed(1))
    kept.put(0, asked_QD)
    narrow = factors(4, 40, 30)
    narrow = Factors(narrow.a_BTI.bfloat16(), narrow.g_BTO.bfloat16())
    expected_QB = asked_QD[:, : 40 * 30] @ Factors(narrow.a_BTI.float(), narrow.g_BTO.float()).dense().flatten(1).T
    torch.testing.assert_close(kept.factor_products("a", [narrow]), expected_QB, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("stored", "fast"), [("float32", False), ("bfloat16", False), ("bfloat16", True), ("int8", False), ("int8", True)])
def test_products_are_those_of_the_numbers_but_for_rounding(monkeypatch: pytest.MonkeyPatch, stored: str, fast: bool) -> None:
    """Each number is rounded at random, so a product of X numbers is off by about `rounding * |q| |g| / sqrt(X)`, not by more."""
    if fast and stored == "int8" and not int8_is_fast():
        pytest.skip("this processor has no VNNI")
    monkeypatch.setattr(held, "HELD_BYTES", 12 * LAYOUT.size * {"float32": 4, "bfloat16": 2, "int8": 1}[stored])
    monkeypatch.setattr(held, "bfloat16_is_fast", lambda: fast)
    monkeypatch.setattr(held, "int8_is_fast", lambda: fast)
    asked_QD = torch.randn(12, LAYOUT.size, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 3, 12)[:, None]
    kept = Held(12, LAYOUT, whole=torch.float32)
    kept.put(0, asked_QD[:5])
    kept.put(5, asked_QD[5:])
    assert str(kept.values_QD.dtype) == f"torch.{stored}"
    assert str(kept.multiplied) == f"torch.{stored if fast else 'float32'}"
    for block, part_QX in zip(LAYOUT.blocks, asked_QD.split([block.size for block in LAYOUT.blocks], 1), strict=True):
        rows = factors(21, *block.shape)
        batches = [Factors(rows.a_BTI[:9], rows.g_BTO[:9]), Factors(rows.a_BTI[9:], rows.g_BTO[9:])]
        rows_BX = rows.dense().flatten(1)
        exact_QB = part_QX.double() @ rows_BX.double().T
        typical_QB = part_QX.double().norm(dim=1)[:, None] * rows_BX.double().norm(dim=1) / block.size**0.5
        for found_QB in (kept.factor_products(block.name, batches), kept.products(block.name, rows_BX)):
            assert found_QB.dtype == torch.float32
            off = (found_QB.double() - exact_QB) / typical_QB
            assert float(off.abs().max()) < {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.1}[stored]
            if stored != "float32":
                assert float(off.abs().max()) > 1e-4  # it was rounded: this is not the float32 way under another name


@fast_at_int8
def test_an_int8_product_is_exact_where_an_int32_would_overflow() -> None:
    """The largest numbers there are, more of them than an int32 has room for: sums are taken in parts."""
    n = 2 * ADDED + 5
    most, least = torch.full((2, n), 127, dtype=torch.int8), torch.full((3, n), -127, dtype=torch.int8)
    assert int8_product(most, least).tolist() == [[float(torch.tensor(-(127**2) * n, dtype=torch.float32))] * 3] * 2
    generator = torch.Generator().manual_seed(0)
    a_BX, b_QX = (torch.randint(-127, 128, (k, 4001), generator=generator, dtype=torch.int8) for k in (3, 5))
    assert int8_product(a_BX, b_QX).long().equal(a_BX.long() @ b_QX.long().T)


@pytest.mark.parametrize("fast", [False, True])
def test_a_row_that_is_not_finite_is_nan_and_spoils_no_other(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    if fast and not int8_is_fast():
        pytest.skip("this processor has no VNNI")
    monkeypatch.setattr(held, "HELD_BYTES", 0)
    monkeypatch.setattr(held, "bfloat16_is_fast", lambda: False)
    monkeypatch.setattr(held, "int8_is_fast", lambda: fast)
    kept = Held(2, LAYOUT, whole=torch.float32)
    kept.put(0, torch.ones(2, LAYOUT.size))
    rows = factors(3, 40, 30)
    rows.g_BTO[1, 0, 0] = torch.inf
    assert kept.factor_products("a", [rows]).isnan().tolist() == [[False, True, False]] * 2
