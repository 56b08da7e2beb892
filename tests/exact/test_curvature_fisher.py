"""The damped empirical Fisher and DataInf against the dense matrices and the formulas they stand for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from headwater.curvature import DataInf, Fisher, gram, kronecker
from headwater.curvature.gram import by_examples, panels, smaller_products
from headwater.curvature.operators import pieces
from headwater.types import UsageError
from tests.exact.sources import BLOCKS, Rows, dense_fisher, dense_solve, random_rows, vectors


def assert_relative(found_KD: Tensor, expected_KD: Tensor, tolerance: float) -> None:
    """`||found - expected|| <= tolerance ||expected||` for each right-hand side."""
    errors_K = (found_KD.double() - expected_KD).norm(dim=1) / expected_KD.norm(dim=1)
    assert float(errors_K.max()) <= tolerance, f"relative errors {errors_K.tolist()}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("n", [1, 5, 10, 12, 25, 80])  # blocks have 20, 7 and 12 numbers, all of them 39
def test_fisher_equals_the_dense_solve(n: int, joint: bool, dtype: torch.dtype) -> None:
    source, b_KD, fisher = random_rows(n, dtype=dtype), vectors(4, dtype=dtype), Fisher(joint=joint)
    state = fisher.fit(source)
    solve = fisher.solve(state, source, b_KD)
    matrix_DD = dense_fisher(source, joint=joint)
    assert solve.status == "closed_form"
    assert solve.value.dtype == dtype
    assert_relative(solve.value, dense_solve(matrix_DD, state["damping"], BLOCKS, b_KD), 1e-6)
    traces = [matrix_DD.diagonal()[part].mean() for part in pieces(BLOCKS, joint=joint)]
    expected_L = 0.1 * torch.stack(traces).expand(3)
    torch.testing.assert_close(state["damping"], expected_L, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("ratio", [1e-8, 1e3])
def test_fisher_at_the_ends_of_damping(ratio: float) -> None:
    """Far below the eigenvalues nearly all of v cancels, and float32 rows still give the dense float64 solve of those rows."""
    source, b_KD = random_rows(12, dtype=torch.float32), vectors(3, dtype=torch.float32)
    fisher = Fisher(damping=f"{ratio} * mean_eigenvalue", joint=True)
    state = fisher.fit(source)
    expected_KD = dense_solve(dense_fisher(source), state["damping"], BLOCKS, b_KD)
    assert_relative(fisher.solve(state, source, b_KD).value, expected_KD, 1e-6)


def test_a_damping_that_float64_cannot_see_is_refused() -> None:
    source = Rows(torch.full((40, 39), 1e3, dtype=torch.float64), BLOCKS)
    with pytest.raises(UsageError, match=r"damping is 1e-20.*Give a larger damping"):
        Fisher(damping=1e-20).fit(source)


def test_bad_rows_are_left_out_whichever_form_is_taken() -> None:
    source = random_rows(25)
    rows_ND = source.rows_ND.clone()
    rows_ND[4, 3], rows_ND[17] = torch.nan, torch.inf
    good_N = torch.isfinite(rows_ND).all(1)
    without, b_KD = replace(source, rows_ND=rows_ND[good_N]), vectors(2)
    for joint in (False, True):
        fisher = Fisher(joint=joint)
        bad = replace(source, rows_ND=rows_ND)
        found, expected = (fisher.solve(fisher.fit(one), one, b_KD).value for one in (bad, without))
        assert_relative(found, expected, 1e-12)


def test_the_residual_on_the_whole_matrix_is_taken() -> None:
    """Joint: nothing but rounding. Per block: what the blocks between them are worth."""
    source, b_KD = random_rows(30), vectors(3)
    joint, blocks = (Fisher(joint=joint) for joint in (True, False))
    assert float(joint.solve(joint.fit(source), source, b_KD).residual_K.max()) < 1e-10  # type: ignore[union-attr]
    state = blocks.fit(source)
    solve = blocks.solve(state, source, b_KD)
    damping_D = state["damping"].repeat_interleave(torch.tensor([block.size for block in BLOCKS.blocks]))
    residual_KD = solve.value @ (dense_fisher(source) + torch.diag(damping_D)) - b_KD
    assert solve.residual_K is not None
    torch.testing.assert_close(solve.residual_K, residual_KD.norm(dim=1) / b_KD.norm(dim=1))
    assert solve.residual_of == "fisher"


# ------------------------------------------------------------------------------------------------- products of rows


@pytest.mark.parametrize("n", [6, 18, 30])
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("held_bytes", [1, 8 * 39 * 10, 1 << 30])
def test_products_do_not_depend_on_how_many_rows_are_held(n: int, joint: bool, held_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One panel, several, or one a block of the source: and whichever of the two products is the smaller."""
    monkeypatch.setattr(gram, "HELD_BYTES", held_bytes)
    monkeypatch.setattr(gram, "COLUMNS", 5)
    monkeypatch.setattr(kronecker, "PANEL", 4)  # so that half of a small product is left to symmetry, as of a large one
    source = random_rows(n)
    products, counted = smaller_products(source, pieces(BLOCKS, joint=joint))
    assert counted == n
    for product, part in zip(products, pieces(BLOCKS, joint=joint), strict=True):
        rows_ND = source.rows_ND[:, part]
        expected = rows_ND @ rows_ND.T if n < rows_ND.shape[1] else rows_ND.T @ rows_ND
        torch.testing.assert_close(product, expected)
    assert len(list(panels(source))) == {1: len(list(source.blocks("gradient"))), 8 * 39 * 10: -(-n // 14), 1 << 30: 1}[held_bytes]


@pytest.mark.parametrize(("n", "d"), [(3, 4), (4, 4), (5, 4), (1000, 2048)])
def test_the_cheaper_form_is_taken(n: int, d: int) -> None:
    woodbury, direct = n * n * d + n**3 / 3, n * d * d + d**3 / 3
    assert by_examples(n, d) == (woodbury < direct)


def test_one_scan_serves_the_products() -> None:
    """A live model's rows cost a pass each time."""
    source = random_rows(30)

    class Counted(Rows):
        scans = 0

        def blocks(self, feature: str):  # type: ignore[no-untyped-def]
            Counted.scans += 1
            return super().blocks(feature)

    smaller_products(Counted(source.rows_ND, BLOCKS), pieces(BLOCKS, joint=True))
    assert Counted.scans == 1


# ---------------------------------------------------------------------------------------------------------- DataInf


def literal_datainf(source: Rows, damping_L: Tensor, b_KD: Tensor) -> Tensor:
    """Kwon et al. 2024, eq. 5, as it is written: a loop over blocks, vectors and rows."""
    x_KD = torch.zeros_like(b_KD)
    for part, damping in zip(pieces(source.layout, joint=False), damping_L.tolist(), strict=True):
        for k, b_D in enumerate(b_KD[:, part]):
            for g_D in source.rows_ND[:, part]:
                x_KD[k, part] += (b_D - (b_D @ g_D) / (damping + g_D @ g_D) * g_D) / damping / len(source)
    return x_KD


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_datainf_equals_the_double_loop(dtype: torch.dtype, tolerance: float) -> None:
    source, b_KD, datainf = random_rows(23, dtype=dtype), vectors(4, dtype=dtype), DataInf()
    state = datainf.fit(source)
    expected_KD = literal_datainf(replace(source, rows_ND=source.rows_ND.double()), state["damping"], b_KD.double())
    assert_relative(datainf.solve(state, source, b_KD).value, expected_KD, tolerance)


def test_datainf_has_its_authors_damping() -> None:
    """`0.1 / (N d) sum_n sum_j g_nj^2` of each layer."""
    source = random_rows(23)
    expected = [0.1 * sum(float(g**2) for row in source.rows_ND[:, part] for g in row) / (23 * (part.stop - part.start))
                for part in pieces(BLOCKS, joint=False)]  # fmt: skip
    torch.testing.assert_close(DataInf().fit(source)["damping"], torch.tensor(expected, dtype=torch.float64))


def test_datainf_of_one_row_is_exact() -> None:
    """With a single row there is no mean to swap with the inverse."""
    source, b_KD = random_rows(1), vectors(3)
    datainf, fisher = DataInf(damping=0.7), Fisher(damping=0.7)
    expected_KD = fisher.solve(fisher.fit(source), source, b_KD).value
    assert_relative(datainf.solve(datainf.fit(source), source, b_KD).value, expected_KD, 1e-12)


def test_datainf_is_nearly_the_gradient_where_damping_is_far_below_the_rows() -> None:
    """The trap: with lambda 1e-6 of the rows' squares, rows all over the place, x is v / lambda but for 1 part in D of it."""
    rows_ND = torch.randn(4000, 39, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    source, b_KD = Rows(rows_ND, BLOCKS), vectors(3)
    datainf, fisher = (curvature(damping="1e-6 * mean_eigenvalue") for curvature in (DataInf, Fisher))
    found = datainf.solve(datainf.fit(source), source, b_KD).value
    exact = fisher.solve(fisher.fit(source), source, b_KD).value
    damping_L = datainf.fit(source)["damping"]
    ratio_K = (found * damping_L.mean()).norm(dim=1) / b_KD.norm(dim=1)
    assert float(ratio_K.min()) > 0.8
    assert float(found.norm() / exact.norm()) > 1e4
