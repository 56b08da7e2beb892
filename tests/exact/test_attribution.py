"""The methods over curvature and over members, against their formulas written out densely in float64."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from headwater.curvature import Fisher
from headwater.index.memory import MemoryIndex
from headwater.methods import DDA, GradCos, Less, RelatIF, SelfInfluence, TracIn, TrackStar, Trak
from headwater.methods.influence import Influence
from headwater.methods.self_influence import self_influences, suspects
from headwater.testing import LAYOUT, Toy, toy_queries, toy_rows
from headwater.testing.toys import ToyMember
from headwater.types import Block, IntegrityError, Layout, MemberRole, UsageError

N, Q = 30, 3


def sides(*roles: MemberRole, n: int = N) -> tuple[Toy, Toy]:
    return toy_rows(n, seed=1).with_members(roles, seed=10), toy_queries(Q, seed=2).with_members(roles, seed=20)


def score(method: Any, train: Toy, asked: Toy) -> Tensor:
    index = train.index()
    return torch.from_numpy(method.score(method.fit(index), index, asked.index()).values_QN).double()


def gradients(toy: Toy) -> Tensor:
    return toy.features["gradient"].double()


def cosine(a_QD: Tensor, b_ND: Tensor) -> Tensor:
    return torch.nn.functional.normalize(a_QD, dim=1) @ torch.nn.functional.normalize(b_ND, dim=1).T


def of_blocks(toy: Toy, matrix_of: Any) -> Tensor:
    """[D, D] block-diagonal, each block made of that block's part of the rows."""
    ends = toy.layout.offsets
    return torch.block_diag(*(matrix_of(gradients(toy)[:, a:b]) for a, b in itertools.pairwise(ends)))


def damped_fisher(rows_Nd: Tensor, share: float = 0.1) -> Tensor:
    c = rows_Nd.T @ rows_Nd / len(rows_Nd)
    return c + share * c.trace() / len(c) * torch.eye(len(c), dtype=c.dtype)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5 * float(expected.abs().max()))


# ------------------------------------------------------------------------------------------------- relative influence


@pytest.mark.parametrize("n", [8, 10, 30], ids=["rows in example space", "one block each way", "blocks as matrices"])
@pytest.mark.parametrize("kind", ["l", "theta"])
def test_relatif_is_influence_over_the_rows_own_effect(kind: Any, n: int) -> None:
    train, asked = sides(n=n)
    inverse_DD = of_blocks(train, damped_fisher).inverse()
    g_ND, h_QD = gradients(train), gradients(asked)
    effect_N = (g_ND @ inverse_DD * g_ND).sum(1).sqrt() if kind == "l" else (g_ND @ inverse_DD).norm(dim=1)
    close(score(RelatIF(kind=kind), train, asked), -(h_QD @ inverse_DD @ g_ND.T) / n / effect_N)


class SolvingEach(Fisher):
    """Without its shorter way to what rows do to themselves."""

    of_rows: Any = None


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("n", [5, 12, 40])
def test_the_shorter_way_gives_what_a_solve_for_every_row_gives(n: int, joint: bool) -> None:
    index = toy_rows(n, seed=1).filled(2, torch.nan).filled(1, 0.0).index()
    methods = [Influence(curvature(0.3, joint)) for curvature in (Fisher, SolvingEach)]
    short, long = (self_influences(method, method.fit(index), index) for method in methods)
    for found, expected in zip(short, long, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-12, equal_nan=True)
        assert found[1] == 0
        assert found[2].isnan()


def test_relatif_takes_any_curvature() -> None:
    """With the identity, kind l and kind theta are both the gradient product over the row's length."""
    train, asked = sides()
    expected = -(gradients(asked) @ gradients(train).T) / N / gradients(train).norm(dim=1)
    for kind in ("l", "theta"):
        close(score(RelatIF("identity", kind=kind), train, asked), expected)  # type: ignore[arg-type]


def test_relatif_does_not_see_a_rows_length_under_a_fixed_curvature() -> None:
    train, asked = sides()
    longer = replace(train, features={**train.features, "gradient": train.features["gradient"] * torch.logspace(-2, 2, N)[:, None]})
    close(score(RelatIF("identity"), longer, asked), score(RelatIF("identity"), train, asked))


