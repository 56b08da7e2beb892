"""K-FAC, EK-FAC, the Gauss-Newton matrix and CG preconditioned by EK-FAC against matrices formed from their definitions, in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from headwater.curvature import EKFAC, EKFACCG, GGN, KFAC, kronecker
from headwater.curvature.operators import spread
from headwater.gradient import team
from headwater.gradient.live import LiveSource
from headwater.gradient.scope import find_scope, make_layout
from headwater.gradient.sketch import SketchSpec
from headwater.model.session import Session
from headwater.types import Block, Curvature, Labels, Layout, Source, State
from tests.exact.models import make_batch, make_session
from tests.exact.sources import BLOCKS, SoftmaxSource, random_rows, vectors
from tests.exact.test_live_source import assert_rows_equal, dense_gauss_newton, examples_of, gathered

MATRICES = ("*q_proj*", "*k_proj*", "*v_proj*", "*down_proj*", "*norm*")
NAN_TOKEN = 60
WHOLE = "float32"  # whatever the dtype: here "auto" would take float64 for float32, which `_double_norms` makes it


@pytest.fixture(autouse=True)
def _double_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in test_gradients: what transformers computes in float32 whatever the dtype is computed in float64 here."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self.double())
    monkeypatch.setattr("headwater.gradient.live.give_back_memory", lambda: None)  # a second for each pass over three rows


def live(session: Session, *, include: tuple[str, ...] = ("*",), lengths: tuple[int, ...] = (9, 5, 7), **options: object) -> LiveSource:
    layout = make_layout(session.model, find_scope(session.model, include=include), SketchSpec(rank=None))
    return LiveSource(session, examples_of(make_batch(session, lengths=lengths)), layout, **options)  # type: ignore[arg-type]


def matrices(source: LiveSource, labels: Labels) -> dict[str, Tensor]:
    """{block: [N, O, I]} the rows' gradients."""
    parts = source.layout.split(gathered(source, labels))
    return {name: part if part.dim() == 3 else part.unsqueeze(-1) for name, part in parts.items()}


def covariances(source: LiveSource, labels: Labels) -> dict[str, tuple[Tensor, Tensor, float]]:
    """{block: (A, S, T)} by their definition, position by position; a side longer than LARGEST_SIDE has its diagonal only."""
    a, d = ({name: [] for name in source.layout.split(torch.zeros(1, source.layout.size))} for _ in range(2))
    for batch in source.factors(labels):
        for name, one in batch.factors.items():
            as_rows = one.a_BTI.shape[1] == batch.used_BT.shape[1]
            kept = batch.used_BT if as_rows else torch.ones(one.a_BTI.shape[:2], dtype=torch.bool)
            a[name].append(one.a_BTI[kept])
            d[name].append(one.g_BTO[kept])
    a_nI, d_nO = ({name: torch.cat(parts) for name, parts in side.items()} for side in (a, d))
    return {name: (_mean_product(a_nI[name]), _mean_product(d_nO[name]), len(a_nI[name]) / len(source)) for name in a}


def _mean_product(x_nX: Tensor) -> Tensor:
    mean_XX = x_nX.T @ x_nX / len(x_nX)
    return torch.diag(mean_XX.diagonal()) if len(mean_XX) > kronecker.LARGEST_SIDE else mean_XX


def eigenvectors(matrix_XX: Tensor) -> Tensor:
    if len(matrix_XX) > kronecker.LARGEST_SIDE:
        return torch.eye(len(matrix_XX), dtype=torch.float64)
    return torch.linalg.eigh(matrix_XX).eigenvectors.contiguous()


def dense(name: str, g_NOI: Tensor, a_II: Tensor, s_OO: Tensor, n_positions: float) -> Tensor:
    """[O I, O I] one block's curvature as the docstrings of KFAC and EKFAC have it."""
    if name == "kfac":
        return n_positions * torch.kron(s_OO, a_II)
    left, right = eigenvectors(s_OO), eigenvectors(a_II)
    eigenvalues = (left.T @ g_NOI @ right).square().mean(0).flatten()
    basis = torch.kron(left, right)
    return basis @ torch.diag(eigenvalues) @ basis.T


