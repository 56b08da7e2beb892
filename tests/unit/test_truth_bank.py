"""A bank on disk: what is written reads back, what is damaged is refused, and the noise ceiling is what its definition says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from headwater.truth.bank import noise_ceiling, read_bank, write_bank
from headwater.types import DataError, IntegrityError, Truth


def truth(n_designs: int = 6, n_seeds: int = 2, n_queries: int = 3, n_rows: int = 5) -> Truth:
    rng = np.random.default_rng(0)
    outcomes_DSQ = rng.normal(size=(n_designs, n_seeds, n_queries))
    diverged_DS = np.zeros((n_designs, n_seeds), dtype=bool)
    outcomes_DSQ[1, 0], diverged_DS[1, 0] = np.nan, True
    return Truth(
        outcomes_DSQ=outcomes_DSQ,
        kept_DN=rng.random((n_designs, n_rows)) < 0.5,
        train_ids=tuple(f"row {n} é~2" for n in range(n_rows)),
        query_ids=tuple(f"q/{q}" for q in range(n_queries)),
        seeds=tuple(range(n_seeds)),
        kind="warm",
        unit="nats",
        designs=tuple(f"half/{d}" for d in range(n_designs)),
        diverged_DS=diverged_DS,
        recipe={"training": {"lr": 1e-3}, "corpus": "abc"},
        noise_ceiling=noise_ceiling(outcomes_DSQ),
    )


def test_a_bank_reads_back_as_it_was_and_equal_truths_are_equal_bytes(tmp_path: Path) -> None:
    written = truth()
    write_bank(tmp_path / "a", written)
    write_bank(tmp_path / "b", truth())
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["bank.json", "bank.npz"]
    for name in ("bank.json", "bank.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    read = read_bank(tmp_path / "a")
    for name in ("train_ids", "query_ids", "seeds", "kind", "unit", "designs", "recipe", "noise_ceiling"):
        assert getattr(read, name) == getattr(written, name), name
    for name in ("outcomes_DSQ", "kept_DN", "diverged_DS"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert json.loads((tmp_path / "a" / "bank.json").read_text())["n_diverged"] == 1


def test_anyone_can_read_it_with_numpy_alone(tmp_path: Path) -> None:
    write_bank(tmp_path, truth())
    with np.load(tmp_path / "bank.npz", allow_pickle=False) as file:
        assert file["train_ids"][1] == "row 1 é~2"
        np.testing.assert_array_equal(file["outcomes_DSQ"], truth().outcomes_DSQ)


def test_a_damaged_bank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no bank: bank.json is not in it"):
        read_bank(tmp_path)
    write_bank(tmp_path, truth())
    whole, about = (tmp_path / "bank.npz").read_bytes(), (tmp_path / "bank.json").read_text()
    for content in (whole[:-10], b"", b"nonsense", whole[:200] + b"\0" + whole[201:]):
        (tmp_path / "bank.npz").write_bytes(content)
        with pytest.raises(IntegrityError, match="damaged or not of this bank"):
            read_bank(tmp_path)
    write_bank(tmp_path, replace(truth(), kind="cold"))
    (tmp_path / "bank.json").write_text(about.replace('"format": 1', '"format": 2'))
    with pytest.raises(IntegrityError, match="format 2"):
        read_bank(tmp_path)
    (tmp_path / "bank.json").write_text(about[:50])
    with pytest.raises(IntegrityError, match="cannot be read as JSON"):
        read_bank(tmp_path)


# ------------------------------------------------------------------------------------------------------- the ceiling


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("n_seeds", [2, 5])
def test_the_ceiling_is_what_perfect_knowledge_reaches(noise: float, n_seeds: int) -> None:
    """By simulation: outcomes are an expectation and noise; the ceiling is the expectation's own Spearman correlation with their mean."""
    rng = np.random.default_rng(1)
    expected_DQ = rng.normal(size=(200, 300))
    outcomes_DSQ = expected_DQ[:, None] + noise * rng.normal(size=(200, n_seeds, 300))
    reached = np.mean([spearmanr(expected_DQ[:, q], outcomes_DSQ[:, :, q].mean(1))[0] for q in range(300)])
    assert noise_ceiling(outcomes_DSQ) == pytest.approx(reached, abs=0.03)


def test_the_ceiling_of_noise_alone_is_near_nothing_and_of_none_is_one() -> None:
    rng = np.random.default_rng(2)
    assert noise_ceiling(np.repeat(rng.normal(size=(30, 1, 4)), 3, axis=1)) == pytest.approx(1.0)
    against = np.concatenate([rng.normal(size=(30, 1, 1))] * 2, axis=1) * np.array([1, -1])[None, :, None]
    assert noise_ceiling(against) == 0.0


def test_where_nothing_is_known_of_the_noise_there_is_no_ceiling() -> None:
    rng = np.random.default_rng(3)
    outcomes_DSQ = rng.normal(size=(10, 2, 3))
    assert noise_ceiling(outcomes_DSQ[:, :1]) is None
    assert noise_ceiling(outcomes_DSQ[:2]) is None
    assert noise_ceiling(np.full((10, 2, 3), 1.5)) is None
    half_known = outcomes_DSQ.copy()
    half_known[4, 1], half_known[:, :, 2] = np.nan, np.nan
    assert noise_ceiling(half_known) == pytest.approx(noise_ceiling(np.delete(outcomes_DSQ, 4, axis=0)[:, :, :2]))
