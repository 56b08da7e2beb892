"""Removal: designs are known by what they leave out, and nothing is called separated that is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headwater.evaluate.removal import picks, removal_curve, separation
from headwater.evaluate.summary import evaluate
from headwater.types import DataError, Scores, Truth

N, Q, S, K = 30, 4, 5, 3


def bank(*, effect: float = 1.0, noise: float = 0.1, seeds: int = S, draws: int = 3, seed: int = 0) -> tuple[Scores, Truth]:
    """For each query the K rows of highest, lowest and smallest score are left out; then K random rows, and none."""
    rng = np.random.default_rng(seed)
    scores_QN = rng.standard_normal((Q, N))
    gone: list[np.ndarray] = [np.array([], dtype=int)]
    names = ["all"]
    for q in range(Q):
        orders = {"most": -scores_QN[q], "least": scores_QN[q], "zero": np.abs(scores_QN[q])}
        gone += [np.argsort(key)[:K] for key in orders.values()]
        names += [f"design/{q}/{pick}" for pick in orders]
    gone += [rng.permutation(N)[:K] for _ in range(draws)]
    names += [f"random/{draw}" for draw in range(draws)]
    kept_DN = np.ones((len(gone), N), dtype=bool)
    for d, rows in enumerate(gone):
        kept_DN[d, rows] = False
    shape = (len(gone), seeds, Q)
    outcomes_DSQ = effect * (kept_DN @ scores_QN.T)[:, None] + rng.standard_normal((seeds, Q)) + noise * rng.standard_normal(shape)
    ids = tuple(f"r{n}" for n in range(N)), tuple(f"q{q}" for q in range(Q))
    truth = Truth(outcomes_DSQ, kept_DN, *ids, tuple(range(seeds)), "cold", "nats", designs=tuple(names))
    return Scores(scores_QN, ids[1], ids[0], "m", "nats"), truth


def test_designs_are_known_by_what_they_leave_out() -> None:
    scores, truth = bank()
    found = picks(scores, truth)
    assert set(found) == {("none", 0), *((pick, K) for pick in ("most", "least", "zero", "random"))}
    for place, pick in enumerate(("most", "least", "zero")):
        mask_DQ = found[pick, K]  # pyright: ignore[reportArgumentType]
        expected = {(1 + 3 * q + place, q) for q in range(Q)}
        assert {(int(d), int(q)) for d, q in np.argwhere(mask_DQ)} == expected
    assert found["random", K].sum() == 3 * Q


def test_a_removal_by_the_mean_score_is_of_every_query() -> None:
    scores, truth = bank()
    first = np.argsort(-scores.values_QN.mean(0))[:2]
    kept_N = np.ones(N, dtype=bool)
    kept_N[first] = False
    more = replace(
        truth,
        kept_DN=np.vstack([truth.kept_DN, kept_N]),
        outcomes_DSQ=np.concatenate([truth.outcomes_DSQ, truth.outcomes_DSQ[:1]]),
        designs=(*truth.designs, "top/2"),
    )
    assert picks(scores, more)["most", 2][-1].all()


def test_the_change_is_against_the_same_seed_on_all_rows() -> None:
    """A seed's own level cancels: without noise of the pair the change is the sum of the effects that went."""
    scores, truth = bank(noise=0.0)
    points = {point.pick: point for point in removal_curve(scores, truth)}
    assert list(points) == ["none", "least", "most", "random", "zero"]
    ordered_QN = np.sort(scores.values_QN, axis=1)
    assert points["most"].change.value == pytest.approx(-ordered_QN[:, -K:].sum(1).mean())
    assert points["least"].change.value == pytest.approx(-ordered_QN[:, :K].sum(1).mean())
    assert points["most"].standard_error == pytest.approx(0, abs=1e-12)
    assert points["none"].change.value == pytest.approx(0)
    assert points["none"].standard_error > 0.1  # training again moves the level
    assert points["random"].standard_error > 0  # draws differ


def test_a_bank_of_removals_alone_is_enough() -> None:
    scores, truth = bank()
    result = evaluate(
        scores,
        truth=replace(truth, designs=tuple(f"random/{d}" if "random" in name else f"most/{d}" for d, name in enumerate(truth.designs))),
    )
    assert not any(name.startswith("lds") for name in result.figures)
    assert [line["pick"] for line in result.to_json()["removal"]] == ["none", "least", "most", "random", "zero"]
    assert next(finding for finding in result.findings if finding.name == "removal").status == "ok"


def test_leave_one_out_is_no_removal_of_the_first_row() -> None:
    scores, truth = bank()
    kept_DN = np.vstack([np.ones(N, dtype=bool), ~np.eye(N, dtype=bool)])
    outcomes_DSQ = np.zeros((N + 1, S, Q))
    one = replace(truth, kept_DN=kept_DN, outcomes_DSQ=outcomes_DSQ, designs=("all", *(f"without/{n}" for n in range(N))))
    assert removal_curve(scores, one) == []
    named = replace(one, designs=("all", *(f"most/{n}" for n in range(N))))
    assert {point.pick for point in removal_curve(scores, named)} == {"none", "most", "least", "zero"}


def test_separated_or_undetermined() -> None:
    def word(**changes: object) -> tuple[str, str]:
        scores, truth = bank(**changes)  # pyright: ignore[reportArgumentType]
        (found,) = separation(removal_curve(scores, truth))
        return found.status, found.because

    assert word()[0] == "ok"
    assert word(effect=-1.0)[0] == "fail"
    status, because = word(effect=0.0, noise=1.0)
    assert status == "unknown"
    assert "undetermined" in because
    status, because = word(seeds=4)
    assert status == "unknown"
    assert "undetermined: 4 seeds" in because
    status, because = word(draws=0)
    assert status == "unknown"
    assert "no random removals" in because


def test_noise_alone_is_seldom_called_separated() -> None:
    found = [separation(removal_curve(*bank(effect=0.0, noise=1.0, seed=seed)))[0].status for seed in range(60)]
    assert found.count("unknown") >= 48


def test_a_seed_that_diverged_is_no_seed() -> None:
    scores, truth = bank()
    outcomes_DSQ = truth.outcomes_DSQ.copy()
    outcomes_DSQ[0, 0] = np.nan  # the training on all rows, with the first seed
    points = removal_curve(scores, replace(truth, outcomes_DSQ=outcomes_DSQ))
    assert {point.change.n for point in points} == {S - 1}
    assert all(np.isfinite(point.change.value) for point in points)


def test_a_bank_of_removals_needs_a_training_on_all_rows() -> None:
    scores, truth = bank()
    rest = replace(truth, kept_DN=truth.kept_DN[1:], outcomes_DSQ=truth.outcomes_DSQ[1:], designs=truth.designs[1:])
    with pytest.raises(DataError, match="k = 0"):
        removal_curve(scores, rest)
    only_random = replace(truth, kept_DN=truth.kept_DN[-3:], outcomes_DSQ=truth.outcomes_DSQ[-3:], designs=truth.designs[-3:])
    assert removal_curve(scores, only_random) == []


def test_no_difference_at_all_is_undetermined() -> None:
    """A behaviour that never changes has no spread either."""
    scores, truth = bank(effect=0.0)
    (found,) = separation(removal_curve(scores, replace(truth, outcomes_DSQ=np.ones_like(truth.outcomes_DSQ))))
    assert (found.status, found.value) == ("unknown", 0.0)
