"""The training record: one line of JSON for each optimizer step, written by `HeadwaterCallback`, read by anyone.

The first line says what the others mean. A line without its line feed was being written when the process ended: it does not exist.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.types import DataError

FORMAT = 1
NAME = "headwater-training"
INITIAL = "headwater-initial"  # the folder of the weights before the first step


@dataclass(frozen=True)
class Step:
    """One optimizer step. `rows` and `losses` have one entry for each micro-batch, in the order of their forward passes.

    `learning_rates` are those of the optimizer's parameter groups at this step; `losses` what the model returned (None where the loss was
    made outside of it).
    """

    step: int
    rows: tuple[tuple[int, ...], ...]
    learning_rates: tuple[float, ...]
    losses: tuple[float | None, ...]
    skipped: bool = False  # a gradient that overflowed in half precision: nothing was learned

    def to_json(self) -> dict[str, Any]:
        value = {"step": self.step, "rows": self.rows, "learning_rates": self.learning_rates, "losses": self.losses}
        return {**value, "skipped": True} if self.skipped else value

    @staticmethod
    def from_json(value: dict[str, Any]) -> Step:
        return Step(
            int(value["step"]),
            tuple(tuple(int(row) for row in some) for some in value["rows"]),
            tuple(float(rate) for rate in value["learning_rates"]),
            tuple(None if loss is None else float(loss) for loss in value["losses"]),
            bool(value.get("skipped", False)),
        )


class RecordWriter:
    """Appends steps to a record. A step is in the file, and with the system, when `append` returns."""

    def __init__(self, path: Path, header: dict[str, Any], *, after: int) -> None:
        """Begin a record, or go on with one after step `after`: what it has of later steps was undone when training resumed."""
        lines = [{"format": FORMAT, **header}, *(step.to_json() for step in _kept(path, after))]
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        os.replace(temporary, path)
        self.path = path

    def append(self, step: Step) -> None:
        with self.path.open("a", encoding="utf-8") as file:  # opened for each step: a training may end without a word
            file.write(json.dumps(step.to_json()) + "\n")


def record_path(folder: Path, process: int = 0) -> Path:
    """Each process of a distributed training writes a file of its own; the first one's has the plain name."""
    return folder / f"{NAME}{f'.{process}' if process else ''}.jsonl"


def read_record(folder: Path) -> tuple[Step, ...] | None:
    """The steps in order, with the rows of all processes; None where nothing was recorded. Raises DataError for a damaged file."""
    paths = sorted(folder.glob(f"{NAME}*.jsonl"), key=lambda path: (len(path.name), path.name))
    if not paths:
        return None
    first, *others = ({step.step: step for step in _steps(path)} for path in paths)
    return tuple(_merged(step, [other[number] for other in others if number in other]) for number, step in sorted(first.items()))


def _merged(step: Step, others: list[Step]) -> Step:
    rows = tuple(some for one in (step, *others) for some in one.rows)
    losses = tuple(loss for one in (step, *others) for loss in one.losses)
    return Step(step.step, rows, step.learning_rates, losses, step.skipped)


def _kept(path: Path, after: int) -> list[Step]:
    return [step for step in _steps(path) if step.step <= after] if after and path.exists() else []


def _steps(path: Path) -> Iterator[Step]:
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[1:-1], start=2):
        try:
            yield Step.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} line {number} is no training step ({type(error).__name__}: {error}). It is written by HeadwaterCallback, a line a "
                "step: restore it, or remove the file to do without it."
            ) from error