def test_relatif_refuses_what_it_does_not_know() -> None:
    with pytest.raises(UsageError, match="kind is 'both', expected 'l'"):
        RelatIF(kind="both")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="there is no curvature 'hessian'"):
        RelatIF("hessian")
    with pytest.raises(UsageError, match="expected its name among the options"):
        RelatIF({"damping": 1.0})


# ------------------------------------------------------------------------------------------------------ self-influence


def test_self_influence_is_the_influence_of_a_row_on_itself() -> None:
    train, asked = sides()
    inverse_DD = of_blocks(train, lambda g: damped_fisher(g, 0.5)).inverse()
    expected_N = (gradients(train) @ inverse_DD * gradients(train)).sum(1) / N
    found_QN = score(SelfInfluence({"name": "fisher", "damping": "0.5 * mean_eigenvalue"}), train, asked)
    close(found_QN, expected_N.expand(Q, -1))


def test_suspects_puts_mislabelled_rows_first() -> None:
    """Logistic regression at its optimum on two well-separated classes, four rows of which carry the other class's label."""
    rng = torch.Generator().manual_seed(0)
    y_N = torch.where(torch.arange(120) % 2 == 0, 1.0, -1.0).double()
    x_ND = torch.randn(120, 5, generator=rng, dtype=torch.float64) + 3 * y_N[:, None] * torch.tensor([1.0, 1, 0, 0, 0])
    wrong = [7, 32, 77, 90]
    y_N[wrong] *= -1
    theta_D = torch.zeros(5, dtype=torch.float64)
    for _ in range(500):
        theta_D += 0.1 * (torch.sigmoid(-y_N * (x_ND @ theta_D)) * y_N) @ x_ND / len(y_N) * 5
    gradient_ND = -(torch.sigmoid(-y_N * (x_ND @ theta_D)) * y_N)[:, None] * x_ND
    toy = replace(toy_rows(120, seed=1), layout=Layout((Block("theta", (5,), (5,)),)))
    toy = replace(toy, features={"gradient": gradient_ND.float()}).filled(3, torch.nan)
    found = suspects(toy.index())
    assert {row_id for row_id, _ in found[:4]} == {toy.ids[i] for i in wrong}
    assert len(found) == 119
    assert toy.ids[3] not in dict(found)
    assert [value for _, value in found] == sorted((value for _, value in found), reverse=True)
    assert suspects(toy.index(), k=4) == found[:4]


# --------------------------------------------------------------------------------------------------------- checkpoints


def test_tracin_sums_over_checkpoints_by_learning_rate() -> None:
    train, asked = sides("checkpoint")
    expected = -sum(
        m.learning_rate * gradients(a.rows) @ gradients(m.rows).T  # type: ignore[operator]
        for m, a in zip(train.members, asked.members, strict=True)
    )
    close(score(TracIn(), train, asked), expected)
    close(score(TracIn(batch_size=4), train, asked), expected / 4)
    plain = -sum(gradients(a.rows) @ gradients(m.rows).T for m, a in zip(train.members, asked.members, strict=True))
    close(score(TracIn(weights="equal"), train, asked), plain)


def test_tracin_adds_up_to_what_training_did() -> None:
    """Full-batch descent on a linear regression, a checkpoint before each step: the scores sum to the change of the measure, in nats."""
    rng = torch.Generator().manual_seed(0)
    x_ND, y_N, theta_D = (torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in ((12, 6), (12,), (6,)))
    asked_D, target, rate = x_ND[0] + 0.3 * x_ND[1], 0.5, 1e-4
    layout, rows, query = Layout((Block("theta", (6,), (6,)),)), toy_rows(12, seed=1), toy_queries(1, seed=2)
    rows, query = replace(rows, layout=layout, features={}), replace(query, layout=layout, features={})
    members: tuple[list[ToyMember], list[ToyMember]] = ([], [])
    before = -0.5 * (asked_D @ theta_D - target) ** 2
    for k in range(20):
        gradient_ND = (x_ND @ theta_D - y_N)[:, None] * x_ND
        for side, toy, values in ((0, rows, gradient_ND), (1, query, -(asked_D @ theta_D - target) * asked_D[None])):
            members[side].append(ToyMember(f"step-{k}", "checkpoint", replace(toy, features={"gradient": values.float()}), k + 1, rate))
        theta_D = theta_D - rate * gradient_ND.mean(0)
    change = -0.5 * (asked_D @ theta_D - target) ** 2 - before
    train, asked = replace(rows, members=tuple(members[0])), replace(query, members=tuple(members[1]))
    method = TracIn(batch_size=12)
    scores = method.score({}, train.index(), asked.index())
    assert scores.unit == method.unit == "nats"
    assert TracIn().unit is TracIn(batch_size=12, weights="equal").unit is None
    torch.testing.assert_close(float(scores.values_QN.sum()), float(change), rtol=1e-3, atol=0)
    assert scores.provenance["visits"] == [1.0] * 20  # one step of all rows after another