def dense_blocks(name: str, source: LiveSource, labels: Labels, basis_labels: Labels | None = None) -> dict[str, Tensor]:
    rows = matrices(source, labels)
    return {block: dense(name, rows[block], *found) for block, found in covariances(source, basis_labels or labels).items()}


def formed(state: State, source: Source) -> dict[str, Tensor]:
    """{block: [O I, O I]} C as the state holds it: `(Q_S (x) Q_A) diag(eigenvalues) (Q_S (x) Q_A)'`."""
    eigenvalues, found = source.layout.split(state["eigenvalues"]), {}
    for block, basis in kronecker.bases(state, source.layout).items():
        assert basis.left.vectors is not None
        assert basis.right.vectors is not None
        turn = torch.kron(basis.left.vectors, basis.right.vectors)
        found[block] = turn @ torch.diag(eigenvalues[block].flatten()) @ turn.T
    return found


def assert_solves(curvature: Curvature, source: Source, blocks: dict[str, Tensor]) -> None:
    """The solution equals the dense one, block by block, to 1e-8; the rule's damping is 0.1 of the mean eigenvalue."""
    state, b_KD = curvature.fit(source), vectors(2, source.layout)
    x = source.layout.split(curvature.solve(state, source, b_KD).value)
    b = source.layout.split(b_KD)
    means_L = torch.stack([blocks[block.name].diagonal().mean() for block in source.layout.blocks])
    smallest = means_L[means_L > 0].min()
    torch.testing.assert_close(state["damping"], 0.1 * torch.where(means_L > 0, means_L, smallest), rtol=1e-9, atol=0)
    for i, block in enumerate(source.layout.blocks):
        matrix = blocks[block.name] + state["damping"][i] * torch.eye(block.size, dtype=torch.float64)
        expected = torch.linalg.solve(matrix, b[block.name].flatten(1).T).T
        error = (x[block.name].flatten(1) - expected).norm() / expected.norm()
        assert float(error) < 1e-8, f"{block.name}: relative error {float(error):.1e}"


# ------------------------------------------------------------------------------------------------------- a live model


