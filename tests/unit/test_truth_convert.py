"""Banks of others: kronfluence's files and plain npz, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headwater.truth.bank import read_bank, write_bank
from headwater.truth.convert import load_plainly, read_kronfluence, read_npz, truth_from_arrays
from headwater.types import DataError, UsageError

RNG = np.random.default_rng(0)
MASKS, MARGINS = RNG.random((6, 9)) < 0.5, RNG.normal(size=(6, 4))


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float32, np.float64])
def test_kronfluences_pair_is_read(tmp_path: Path, as_tensor: bool, dtype: Any) -> None:
    masks, margins = MASKS.astype(dtype), MARGINS.astype(np.float32)
    for name, array in (("masks.pt", masks), ("margins.pt", margins)):
        torch.save(torch.from_numpy(array) if as_tensor else array, tmp_path / name)
    found = read_kronfluence(tmp_path / "masks.pt", tmp_path / "margins.pt", outcome="measure")
    np.testing.assert_array_equal(found.kept_DN, MASKS)
    np.testing.assert_array_equal(found.outcomes_DSQ[:, 0], margins)
    assert found.train_ids == tuple(map(str, range(9)))
    assert (found.kind, found.seeds, found.noise_ceiling) == ("cold", (0,), None)


def test_a_change_of_the_loss_is_turned_into_one_of_the_measure(tmp_path: Path) -> None:
    torch.save({"mask": MASKS.astype(int), "diff_loss": MARGINS}, tmp_path / "lds_results.pt")
    found = read_kronfluence(tmp_path / "lds_results.pt")
    np.testing.assert_array_equal(found.outcomes_DSQ[:, 0], -MARGINS)
    np.testing.assert_array_equal(found.kept_DN, MASKS)


def test_npz_with_seeds_and_ids_reads_and_becomes_a_bank(tmp_path: Path) -> None:
    outcomes = RNG.normal(size=(6, 3, 4))
    outcomes[2, 1] = np.inf
    ids = {"train_ids": np.array([f"r{n}" for n in range(9)]), "query_ids": np.array(list("wxyz"))}
    np.savez(tmp_path / "other.npz", masks=MASKS, outcomes=outcomes, **ids)
    found = read_npz(tmp_path / "other.npz", outcome="measure", kind="warm")
    assert (found.train_ids[:2], found.query_ids, found.kind, found.seeds) == (("r0", "r1"), ("w", "x", "y", "z"), "warm", (0, 1, 2))
    assert np.isnan(found.outcomes_DSQ[2, 1]).all()
    assert found.diverged_DS is not None
    assert found.diverged_DS.sum() == 1
    assert found.noise_ceiling is not None
    write_bank(tmp_path / "bank", found)
    np.testing.assert_array_equal(read_bank(tmp_path / "bank").outcomes_DSQ, found.outcomes_DSQ)


@pytest.mark.parametrize(
    ("masks", "outcomes", "said"),
    [
        (MASKS.T, np.ones((6, 4)), r"masks of shape \(9, 6\) for 6 designs.*the other way round"),
        (MASKS, np.ones((5, 4)), r"masks of shape \(6, 9\) for 5 designs of outcomes, expected as many\.$"),
        (MASKS[0], MARGINS, r"shape \(9,\), expected designs x training rows"),
        (MASKS.astype(int) * 2, MARGINS, "other values than 0 and 1"),
        (np.where(MASKS, 1.0, np.nan), MARGINS, "other values than 0 and 1"),
        (MASKS, MARGINS[0], r"outcomes are float64 of shape \(4,\)"),
        (MASKS, MARGINS.astype(str), "expected numbers"),
        (np.empty((0, 9)), np.empty((0, 4)), "expected designs x training rows"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(masks: np.ndarray, outcomes: np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        truth_from_arrays(masks, outcomes, outcome="measure")


def test_ids_that_do_not_fit_and_a_sign_that_is_not_said_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 distinct ids for 9 rows"):
        truth_from_arrays(MASKS, MARGINS, outcome="measure", train_ids=["a", "b"])
    with pytest.raises(DataError, match="1 distinct ids for 4 queries"):
        truth_from_arrays(MASKS, MARGINS, outcome="measure", query_ids=["a"] * 4)
    with pytest.raises(UsageError, match="it decides the sign"):
        truth_from_arrays(MASKS, MARGINS, outcome="margin")  # type: ignore[arg-type]
    torch.save(MASKS, tmp_path / "masks.pt")
    with pytest.raises(UsageError, match="it decides the sign"):
        read_kronfluence(tmp_path / "masks.pt", tmp_path / "masks.pt")


class Loud:
    def __reduce__(self) -> Any:
        return print, ("a pickle was run",)


def test_files_that_hold_anything_else_are_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"mask": Loud()}, tmp_path / "loud.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Loud()))
    (tmp_path / "cut.pt").write_bytes((tmp_path / "loud.pt").read_bytes()[:100])
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("loud.pt", "pickle.pt", "cut.pt", "empty.pt", "absent.pt"):
        with pytest.raises(DataError, match="cannot be read as tensors and arrays alone"):
            load_plainly(tmp_path / name)
    np.savez(tmp_path / "objects.npz", masks=np.array([Loud()], dtype=object), outcomes=MARGINS)
    for name in ("objects.npz", "cut.pt", "absent.npz"):
        with pytest.raises(DataError, match="cannot be read as npz without unpickling"):
            read_npz(tmp_path / name, outcome="measure")
    assert "a pickle was run" not in capsys.readouterr().out


def test_a_file_without_what_is_looked_for_is_refused(tmp_path: Path) -> None:
    torch.save({"masks": MASKS}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="has no 'mask'; it has masks"):
        read_kronfluence(tmp_path / "other.pt")
    torch.save(MASKS, tmp_path / "array.pt")
    with pytest.raises(DataError, match="expected a dict with mask and diff_loss"):
        read_kronfluence(tmp_path / "array.pt")
    np.savez(tmp_path / "other.npz", mask=MASKS)
    with pytest.raises(DataError, match="has no 'masks'; it has mask"):
        read_npz(tmp_path / "other.npz", outcome="measure")