def test_a_checkpoint_without_a_learning_rate_is_refused() -> None:
    train, asked = sides("checkpoint")
    train = replace(train, members=(replace(train.members[0], learning_rate=None), train.members[1]))
    with pytest.raises(UsageError, match=r"members checkpoint-1 have no learning rate.*weights='equal'"):
        score(TracIn(), train, asked)
    assert score(TracIn(weights="equal"), train, asked).isfinite().all()
    with pytest.raises(UsageError, match="weights is 'uniform', expected one of learning_rate, equal"):
        TracIn(weights="uniform")  # type: ignore[arg-type]


def test_less_is_the_cosine_with_adams_step_over_checkpoints() -> None:
    train, asked = sides("adam")
    pairs = list(zip(train.members, asked.members, strict=True))
    expected = -sum(m.learning_rate * cosine(gradients(a.rows), gradients(m.rows)) for m, a in pairs)  # type: ignore[operator]
    close(score(Less(), train, asked), torch.as_tensor(expected))
    close(score(Less(weights="equal"), train, asked), torch.as_tensor(-sum(cosine(gradients(a.rows), gradients(m.rows)) for m, a in pairs)))


def test_a_state_without_one_of_the_members_is_refused() -> None:
    train, asked = sides("adam")
    stale = Less().fit(replace(train, members=train.members[:1]).index())
    with pytest.raises(IntegrityError, match="fitted without the member 'adam-2'"):
        Less().score(stale, train.index(), asked.index())


def test_dda_takes_the_base_models_score_away() -> None:
    train, asked = sides("base")
    base, base_asked = train.members[0].rows, asked.members[0].rows
    expected = cosine(gradients(base_asked), gradients(base)) - cosine(gradients(asked), gradients(train))
    close(score(DDA(), train, asked), expected)
    products = (gradients(base_asked) @ gradients(base).T - gradients(asked) @ gradients(train).T) / N
    close(score(DDA("grad_dot"), train, asked), products)


def test_dda_averages_over_checkpoints_in_the_place_of_the_final_model() -> None:
    train, asked = sides("checkpoint", "base")
    of = {m.name: -cosine(gradients(a.rows), gradients(m.rows)) for m, a in zip(train.members, asked.members, strict=True)}
    close(score(DDA(), train, asked), (of["checkpoint-1"] + of["checkpoint-2"]) / 2 - of["base"])


def test_dda_with_influence_inside() -> None:
    train, asked = sides("base")
    inverse, base_inverse = of_blocks(train, damped_fisher).inverse(), of_blocks(train.members[0].rows, damped_fisher).inverse()
    tuned = gradients(asked) @ inverse @ gradients(train).T
    base = gradients(asked.members[0].rows) @ base_inverse @ gradients(train.members[0].rows).T
    close(score(DDA("fisher"), train, asked), (base - tuned) / N)


# ---------------------------------------------------------------------------------------------------------------- trak


def trak(train: Toy, asked: Toy, lambda_of: Any) -> Tensor:
    """Park et al. by dense matrices, the index and its seed members as the ensemble."""
    kernels, doubts = [], []
    for rows, queries in [(train, asked), *((m.rows, a.rows) for m, a in zip(train.members, asked.members, strict=True))]:
        doubt_N = 1 - torch.exp(-torch.from_numpy(rows.columns["loss"]).double())
        doubt_Q = 1 - torch.exp(torch.from_numpy(queries.columns["measure"]).double())
        phi_ND, phi_QD = -gradients(rows) / doubt_N[:, None], gradients(queries) / doubt_Q[:, None]
        matrix_DD = phi_ND.T @ phi_ND
        kernels.append(phi_QD @ torch.linalg.inv(matrix_DD + lambda_of(matrix_DD) * torch.eye(len(matrix_DD))) @ phi_ND.T)
        doubts.append(doubt_N)
    return torch.stack(kernels).mean(0) * torch.stack(doubts).mean(0)


