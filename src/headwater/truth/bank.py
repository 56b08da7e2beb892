"""A bank of counterfactual outcomes on disk: two small files that anyone can read, and carry to another machine.

    bank.npz     outcomes_DSQ, kept_DN, diverged_DS, seeds, train_ids, query_ids, designs: plain arrays, nothing pickled
    bank.json    format, kind, unit, recipe, noise ceiling, and the checksum of bank.npz: it is written last

D designs · S seeds · Q queries · N training rows
"""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import xxhash

from headwater.atomic import read_json, write_atomically, write_json
from headwater.evaluate import lds
from headwater.types import DataError, IntegrityError, Truth, TruthKind

FORMAT = 1
ARRAYS, ABOUT = "bank.npz", "bank.json"
FEWEST_DESIGNS = 3  # two are in perfect rank order or in perfect disorder, whatever they are


def write_bank(path: str | Path, truth: Truth) -> Path:
    """Write a truth into the folder `path`, over a bank that is there. Equal truths give equal bytes."""
    folder = Path(path)
    arrays = {
        "outcomes_DSQ": np.asarray(truth.outcomes_DSQ, dtype=np.float64),
        "kept_DN": truth.kept_DN.astype(bool),
        "diverged_DS": _diverged(truth),
        "seeds": np.array(truth.seeds, dtype=np.int64),
        **{name: np.array(getattr(truth, name), dtype=np.str_) for name in ("train_ids", "query_ids", "designs")},
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    content = buffer.getvalue()
    about = {
        "format": FORMAT,
        "kind": truth.kind,
        "unit": truth.unit,
        "recipe": dict(truth.recipe),
        "noise_ceiling": truth.noise_ceiling,
        "n_designs": len(truth.kept_DN),
        "n_rows": len(truth.train_ids),
        "n_diverged": int(arrays["diverged_DS"].sum()),
        "checksum": xxhash.xxh3_128_hexdigest(content),
    }
    write_atomically(folder / ARRAYS, content)
    write_json(folder / ABOUT, about)
    return folder


def read_bank(path: str | Path) -> Truth:
    """The truth in a bank's folder. Loads no model.

    Raises DataError where there is no bank, IntegrityError where its files are damaged or do not belong together.
    """
    folder = Path(path)
    if not (folder / ABOUT).is_file():
        raise DataError(f"{folder} is no bank: {ABOUT} is not in it. `headwater truth` writes it when the last training has ended.")
    about = read_json(folder / ABOUT, way_out="Call `headwater truth` again: it writes the bank anew from the outcomes beside it.")
    if about.get("format") != FORMAT or about.get("kind") not in get_args(TruthKind):
        raise IntegrityError(f"{folder / ABOUT} is of format {about.get('format')!r} and kind {about.get('kind')!r}, expected {FORMAT}")
    arrays = _arrays(folder / ARRAYS, about)
    try:
        return Truth(
            **{name: arrays[name] for name in ("outcomes_DSQ", "kept_DN", "diverged_DS")},
            **{name: tuple(arrays[name].tolist()) for name in ("train_ids", "query_ids", "seeds", "designs")},
            **{name: about[name] for name in ("kind", "unit", "recipe", "noise_ceiling")},
        )
    except (KeyError, AssertionError) as error:
        raise _damaged(folder / ARRAYS, error) from error


def _arrays(path: Path, about: dict[str, Any]) -> dict[str, np.ndarray]:
    try:
        content = path.read_bytes()
        if xxhash.xxh3_128_hexdigest(content) != about.get("checksum"):
            raise ValueError(f"its checksum is not the one in {ABOUT}")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> IntegrityError:
    return IntegrityError(
        f"{path} is damaged or not of this bank ({type(error).__name__}: {error}). Likely cause: a copy that was cut off, or one file of "
        "two replaced. Copy both again; where the outcomes are still beside it, `headwater truth` writes it anew."
    )


def _diverged(truth: Truth) -> np.ndarray:
    return np.zeros(truth.outcomes_DSQ.shape[:2], dtype=bool) if truth.diverged_DS is None else truth.diverged_DS.astype(bool)


def noise_ceiling(outcomes_DSQ: np.ndarray) -> float | None:
    """The Spearman correlation with these outcomes that knowing their expectation over seeds would reach: `evaluate.lds.noise_ceiling`.

    None with one seed, with fewer than three designs, or where the outcomes do not differ: then nothing is known of the noise.
    """
    figure = lds.noise_ceiling(outcomes_DSQ) if len(outcomes_DSQ) >= FEWEST_DESIGNS else None
    return None if figure is None or not math.isfinite(figure.value) else figure.value
