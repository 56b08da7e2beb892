"""A finished output folder of a Hugging Face Trainer: the final model, its checkpoints, and the learning rate at each of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.training.optimizer import OURS, TRAINERS
from headwater.training.record import INITIAL, read_record
from headwater.types import DataError, UsageError

CONFIGS = ("adapter_config.json", "config.json")


@dataclass(frozen=True)
class Rate:
    """A learning rate and what is known of it. `exact`: the one that the optimizer used in that very step."""

    value: float
    known_from: str
    exact: bool = True


@dataclass(frozen=True)
class Checkpoint:
    """The weights after `step` steps; `rate` is that of the last of them, None where nothing says it."""

    path: Path
    step: int
    rate: Rate | None

    @property
    def has_optimizer(self) -> bool:
        return any((self.path / name).exists() for name in (OURS, TRAINERS))


@dataclass(frozen=True)
class TrainerFolder:
    """`checkpoints` in the order of training; `final` is the folder itself where the model was saved there, else the last checkpoint."""

    path: Path
    final: Path
    checkpoints: tuple[Checkpoint, ...]
    initial: Path | None

    @staticmethod
    def open(path: str | Path) -> TrainerFolder:
        """Raises UsageError where there is no model in it, DataError where its records are damaged."""
        path = Path(path)
        folders = _checkpoint_folders(path)
        final = path if _is_model(path) else next(iter(folders[::-1]), None)
        if final is None:
            raise UsageError(
                f"{path} is no output folder of a finished Trainer: neither a model nor a checkpoint-N folder is in it. Give the "
                "output_dir of the training, with the model or its checkpoints saved."
            )
        state, recorded = _trainer_state(path, folders), {step.step: step.learning_rates for step in read_record(path) or ()}
        checkpoints = [Checkpoint(folder, _step(folder), _rate(folder, state, recorded)) for folder in folders]
        return TrainerFolder(path, final, tuple(checkpoints), path / INITIAL if _is_model(path / INITIAL) else None)


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in CONFIGS)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


def _checkpoint_folders(path: Path) -> list[Path]:
    found = [folder for folder in path.glob("checkpoint-*") if folder.name.removeprefix("checkpoint-").isdigit() and _is_model(folder)]
    return sorted(found, key=_step)


def _trainer_state(path: Path, folders: Sequence[Path]) -> dict[str, Any]:
    """trainer_state.json of the folder, or of its last checkpoint."""
    found = [file for file in (folder / "trainer_state.json" for folder in (path, *reversed(folders))) if file.exists()]
    if not found:
        return {}
    try:
        state = json.loads(found[0].read_text(encoding="utf-8"))
        assert isinstance(state.get("log_history", []), list)
    except (OSError, ValueError, AssertionError, AttributeError) as error:
        raise DataError(f"{found[0]} is not the state of a Trainer ({error}): restore it, or remove it to do without it") from error
    return state


# --------------------------------------------------------------------------------------------------- learning rate


def _rate(folder: Path, state: Mapping[str, Any], recorded: Mapping[int, Sequence[float]]) -> Rate | None:
    """The rate of the step that ended in this checkpoint, from the first source that knows it. Nothing is interpolated.

    Transformers 4 logs at a step the rate of the one after it. The scheduler's file says the rate of a step after, which the last has not.
    """
    step = _step(folder)
    if rates := recorded.get(step):
        several = len(set(rates)) > 1
        return Rate(rates[0], f"recorded by HeadwaterCallback{' (the first of several parameter groups)' if several else ''}")
    logged = {int(line["step"]): float(line["learning_rate"]) for line in state.get("log_history", []) if "learning_rate" in line}
    following = _scheduled(folder)
    if step in logged and following == logged[step] and len(set(logged.values())) > 1:
        return Rate(logged[step], f"logged by the Trainer at this step, and yet that of the next ({step + 1}) by scheduler.pt", exact=False)
    if step in logged:
        return Rate(logged[step], "logged by the Trainer at this step")
    if following is not None and step < int(state.get("global_step", step)):
        return Rate(following, f"scheduler.pt, which holds the rate of the step after it ({step + 1})", exact=False)
    if logged:
        nearest = min(logged, key=lambda other: (abs(other - step), other))
        return Rate(logged[nearest], f"logged by the Trainer at step {nearest}, the nearest one", exact=False)
    return None


def _scheduled(folder: Path) -> float | None:
    """The scheduler has stepped already when a checkpoint is saved: this is the rate of the step that follows."""
    import torch

    try:
        return float(torch.load(folder / "scheduler.pt", map_location="cpu", weights_only=True)["_last_lr"][0])
    except Exception:  # a scheduler of another kind, an older file, none: a further source, and nothing is lost without it
        return None