@pytest.mark.parametrize("n", [12, 60], ids=["fewer rows than numbers", "more rows than numbers"])
@pytest.mark.parametrize("roles", [(), ("seed",)], ids=["alone", "with seeds"])
def test_trak_is_its_formula(n: int, roles: tuple[MemberRole, ...]) -> None:
    train, asked = sides(*roles, n=n)
    close(score(Trak(damping=2.5), train, asked), trak(train, asked, lambda matrix_DD: 2.5))
    rule = Trak(damping="0.3 * mean_eigenvalue")
    close(score(rule, train, asked), trak(train, asked, lambda matrix_DD: 0.3 * matrix_DD.trace() / len(matrix_DD)))


def test_trak_without_damping_needs_more_rows_than_numbers() -> None:
    train, asked = sides(n=60)
    close(score(Trak(damping=0), train, asked), trak(train, asked, lambda matrix_DD: 0.0))
    with pytest.raises(UsageError, match=r"damping is 0 with 18 usable rows of 18 numbers.*Give a damping"):
        score(Trak(damping=0), train.rows(range(18)), asked)
    with pytest.raises(UsageError, match="expected a number above 0"):
        Trak(damping=-1.0)


def test_the_log_odds_gradient_is_exact_where_the_loss_is_next_to_nothing() -> None:
    """Logistic regression: f = y theta.x whatever theta, so its gradient is y x for a loss of 1e-13 as for one of 30."""
    rng = torch.Generator().manual_seed(0)
    x_ND = torch.randn(40, 5, generator=rng, dtype=torch.float64)
    margin_N = torch.linspace(-30, 30, 40, dtype=torch.float64)
    gradient_ND = -torch.sigmoid(-margin_N)[:, None] * x_ND
    loss_N = torch.nn.functional.softplus(-margin_N, threshold=1e9)
    toy = replace(toy_rows(40, seed=1), layout=Layout((Block("theta", (5,), (5,)),)), features={"gradient": gradient_ND.float()})
    toy = replace(toy, columns={**toy.columns, "loss": loss_N.numpy()})
    query_1D = torch.randn(1, 5, generator=rng)
    asked = replace(toy_queries(1, seed=2), layout=toy.layout, features={"gradient": query_1D})
    asked.columns["measure"][:], asked.columns["measure_name"][:] = 3.0, "class_logit_margin"
    kernel_N = (query_1D.double() @ torch.linalg.inv(x_ND.T @ x_ND) @ x_ND.T)[0]
    close(score(Trak(damping=0), toy, asked)[0], kernel_N * torch.sigmoid(-margin_N))


def test_a_measure_that_is_no_log_probability_is_taken_as_it_is() -> None:
    train, asked = sides()
    as_log_probability = score(Trak(), train, asked)
    asked.columns["measure_name"][:] = "contrast"
    doubt_Q1 = 1 - np.exp(asked.columns["measure"].astype(np.float64))[:, None]
    close(score(Trak(), train, asked), as_log_probability * torch.from_numpy(doubt_Q1))


# ----------------------------------------------------------------------------------------------------------- trackstar


def root_of(moment: Tensor, floor: float) -> Tensor:
    """`R^-1/2` with the floor."""
    values, vectors = torch.linalg.eigh(moment)
    return vectors @ torch.diag(values.clamp(min=floor * moment.trace() / len(moment)).rsqrt()) @ vectors.T


def trackstar(rows: Toy, queries: Toy, *, floor: float, share: float = 0.0) -> Tensor:
    """Whitened by R^-1/2, then of unit length, then multiplied."""
    ends, roots = rows.layout.offsets, []
    for a, b in itertools.pairwise(ends):
        g, h = gradients(rows)[:, a:b], gradients(queries)[:, a:b]
        roots.append(root_of((1 - share) * g.T @ g / len(g) + share * h.T @ h / len(h), floor))
    root_DD = torch.block_diag(*roots)
    return -cosine(gradients(queries) @ root_DD, gradients(rows) @ root_DD)