@pytest.mark.parametrize(
    "curvature",
    [
        KFAC(labels="true", precision=WHOLE),
        EKFAC(labels="true", precision=WHOLE),
        EKFAC(basis_labels="sampled", precision=WHOLE),
    ],
    ids=["kfac", "ekfac", "ekfac-sampled"],
)
@pytest.mark.parametrize("largest_side", [8192, 40])
def test_a_solve_equals_the_dense_one_with_everything_in_scope(curvature: KFAC, largest_side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices, biases, norms, the embedding and the head; with 40, the vocabulary of 61 keeps its own basis."""
    monkeypatch.setattr(kronecker, "LARGEST_SIDE", largest_side)
    source = live(make_session("llama"), token_budget=20)
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} <= {block.name for block in source.layout.blocks}
    assert_solves(curvature, source, dense_blocks(curvature.name, source, curvature.labels, getattr(curvature, "labels_of_basis", None)))


def test_a_solve_equals_the_dense_one_where_the_basis_is_of_a_second_draw() -> None:
    """More positions than a side is long: where they are fewer, a draw leaves part of its basis open, and another draw reaches there."""
    source, ekfac = live(make_session("llama"), include=MATRICES, lengths=(17,) * 16), EKFAC(precision=WHOLE)
    assert ekfac.labels_of_basis == "resampled"
    assert_solves(ekfac, source, dense_blocks("ekfac", source, "sampled", "resampled"))


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("curvature", [KFAC(labels="true", precision=WHOLE), EKFAC(labels="true", precision=WHOLE)], ids=["kfac", "ekfac"])
def test_pooled_and_tied_blocks_have_positions_of_their_own(curvature: KFAC, architecture: str) -> None:
    """A pooler sees one position a row, a tied embedding two for each token: its T is its own."""
    include = ("*pooler*", "*classifier*", "*query*", "*ln_f*", "*attn.c_proj*")
    source = live(make_session(architecture), include=include)
    assert_solves(curvature, source, dense_blocks(curvature.name, source, "true"))


@pytest.mark.parametrize("labels", ["true", "sampled"])
def test_kfac_is_exact_for_one_row_of_one_position(labels: Labels) -> None:
    """T A (x) S is then the gradient's own outer product, every block of it."""
    source = live(make_session("bert"), include=("*layer.1*", "*pooler*", "*classifier*"), lengths=(1,))
    blocks, rows = dense_blocks("kfac", source, labels), matrices(source, labels)
    kfac = KFAC(labels=labels, precision=WHOLE)
    state = kfac.fit(source)
    for block, damping in zip(source.layout.blocks, state["damping"].tolist(), strict=True):
        g = rows[block.name].flatten()
        assert_rows_equal(blocks[block.name], torch.outer(g, g))
        assert damping == pytest.approx(0.1 * float(g.square().mean()), abs=1e-8)
    g_1D = gathered(source, labels)  # along g, the solve divides by ||g||^2 + lambda
    solved = source.layout.split(kfac.solve(state, source, g_1D).value)
    for block, damping in zip(source.layout.blocks, state["damping"].tolist(), strict=True):
        g = source.layout.split(g_1D)[block.name]
        torch.testing.assert_close(
            solved[block.name], g / (g.square().sum() + damping), rtol=1e-8, atol=1e-12 * float(g.abs().max()) / damping
        )


@pytest.mark.parametrize("seed", range(5))
def test_ekfac_is_no_further_from_the_fisher_matrix_than_kfac(seed: int) -> None:
    """In the Frobenius norm, every block, the same samples and so the same basis; somewhere by a tenth at least."""
    source = live(make_session("llama", seed=seed), include=MATRICES, seed=seed)
    near, far = (formed(one.fit(source), source) for one in (EKFAC(basis_labels="sampled", precision=WHOLE), KFAC(precision=WHOLE)))
    ratios = []
    for block, g_NOI in matrices(source, "sampled").items():
        fisher = g_NOI.flatten(1).T @ g_NOI.flatten(1) / len(g_NOI)
        ratios.append(float((near[block] - fisher).norm() / (far[block] - fisher).norm()))
        assert ratios[-1] <= 1 + 1e-9, f"{block}: EK-FAC's distance is {ratios[-1]:.4f} of K-FAC's"
    assert min(ratios) < 0.9


@pytest.mark.parametrize("seed", range(5))
def test_ekfac_as_it_is_by_default_is_nearer_to_the_gauss_newton_matrix_than_kfac(seed: int) -> None:
    """The exact one, in the Frobenius norm, where the basis and the eigenvalues are of two draws. Rows of several positions each."""
    session, include = make_session("llama", seed=seed), ("*v_proj.weight",)
    lengths = (9, 5, 7, 11, 8, 10, 6, 12)
    source = live(session, include=include, lengths=lengths, seed=seed)
    exact = dense_gauss_newton(session, source.layout, make_batch(session, lengths=lengths)) / len(source)
    near, far = (formed(one.fit(source), source) for one in (EKFAC(precision=WHOLE), KFAC(precision=WHOLE)))
    distances = {"ekfac": 0.0, "kfac": 0.0}
    for block, (start, stop) in zip(source.layout.blocks, pairwise(source.layout.offsets), strict=True):
        for name, found in (("ekfac", near), ("kfac", far)):
            distances[name] += float((found[block.name] - exact[start:stop, start:stop]).square().sum())
    assert distances["ekfac"] < distances["kfac"]


def test_the_basis_may_be_of_other_labels_than_the_eigenvalues() -> None:
    """C is diagonal in the true labels' basis, with the sampled gradients' mean squares on the diagonal."""
    source = live(make_session("llama"), include=("*0*q_proj.weight",))
    state = EKFAC(basis_labels="true", precision=WHOLE).fit(source)
    ((block, basis),) = kronecker.bases(state, source.layout).items()
    true = kronecker.bases(EKFAC(labels="true", precision=WHOLE).fit(source), source.layout)[block]
    torch.testing.assert_close(basis.left.vectors, true.left.vectors)
    expected = basis.rotate(matrices(source, "sampled")[block]).square().mean(0)
    torch.testing.assert_close(source.layout.split(state["eigenvalues"])[block], expected)


def test_blocks_that_share_an_input_are_as_computed_apart() -> None:
    session = make_session("llama")
    together = live(session, include=("*q_proj.weight", "*k_proj.weight", "*v_proj.weight"))
    state = EKFAC(precision=WHOLE).fit(together)
    assert sum(name.startswith("right/") for name in state) == 2, "one basis of the inputs for each of two layers"
    b = together.layout.split(vectors(2, together.layout))
    solved = together.layout.split(EKFAC(precision=WHOLE).solve(state, together, vectors(2, together.layout)).value)
    for block in together.layout.blocks:
        apart = live(session, include=(block.name,))
        alone = EKFAC(precision=WHOLE).solve(EKFAC(precision=WHOLE).fit(apart), apart, b[block.name].flatten(1)).value
        assert_rows_equal(solved[block.name].flatten(1), alone)


def test_scores_add_up_over_blocks_and_positions() -> None:
    source = live(make_session("llama"), include=MATRICES)
    ekfac, b_KD = EKFAC(precision=WHOLE), vectors(2, source.layout)
    state = ekfac.fit(source)
    x = source.layout.split(ekfac.solve(state, source, b_KD).value)
    total_KN = source.layout.join(x) @ gathered(source, "true").T
    parts_KN = torch.zeros_like(total_KN)
    for block, (start, stop) in zip(source.layout.blocks, pairwise(source.layout.offsets), strict=True):
        alone_KD = torch.zeros_like(b_KD)
        alone_KD[:, start:stop] = b_KD[:, start:stop]
        solved = source.layout.split(ekfac.solve(state, source, alone_KD).value)
        assert_rows_equal(source.layout.join(solved)[:, start:stop], x[block.name].flatten(1))
        for batch in source.factors("true"):
            terms_BTOI = batch.factors[block.name].per_token().reshape(*batch.factors[block.name].g_BTO.shape[:2], -1)
            parts_KN[:, torch.as_tensor(batch.positions)] += torch.einsum("kd,btd->kb", solved[block.name].flatten(1), terms_BTOI)
    assert float((parts_KN - total_KN).norm() / total_KN.norm()) < 1e-6


@pytest.mark.parametrize("labels", ["true", "sampled"])
def test_kept_rows_give_what_passes_give(labels: Labels) -> None:
    session, ekfac = make_session("llama"), EKFAC(labels=labels, precision=WHOLE)
    plain, kept = (live(session, include=MATRICES, keep=keep) for keep in ((), ("true", "sampled")))
    assert_rows_equal(ekfac.fit(kept)["eigenvalues"], ekfac.fit(plain)["eigenvalues"])


def test_bad_rows_have_no_curvature() -> None:
    """One row whose activations are NaN: every curvature is that of the others, by passes and from rows that are kept."""
    session = make_session("llama")
    examples = examples_of(make_batch(session, lengths=(9, 5, 7, 9, 6)))
    examples[3].tokens[2] = NAN_TOKEN
    assert all(NAN_TOKEN not in examples[i].tokens for i in (0, 1, 2, 4)), "the others are sound"
    with torch.no_grad():
        session.network.model.embed_tokens.weight[NAN_TOKEN] = torch.nan
    layout = make_layout(session.model, find_scope(session.model, include=MATRICES), SketchSpec(rank=None))
    sound = LiveSource(session, [example for i, example in enumerate(examples) if i != 3], layout)
    b_KD = vectors(2, layout)
    for keep in ((), ("true",)):
        bad = LiveSource(session, examples, layout, bad=(3,), keep=keep)  # type: ignore[arg-type]
        for curvature in (KFAC(labels="true", precision=WHOLE), EKFAC(labels="true", precision=WHOLE)):
            expected = curvature.solve(curvature.fit(sound), sound, b_KD).value
            assert_rows_equal(curvature.solve(curvature.fit(bad), bad, b_KD).value, expected)
        assert_rows_equal(bad.gauss_newton(b_KD), sound.gauss_newton(b_KD))


# ---------------------------------------------------------------------------------------- the Gauss-Newton matrix, and CG


def test_ggn_equals_the_matrix_of_explicit_jacobians() -> None:
    """Joint over blocks, lambda of each block from its own mean eigenvalue."""
    session = make_session("llama")
    source = live(session, include=("*1*k_proj.bias", "*1*norm*", "model.norm*"))
    matrix = dense_gauss_newton(session, source.layout, make_batch(session)) / len(source)
    means_L = torch.stack([matrix.diagonal()[i:j].mean() for i, j in pairwise(source.layout.offsets)])
    state, b_KD = GGN().fit(source), vectors(2, source.layout)
    torch.testing.assert_close(state["damping"], 0.1 * means_L, rtol=1e-9, atol=0)
    expected = torch.linalg.solve(matrix + torch.diag(spread(0.1 * means_L, source.layout)), b_KD.T).T
    assert_rows_equal(GGN().solve(state, source, b_KD).value, expected)


def test_ggn_is_the_same_however_many_columns_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last part is shorter than the others."""
    source = random_rows(40)
    whole = GGN().fit(source)["cholesky"]
    monkeypatch.setattr("headwater.curvature.ggn.COLUMNS", 5)
    assert source.layout.size > 10
    assert source.layout.size % 5
    torch.testing.assert_close(GGN().fit(source)["cholesky"], whole)


@pytest.mark.parametrize("source", [live, "softmax", "rows"], ids=["llama", "softmax", "rows"])
def test_ekfac_cg_ends_at_the_solution_of_ggn(source: object) -> None:
    """One damping for all, so that both solve the same system; the residual is the true one, and CG starts from EK-FAC's own solution."""
    if callable(source):
        source = live(make_session("llama"), include=("*1*norm*", "*1*k_proj.bias"))
    elif source == "softmax":
        source = SoftmaxSource.drawn(30, seed=4)
    else:
        source = random_rows(40)
    damping, b_KD = float(GGN().fit(source)["damping"].max()), vectors(2, source.layout)  # type: ignore[union-attr]
    ggn, refined = GGN(damping=damping), EKFACCG(damping=damping, tolerance=1e-9, max_steps=500, precision=WHOLE)
    expected = ggn.solve(ggn.fit(source), source, b_KD).value
    solve = refined.solve(refined.fit(source), source, b_KD)
    assert (solve.status, solve.residual_of) == ("converged", "fisher" if type(source).__name__ == "Rows" else "ggn")
    torch.testing.assert_close(solve.value, expected, rtol=1e-7, atol=1e-8 * float(expected.abs().max()))
    few = EKFACCG(damping=damping, tolerance=1e-10, max_steps=2, precision=WHOLE)
    stopped = few.solve(few.fit(source), source, b_KD)
    inverse = ggn.solve(ggn.fit(source), source, torch.eye(source.layout.size, dtype=torch.float64)).value  # type: ignore[union-attr]
    residual_K = (torch.linalg.solve(inverse, stopped.value.T).T - b_KD).norm(dim=1) / b_KD.norm(dim=1)
    torch.testing.assert_close(stopped.residual_K, residual_K, rtol=1e-6, atol=1e-12)
    ekfac = EKFAC(damping=damping, precision=WHOLE)
    start = ekfac.solve(ekfac.fit(source), source, b_KD).value
    unmoved = EKFACCG(damping=damping, max_steps=0, precision=WHOLE).solve(few.fit(source), source, b_KD).value
    torch.testing.assert_close(unmoved, start, rtol=1e-9, atol=1e-9 * float(start.abs().max()))


# --------------------------------------------------------------------------------------------------------- stored rows


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_stored_rows_have_the_basis_of_their_own_second_moments(name: str) -> None:
    """K-FAC's eigenvalues are scaled so that its trace is that of the rows' Fisher matrix."""
    source = random_rows(50)
    blocks = {}
    for block, part in source.layout.split(source.rows_ND).items():
        g_NOI = part if part.dim() == 3 else part.unsqueeze(-1)
        a_II, s_OO = (g_NOI.mT @ g_NOI).mean(0), (g_NOI @ g_NOI.mT).mean(0)
        blocks[block] = dense(name, g_NOI, a_II, s_OO, 1 / float(a_II.trace()))
        assert float(blocks[block].trace()) == pytest.approx(float(g_NOI.square().sum() / len(g_NOI)))
    assert_solves(KFAC(precision=WHOLE) if name == "kfac" else EKFAC(precision=WHOLE), source, blocks)


def test_a_float32_index_solves_vectors_of_float64() -> None:
    source, b_KD = random_rows(50), vectors(2)
    rough = random_rows(50, dtype=torch.bfloat16)
    assert BLOCKS.size == b_KD.shape[1]
    expected, found = (EKFAC(precision=WHOLE).solve(EKFAC(precision=WHOLE).fit(one), one, b_KD).value for one in (source, rough))
    assert found.dtype == torch.float64
    assert float((found - expected).norm() / expected.norm()) < 0.05


# ----------------------------------------------------------------------------------------------------------- precision


def test_products_in_bfloat16_stay_near() -> None:
    source = live(make_session("llama"), include=MATRICES)
    b_KD = vectors(3, source.layout)
    exact, rough = (EKFAC(labels="true", precision=precision) for precision in ("float32", "bfloat16"))
    expected, found = (one.solve(one.fit(source), source, b_KD).value for one in (exact, rough))
    error = float((found - expected).norm() / expected.norm())
    assert 1e-5 < error < 0.1, f"relative error {error:.1e}; below 1e-5 nothing was in bfloat16"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_padding_is_in_no_covariance(precision: kronecker.Precision) -> None:
    """Rows of unequal length in one batch: what stands behind the shorter ones counts neither in a sum nor in its number."""
    source = live(make_session("llama"), include=MATRICES, lengths=(20, 19, 20))
    assert [bool(batch.used_BT.all()) for batch in source.factors("true")] == [False]
    state = kronecker.fit_bases(source, "true", precision)
    leaders = [source.layout.blocks[i].name for i in state["right_leader"].tolist()]
    rtol, atol = (1e-9, 1e-12) if precision == "float32" else (0.02, 1e-3)
    for i, (name, (a_II, s_OO, n_positions)) in enumerate(covariances(source, "true").items()):
        assert float(state["positions"][i]) == pytest.approx(n_positions)
        for found_X, wanted_XX in ((state[f"right_values/{leaders[i]}"], a_II), (state[f"left_values/{name}"], s_OO)):
            torch.testing.assert_close(found_X.double().sum(), wanted_XX.diagonal().sum(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("curvature", [EKFAC(labels="true", precision=WHOLE), EKFAC(precision=WHOLE), KFAC(precision=WHOLE)])
@pytest.mark.parametrize("architecture", ["llama", "llama_lora"])
def test_workers_side_by_side_fit_what_one_fits(architecture: str, curvature: Curvature, monkeypatch: pytest.MonkeyPatch) -> None:
    session, lengths = make_session(architecture), (9, 5, 7, 9, 6, 8, 4, 9, 7)
    alone, together = (live(session, lengths=lengths, token_budget=27) for _ in range(2))
    expected = curvature.fit(alone)
    workers: set[int] = set()
    each = team.Team.each
    monkeypatch.setattr(team, "WORKER_TOKENS", (9, 9))
    monkeypatch.setattr(team.Team, "each", lambda self, *jobs, **how: (workers.add(len(self.workers)), each(self, *jobs, **how))[1])
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        got = curvature.fit(together)
    finally:
        torch.set_num_threads(threads)
    assert workers == {3}
    b_KD = torch.randn(3, alone.layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(got["damping"], expected["damping"])
    torch.testing.assert_close(got["positions"], expected["positions"])
    solved, wanted = (curvature.solve(state, alone, b_KD).value for state in (got, expected))
    torch.testing.assert_close(solved, wanted, rtol=1e-6, atol=1e-8 * float(wanted.abs().max()))


def test_a_block_that_no_row_used_is_divided_by_the_damping_and_what_was_given_stays_as_it_is() -> None:
    """It has no basis: what is solved in place of a copy would be the query itself."""
    layout = Layout((Block("experts", (5, 3), (5, 3)), Block("bias", (4,), (4,))))
    state = {"eigenvalues": torch.zeros(19), "damping": torch.tensor([0.5, 0.25]).double(), "right_leader": torch.arange(2)}
    b_KD = torch.randn(2, 19, generator=torch.Generator().manual_seed(0))
    before_KD = b_KD.clone()
    expected_KD = torch.cat([before_KD[:, :15] / 0.5, before_KD[:, 15:] / 0.25], 1)
    torch.testing.assert_close(kronecker.solve_in_basis(state, layout, b_KD), expected_KD)
    assert b_KD.equal(before_KD)
