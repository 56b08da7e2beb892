"""One committed shard: its tensors mapped, its table read column by column, removed rows left out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from headwater.index.codec import TORCH_DTYPES, Stored
from headwater.index.files import REDO, Commit, table_path, tensors_path
from headwater.index.spec import IndexSpec
from headwater.index.table import read_column
from headwater.types import IntegrityError


class Shard:
    """`local` positions count the shard's live rows from 0."""

    def __init__(self, run: Path, spec: IndexSpec, commit: Commit, removed: frozenset[str]) -> None:
        self.run, self.spec, self.commit = run, spec, commit
        self.live_rows: np.ndarray | None = None  # None: all of them, the usual case, and then nothing is copied
        if removed:
            dead = np.isin(self._column("id"), list(removed))
            self.live_rows = np.flatnonzero(~dead) if dead.any() else None

    def __len__(self) -> int:
        return len(self.commit.rows) if self.live_rows is None else len(self.live_rows)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Views of the mapped file. Raises IntegrityError where it is not what the index's spec says."""
        path = tensors_path(self.run, self.commit.rows)
        tensors = map_tensors(path)
        if problem := tensors_problem(tensors, self.spec, len(self.commit.rows)):
            raise IntegrityError(f"{path}: {problem}. {REDO}")
        return tensors

    def column(self, name: str) -> np.ndarray:
        column = self._column(name)
        return column if self.live_rows is None else column[self.live_rows]

    def rows(self, feature: str, local: slice | np.ndarray) -> Stored:
        """Rows of a feature as stored: a view for a slice of a shard without removed rows, else a copy."""
        if self.live_rows is not None:
            local = self.live_rows[local]
        stored = Stored(self.tensors[feature], self.tensors.get("gradient_scale") if feature == "gradient" else None)
        return stored.rows(local if isinstance(local, slice) else torch.from_numpy(local))

    def _column(self, name: str) -> np.ndarray:
        path = table_path(self.run, self.commit.rows)
        column = read_column(path, name)
        if len(column) != len(self.commit.rows):
            raise IntegrityError(f"{path} has {len(column)} rows, expected {len(self.commit.rows)}. {REDO}")
        return column


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, mapped rather than read. Raises IntegrityError where it is no safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise IntegrityError(f"{path} cannot be read as safetensors ({error}). {REDO}") from error


def tensors_problem(tensors: Mapping[str, Tensor], spec: IndexSpec, n_rows: int) -> str | None:
    """What in these tensors is not as the spec says, in words; None where all is."""
    K, kept = len(spec.layout.blocks), torch.float32 if spec.dtype == "float32" else torch.bfloat16
    expected = {
        "gradient": (TORCH_DTYPES[spec.dtype], (n_rows, spec.layout.size)),
        "gradient_norm": (torch.float32, (n_rows, K)),
        "gradient_stored_norm": (torch.float32, (n_rows,)),
    }
    if spec.dtype == "int8":
        expected["gradient_scale"] = (torch.float32, (n_rows, K))
    if spec.hidden_size is not None:
        expected["representation"] = (kept, (n_rows, spec.hidden_size))
    if "representation_response" in tensors and spec.hidden_size is not None:
        expected["representation_response"] = expected["representation"]
    expected |= {name: (kept, (n_rows, int(about["width"]))) for name, about in spec.extra.items()}
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    differ = sorted(name for name in {**expected, **found} if expected.get(name) != found.get(name))
    return f"{differ[0]} is {found.get(differ[0])}, expected {expected.get(differ[0])} by the index's spec" if differ else None
