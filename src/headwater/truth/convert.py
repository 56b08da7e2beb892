"""Banks that others made: masks and outcomes in npz or in PyTorch's files, as a Truth.

D designs · S seeds · Q queries · N training rows
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from headwater.truth.bank import noise_ceiling
from headwater.types import DataError, Truth, TruthKind, UsageError

Outcome = Literal["measure", "loss"]
Array = np.ndarray


def truth_from_arrays(
    masks_DN: Array,
    outcomes: Array,
    *,
    outcome: Outcome,
    train_ids: Sequence[str] | None = None,
    query_ids: Sequence[str] | None = None,
    kind: TruthKind = "cold",
    source: str = "arrays",
) -> Truth:
    """A Truth from masks (1: the row was trained on) and outcomes [D, Q], or [D, S, Q] with several seeds.

    `outcome` says what the numbers are: "measure" grows where the output becomes more likely (a log-probability, a margin); "loss", or a
    change of one, is negated. Ids are the numbers of rows and queries where not given. Raises DataError where the shapes do not fit.
    """
    if outcome not in ("measure", "loss"):
        raise UsageError(f"outcome is {outcome!r}, expected measure or loss: it decides the sign of every score against this bank")
    kept_DN, outcomes_DSQ = _masks(masks_DN, source), _outcomes(outcomes, source)
    if len(kept_DN) != len(outcomes_DSQ):
        turned = " The masks are the other way round: turn them (masks.T)." if kept_DN.shape[1] == len(outcomes_DSQ) else ""
        raise DataError(f"{source}: masks of shape {kept_DN.shape} for {len(outcomes_DSQ)} designs of outcomes, expected as many.{turned}")
    values_DSQ = outcomes_DSQ if outcome == "measure" else -outcomes_DSQ
    finite_DSQ = np.isfinite(values_DSQ)
    return Truth(
        outcomes_DSQ=np.where(finite_DSQ, values_DSQ, np.nan),
        kept_DN=kept_DN,
        train_ids=_ids(train_ids, kept_DN.shape[1], "rows", source),
        query_ids=_ids(query_ids, values_DSQ.shape[2], "queries", source),
        seeds=tuple(range(values_DSQ.shape[1])),
        kind=kind,
        unit=None,
        designs=tuple(f"given/{d}" for d in range(len(kept_DN))),
        diverged_DS=np.logical_not(finite_DSQ.any(2)),
        recipe={"source": source},
        noise_ceiling=noise_ceiling(values_DSQ),
    )


def read_npz(path: str | Path, *, outcome: Outcome, kind: TruthKind = "cold") -> Truth:
    """A plain npz with `masks` and `outcomes`, and optionally `train_ids` and `query_ids`. Nothing in it is unpickled."""
    try:
        with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise DataError(f"{path} cannot be read as npz without unpickling ({type(error).__name__}: {error})") from error
    masks, outcomes = (_named(arrays, name, str(path)) for name in ("masks", "outcomes"))
    ids = {name: arrays[name].astype(str).tolist() for name in ("train_ids", "query_ids") if name in arrays}
    return truth_from_arrays(masks, outcomes, outcome=outcome, kind=kind, source=Path(path).name, **ids)


def read_kronfluence(path: str | Path, outcomes: str | Path | None = None, *, outcome: Outcome | None = None) -> Truth:
    """The files that kronfluence's examples publish: one with `mask` and `diff_loss`, or a pair, masks.pt and margins.pt.

    There a mask of 1 is a row that was trained on. `diff_loss` is a change of the loss, and is negated; for a pair `outcome` says what the
    second file holds (margins are a measure). Only arrays, tensors and dicts are read: a file that holds anything else is refused.
    """
    if outcomes is not None:
        if outcome is None:
            raise UsageError(f"say what {outcomes} holds, outcome='measure' (margins) or 'loss': it decides the sign")
        masks, values = _array(load_plainly(path), path), _array(load_plainly(outcomes), outcomes)
        return truth_from_arrays(masks, values, outcome=outcome, source=f"{Path(path).name}, {Path(outcomes).name}")
    found = load_plainly(path)
    if not isinstance(found, Mapping):
        raise DataError(f"{path} holds a {type(found).__name__}, expected a dict with mask and diff_loss; a pair of files is given as two")
    masks, values = (_array(_named(found, name, str(path)), path) for name in ("mask", "diff_loss"))
    return truth_from_arrays(masks, values, outcome="loss", source=Path(path).name)


def load_plainly(path: str | Path) -> Any:
    """What `torch.save` wrote, if it is tensors, arrays and containers: nothing else is made, and no code of the file runs."""
    import torch

    try:
        with torch.serialization.safe_globals(_numpy_parts()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle that torch did not write: it is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(
            f"{path} cannot be read as tensors and arrays alone ({' '.join(str(error).split())[:200]}). Likely cause: a damaged file, or "
            "one that holds objects; save its arrays as npz (masks, outcomes) where it was made."
        ) from error


def _numpy_parts() -> list[Any]:
    """What numpy's arrays are pickled as, by numpy 1 and numpy 2."""
    import _codecs

    rebuild = np._core.multiarray._reconstruct  # pyright: ignore[reportAttributeAccessIssue]
    kinds = [type(np.dtype(name)) for name in ("bool", "int8", "uint8", "int32", "int64", "float16", "float32", "float64")]
    return [rebuild, (rebuild, "numpy.core.multiarray._reconstruct"), np.ndarray, np.dtype, _codecs.encode, *kinds]


def _named(values: Mapping[str, Any], name: str, source: str) -> Any:
    if name not in values:
        raise DataError(f"{source} has no {name!r}; it has {', '.join(map(str, values)) or 'nothing'}")
    return values[name]


def _array(value: Any, path: str | Path) -> Array:
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} holds a {type(value).__name__}, expected an array ({error})") from error


def _masks(masks_DN: Array, source: str) -> Array:
    masks_DN = np.asarray(masks_DN)
    if masks_DN.ndim != 2 or not masks_DN.size:
        raise DataError(f"{source}: masks are of shape {masks_DN.shape}, expected designs x training rows")
    if masks_DN.dtype == object or not np.isin(masks_DN, (0, 1)).all():
        raise DataError(f"{source}: masks hold other values than 0 and 1. If they are lists of row numbers, make masks of them first")
    return masks_DN.astype(bool)


def _outcomes(outcomes: Array, source: str) -> Array:
    values = np.asarray(outcomes)
    if values.ndim not in (2, 3) or not values.size or not np.issubdtype(values.dtype, np.number):
        raise DataError(
            f"{source}: outcomes are {values.dtype} of shape {values.shape}, expected numbers, designs x queries or designs x seeds x "
            "queries"
        )
    return (values[:, None] if values.ndim == 2 else values).astype(np.float64)


def _ids(ids: Sequence[str] | None, n: int, what: str, source: str) -> tuple[str, ...]:
    if ids is None:
        return tuple(map(str, range(n)))
    if len(ids) != n or len(set(ids)) != n:
        raise DataError(f"{source}: {len(set(ids))} distinct ids for {n} {what}, expected one for each")
    return tuple(map(str, ids))