@pytest.mark.parametrize("n", [4, 9, 40], ids=["rows in example space", "one block each way", "blocks as matrices"])
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_trackstar_is_its_formula(n: int, share: float) -> None:
    train, asked = sides("second_moment", n=n)
    for floor in (1e-3, 0.5):
        expected = trackstar(train.members[0].rows, asked.members[0].rows, floor=floor, share=share)
        close(score(TrackStar(task_share=share, floor=floor), train, asked), expected)


def test_the_order_of_trackstar_matters() -> None:
    """Unit length before R^-1/2 would be another method: what this one gives is not that."""
    train, asked = sides("second_moment")
    rows = train.members[0].rows
    stretched = replace(rows, features={"gradient": rows.features["gradient"] * torch.logspace(-1, 1, N)[:, None]})
    normed = replace(rows, features={"gradient": torch.nn.functional.normalize(stretched.features["gradient"], dim=1)})
    train = replace(train, members=(replace(train.members[0], rows=stretched),))
    right, wrong = (trackstar(one, asked.members[0].rows, floor=1e-3) for one in (stretched, normed))
    close(score(TrackStar(), train, asked), right)
    assert (right - wrong).abs().max() > 0.05


def test_trackstar_averages_over_its_members() -> None:
    train, asked = sides("second_moment")
    others = [replace(toy.members[0], name="other", rows=replace(toy, members=())) for toy in (train, asked)]
    twice = [replace(toy, members=(toy.members[0], other)) for toy, other in zip((train, asked), others, strict=True)]
    expected = [trackstar(m.rows, a.rows, floor=1e-3) for m, a in zip(twice[0].members, twice[1].members, strict=True)]
    close(score(TrackStar(), *twice), (expected[0] + expected[1]) / 2)


def test_a_task_share_settles_one_r_for_every_search() -> None:
    """Another set of queries, scored with the state settled for the first, is held against the first's R."""
    train, asked = sides("second_moment")
    method, index, queries = TrackStar(task_share=0.3), train.index(), asked.index()
    settled = method.for_task(method.fit(index), index, queries)
    assert method.for_task(settled, index, queries) is settled
    alone: MemoryIndex = queries.subset([1])
    found = method.score(settled, index, alone).values_QN
    torch.testing.assert_close(found, method.score(settled, index, queries).values_QN[[1]])
    assert np.abs(found - method.score(method.fit(index), index, alone).values_QN).max() > 1e-3


def test_trackstar_refuses_shares_and_floors_that_mean_nothing() -> None:
    for options in ({"task_share": 1.0}, {"task_share": -0.1}, {"floor": 0.0}):
        with pytest.raises(UsageError, match="expected a share from 0 to below 1, a floor above 0"):
            TrackStar(**options)


def test_a_block_that_no_row_uses_is_no_evidence() -> None:
    train, asked = sides("second_moment")
    rows = train.members[0].rows
    silent = replace(rows, features={"gradient": torch.cat([rows.features["gradient"][:, :12], torch.zeros(N, 6)], 1)})
    train = replace(train, members=(replace(train.members[0], rows=silent),))
    assert LAYOUT.offsets == (0, 12, 18)
    root_DD = root_of(gradients(silent)[:, :12].T @ gradients(silent)[:, :12] / N, 1e-3)
    expected = -cosine(gradients(asked.members[0].rows)[:, :12] @ root_DD, gradients(silent)[:, :12] @ root_DD)
    close(score(TrackStar(), train, asked), expected)


def test_whatever_the_method_a_cosine_of_itself_is_the_largest() -> None:
    """A row in the place of the query, as the hub correction has it."""
    train, _ = sides("second_moment", "adam", "base")
    asked = train.scaled(-1.0)
    asked = replace(asked, gradient_of="measure")
    for method in (GradCos(), TrackStar(), Less(weights="equal")):
        values_NN = score(method, train, asked)
        assert (values_NN.argmax(1) == torch.arange(N)).all()
