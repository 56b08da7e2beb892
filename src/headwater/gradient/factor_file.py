"""Factors of a pass over the model in a file, for the passes after it: a second one over the same rows then costs no model.

Letters: B rows of a batch · T positions · O, I the two sides of a block.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from headwater.types import FactorBatch, Factors, Labels, Layout

FILE_BYTES = 8 << 30  # of factors: more would not stay in the system's own cache of the file, and come back slowly
SHARE_OF_FREE = 0.25  # of what the disk has free


def kept_dtype(dtype: torch.dtype) -> torch.dtype:
    """bfloat16 in place of float32: each number is rounded, at random, and all that is made of them are sums of very many."""
    return torch.bfloat16 if dtype.itemsize == 4 else dtype


def file_bytes(layout: Layout, n_positions: int, n_labels: int, dtype: torch.dtype) -> int:
    """About, and rather more: blocks that share an input are counted as if each had its own."""
    inputs, outputs = (sum(block.shape[side] if side < len(block.shape) else 1 for block in layout.blocks) for side in (1, 0))
    return n_positions * (inputs + n_labels * outputs) * kept_dtype(dtype).itemsize


def has_room(folder: Path, n_bytes: int) -> bool:
    """Whether so many bytes may be written there, on a system that has what it takes. Raises OSError where there is no such folder."""
    return hasattr(os, "preadv") and n_bytes <= min(FILE_BYTES, SHARE_OF_FREE * shutil.disk_usage(folder).free)


@dataclass(frozen=True)
class Place:
    """Where a tensor lies."""

    offset: int
    shape: torch.Size


class TensorFile:
    """Tensors in a file without a name: nothing of it stays, whatever ends the process. Several threads may write and read."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.dtype, self._end, self._lock = dtype, 0, threading.Lock()
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - it lives as long as this object
        self._places = WeakTensorKeyDictionary()  # of those that are alive
        weakref.finalize(self, self._file.close)

    def put(self, x: Tensor) -> Place:
        """A tensor that was put there already, an input of several blocks, is not written again. Raises OSError where the disk is full."""
        if x not in self._places:
            self._places[x] = self._append(x)
        return self._places[x]

    def read(self, place: Place) -> Tensor:
        x = torch.empty(place.shape, dtype=kept_dtype(self.dtype))
        done, into = 0, x.flatten().view(torch.uint8).numpy().data
        while done < len(into):
            n = os.preadv(self._file.fileno(), [into[done:]], place.offset + done)
            assert n, "the file is shorter than what was written to it"
            done += n
        return x.to(self.dtype)

    def clear(self) -> None:
        os.ftruncate(self._file.fileno(), 0)

    def _append(self, x: Tensor) -> Place:
        numbers = x.detach().to("cpu", kept_dtype(self.dtype)).flatten().view(torch.uint8).numpy().data
        with self._lock:
            place, self._end = Place(self._end, x.shape), self._end + len(numbers)
        done = 0
        while done < len(numbers):
            done += os.pwrite(self._file.fileno(), numbers[done:], place.offset + done)
        return place


@dataclass(frozen=True)
class StoredBatch:
    """A batch whose factors are in a file, read when they are asked for."""

    file: TensorFile
    positions: Sequence[int]
    used_BT: Tensor
    places: Mapping[str, tuple[Place, Place]]

    def block(self, name: str) -> Factors:
        """The factors of one block that the batch used."""
        a, g = self.places[name]
        return Factors(self.file.read(a), self.file.read(g))

    def load(self) -> FactorBatch:
        """All of them; an input that blocks share is read once and is one tensor."""
        inputs = {a: self.file.read(a) for a in {a for a, _ in self.places.values()}}
        factors = {name: Factors(inputs[a], self.file.read(g)) for name, (a, g) in self.places.items()}
        return FactorBatch(self.positions, factors, self.used_BT)


class FactorFile:
    """Batches of factors by the labels they were differentiated for. What several labels have in common, the inputs, is there once.

    Where the disk turns out to be full it gives up, and has no batches.
    """

    def __init__(self, folder: Path, labels: Sequence[Labels], dtype: torch.dtype) -> None:
        self.labels, self.tensors = tuple(labels), TensorFile(folder, dtype)
        self.complete = False  # whoever fills it says so; before, it gives nothing
        self._full = False
        self._batches: dict[Labels, dict[int, StoredBatch]] = {kind: {} for kind in self.labels}

    def put(self, labels: Labels, batch: FactorBatch) -> None:
        """A batch, known by its first row. Its factors are still alive when the same batch comes with other labels."""
        if self._full:
            return
        try:
            places = {name: (self.tensors.put(one.a_BTI), self.tensors.put(one.g_BTO)) for name, one in batch.factors.items()}
        except OSError:
            self._full = True
            self.tensors.clear()
            return
        self._batches[labels][batch.positions[0]] = StoredBatch(self.tensors, batch.positions, batch.used_BT, places)

    def batches(self, labels: Labels) -> list[StoredBatch]:
        """In the order of their first rows; none where the file is not complete."""
        return [batch for _, batch in sorted(self._batches.get(labels, {}).items())] if self.complete and not self._full else []


def together(batches: Iterable[StoredBatch], n_rows: int) -> list[list[StoredBatch]]:
    """Groups of batches that have at least so many rows, but for the last."""
    groups: list[list[StoredBatch]] = []
    n = n_rows
    for batch in batches:
        if n >= n_rows:
            groups.append([])
            n = 0
        groups[-1].append(batch)
        n += len(batch.positions)
    return groups
