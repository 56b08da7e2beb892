"""A live source's rows, factors and Gauss-Newton operator against autograd and dense matrices, in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from headwater.gradient import live, team
from headwater.gradient.gauss_newton import gauss_newton_product
from headwater.gradient.live import LiveSource
from headwater.gradient.scope import find_scope, make_layout
from headwater.gradient.sketch import SketchSpec
from headwater.model.sampling import draw
from headwater.model.session import Session
from headwater.types import Batch, Example, Labels, Layout, ModelSource
from tests.exact.models import ARCHITECTURES, make_batch, make_session, single
from tests.exact.test_gradients import reference_gradients

CAUSAL = [name for name in ARCHITECTURES if "classification" not in name]


@pytest.fixture(autouse=True)
def _double_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in test_gradients: what transformers computes in float32 whatever the dtype is computed in float64 here."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self.double())


def examples_of(batch: Batch) -> list[Example]:
    lengths = batch.lengths_B.tolist()
    labels = [None] * len(batch) if batch.labels_B is None else batch.labels_B.tolist()
    return [
        Example(id=batch.ids[b], tokens=batch.tokens_BT[b, :n].numpy(), loss_mask=batch.loss_mask_BT[b, :n].numpy(), label=labels[b])
        for b, n in enumerate(lengths)
    ]


def whole_layout(session: Session) -> Layout:
    return make_layout(session.model, find_scope(session.model), SketchSpec(rank=None))


def source_of(session: Session, **options: object) -> tuple[LiveSource, Batch]:
    batch = make_batch(session)
    return LiveSource(session, examples_of(batch), whole_layout(session), **options), batch  # type: ignore[arg-type]


def gathered(source: LiveSource, labels: Labels) -> torch.Tensor:
    rows_ND = torch.full((len(source), source.layout.size), torch.nan, dtype=torch.float64)
    for positions, rows_BD in source.rows(labels):
        rows_ND[torch.as_tensor(positions)] = rows_BD
    return rows_ND


def assert_rows_equal(got_ND: torch.Tensor, expected_ND: torch.Tensor) -> None:
    torch.testing.assert_close(got_ND, expected_ND, rtol=1e-8, atol=1e-9 * float(expected_ND.abs().max()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_of_true_labels_equal_autograd(architecture: str) -> None:
    source, batch = source_of(make_session(architecture), token_budget=24)
    expected = source.layout.join(reference_gradients(source.session, batch))
    assert_rows_equal(gathered(source, "true"), expected)
    in_order = torch.cat([rows_BD for _, rows_BD in source.blocks("gradient")])
    assert_rows_equal(in_order, expected)
    assert isinstance(source, ModelSource)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_rows_of_sampled_labels_are_those_of_the_labels_drawn(architecture: str) -> None:
    """The same seed draws the same labels however rows are batched; another seed draws others."""
    first = gathered(source_of(make_session(architecture), seed=3)[0], "sampled")
    assert_rows_equal(gathered(source_of(make_session(architecture), seed=3, token_budget=8)[0], "sampled"), first)
    others = [gathered(source_of(make_session(architecture), seed=seed)[0], "sampled") for seed in range(4, 8)]
    others.append(gathered(source_of(make_session(architecture))[0], "true"))
    assert max(float((other - first).norm()) for other in others) > 1e-3 * float(first.norm())


def counted_passes(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, ...]]:
    """Rows that go through the model from now on, by the labels that they are differentiated for."""
    seen: Counter[tuple[str, ...]] = Counter()
    run = live._Pass.batches

    def counted(self: live._Pass, positions: Sequence[int], kinds: Callable[[int], Sequence[Labels]]) -> object:
        seen[tuple(kinds(positions[0]))] += len(positions)
        return run(self, positions, kinds)

    monkeypatch.setattr(live._Pass, "batches", counted)
    return seen


def test_kept_rows_come_from_one_pass_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    keeping, plain = source_of(make_session("llama"), keep=("true", "sampled"))[0], source_of(make_session("llama"))[0]
    seen = counted_passes(monkeypatch)
    sampled = gathered(keeping, "sampled")
    assert_rows_equal(gathered(keeping, "true"), gathered(plain, "true"))
    assert_rows_equal(sampled, gathered(plain, "sampled"))
    assert seen.pop(("true", "sampled")) == len(keeping), "one pass served both"
    assert seen == {("true",): len(plain), ("sampled",): len(plain)}, "the two others are the plain source's"
    assert not source_of(make_session("llama"), keep=("true",), keep_bytes=8)[0].keeps("true")


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "llama_lora", "bert"])
def test_workers_side_by_side_give_what_one_pass_gives_and_the_same_each_time(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = make_session(architecture)
    batch = make_batch(session, lengths=(9, 5, 7, 9, 6, 8, 4))
    plain = LiveSource(session, examples_of(batch), whole_layout(session), token_budget=27)
    expected = gathered(plain, "true")
    monkeypatch.setattr(team, "WORKER_TOKENS", (9, 9))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:

        def begin() -> dict[int, torch.Tensor]:
            return {}

        def term(so_far: dict[int, torch.Tensor], found: live.FactorBatch) -> None:
            rows_BD = live.dense_rows(plain.layout, found.factors, len(found.positions))
            so_far.update(zip(found.positions, rows_BD, strict=True))

        first, again = (plain.over_factors("true", begin, term) for _ in range(2))
        keeping = LiveSource(session, examples_of(batch), whole_layout(session), token_budget=27, keep=("true",))
        kept = gathered(keeping, "true")
    finally:
        torch.set_num_threads(threads)
    assert len(first) == 3
    assert [list(one) for one in first] == [list(one) for one in again], "the same rows, in the same order, by the same worker"
    assert sorted(i for one in first for i in one) == list(range(len(batch)))
    merged = {i: row for one in first for i, row in one.items()}
    assert_rows_equal(torch.stack([merged[i] for i in range(len(batch))]), expected)
    assert_rows_equal(kept, expected)


def test_a_basis_looks_at_as_many_positions_as_it_asks_for() -> None:
    """Some batches, each as it is among all of them, whether rows are kept or not; the rows that are kept meanwhile are all of them."""
    session, batch = make_session("llama"), make_batch(make_session("llama"), lengths=(9, 5, 7, 9, 6, 8))
    plain, keeping = (
        LiveSource(session, examples_of(batch), whole_layout(session), token_budget=9, keep=keep)  # type: ignore[arg-type]
        for keep in ((), ("sampled",))
    )
    every = {tuple(found.positions): found.factors for found in plain.factors("resampled")}
    assert sum(map(len, every)) == len(batch)
    drawn = gathered(plain, "sampled")
    assert float((gathered(plain, "resampled") - drawn).norm()) > 1e-3 * float(drawn.norm()), "another draw"
    for source in (plain, keeping):
        some = {tuple(found.positions): found.factors for found in source.factors("resampled", positions=20)}
        assert 15 <= sum(len(batch.tokens_BT[list(rows)]) * max(batch.lengths_B[list(rows)]) for rows in some) <= 30
        for rows, factors in some.items():
            for name, one in factors.items():
                assert_rows_equal(one.dense().flatten(1), every[rows][name].dense().flatten(1))
    assert keeping.keeps("sampled")
    assert_rows_equal(gathered(keeping, "sampled"), drawn)
    own = [found.positions for found in keeping.factors("sampled", positions=20)]
    assert 0 < len(own) < len(every)


def dense_gauss_newton(session: Session, layout: Layout, batch: Batch) -> torch.Tensor:
    """[D, D] `sum_n J'HJ` with J by reverse mode, one logit at a time: shares no code with what is tested."""
    parameters = dict(session.model.named_parameters())
    wanted = [parameters[block.name] for block in layout.blocks]
    total = torch.zeros(layout.size, layout.size, dtype=torch.float64)
    for row in range(len(batch)):
        one = single(batch, row)
        if session.task == "sequence-classification":
            logits_PV = session.model(input_ids=one.tokens_BT, attention_mask=torch.ones_like(one.tokens_BT)).logits
        else:
            logits_PV = session.model(input_ids=one.tokens_BT, use_cache=False).logits[0, :-1][one.loss_mask_BT[0, 1:]]
        for logits_V in logits_PV:
            grads = [torch.autograd.grad(z, wanted, retain_graph=True, allow_unused=True) for z in logits_V]
            flat = [
                torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(wanted, one, strict=True)])
                for one in grads
            ]
            jacobian_VD, p_V = torch.stack(flat), logits_V.softmax(-1).detach()
            total += jacobian_VD.T @ (torch.diag(p_V) - torch.outer(p_V, p_V)) @ jacobian_VD
    return total


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("include", [("*q_proj*", "*c_attn*"), ("*norm*", "*ln_*")])
def test_gauss_newton_products_equal_the_dense_matrix(architecture: str, include: tuple[str, ...]) -> None:
    session = make_session(architecture)
    batch = make_batch(session)
    layout = make_layout(session.model, find_scope(session.model, include=include), SketchSpec(rank=None))
    if layout.size > 900:
        layout = Layout(layout.blocks[:2])
    v_KD = torch.randn(2, layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected_KD = v_KD @ dense_gauss_newton(session, layout, batch)
    before = [p.requires_grad for p in session.model.parameters()]
    assert_rows_equal(gauss_newton_product(session, layout, batch, v_KD), expected_KD)
    assert before == [p.requires_grad for p in session.model.parameters()]
    source = LiveSource(session, examples_of(batch), layout, token_budget=20)
    assert_rows_equal(source.gauss_newton(v_KD), expected_KD / len(batch))
    with source.linearised() as product:
        assert_rows_equal(product(v_KD), source.gauss_newton(v_KD))
        assert_rows_equal(product(v_KD[:1]), source.gauss_newton(v_KD[:1]))  # the passes that are kept serve again
    assert before == [p.requires_grad for p in session.model.parameters()]


def test_gauss_newton_with_the_head_in_scope_equals_the_dense_matrix() -> None:
    session = make_session("llama")
    batch = make_batch(session)
    layout = make_layout(session.model, find_scope(session.model, include=("lm_head*", "model.norm*")), SketchSpec(rank=None))
    v_KD = torch.randn(1, layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected_KD = v_KD @ dense_gauss_newton(session, layout, batch)
    assert_rows_equal(gauss_newton_product(session, layout, batch, v_KD), expected_KD)


def test_the_sampled_fisher_tends_to_the_gauss_newton_matrix() -> None:
    """E over labels of the mean of g g' is C: the mean over 400 draws of v'gg'v is within 5 standard errors of v'Cv."""
    session = make_session("llama")
    layout = make_layout(session.model, find_scope(session.model, include=("*o_proj*",)), SketchSpec(rank=None))
    batch = make_batch(session)
    v_D = torch.randn(layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    draws = []
    for seed in range(400):
        source = LiveSource(session, examples_of(batch), layout, seed=seed)
        draws.append(float((gathered(source, "sampled") @ v_D).square().mean()))
    exact = float(v_D @ LiveSource(session, examples_of(batch), layout).gauss_newton(v_D[None])[0])
    error = np.std(draws, ddof=1) / np.sqrt(len(draws))
    assert abs(np.mean(draws) - exact) < 5 * error
    assert error < 0.1 * exact, "the test can tell a factor of two"


@pytest.mark.parametrize("vocabulary", [5, 64, 130])
def test_draws_follow_the_probabilities(vocabulary: int) -> None:
    p_V = torch.rand(vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.05
    uniform_C = (torch.arange(40_000) + 0.5) / 40_000  # a grid, so that frequencies are exact but for the ends of intervals
    counts_V = torch.bincount(draw(p_V.expand(len(uniform_C), -1), uniform_C), minlength=vocabulary)
    assert float((counts_V.double() / 40_000 - p_V / p_V.sum()).abs().max()) < 2 / 40_000


def test_a_draw_never_leaves_the_vocabulary() -> None:
    p_V = torch.zeros(1, 70)
    p_V[0, 69] = 1.0
    assert draw(p_V.expand(3, -1), torch.tensor([0.0, 0.5, 1.0])).tolist() == [69, 69, 69]
