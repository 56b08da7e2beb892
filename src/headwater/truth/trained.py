"""The recipe of a training that is over, from what a Hugging Face Trainer left: `training_args.bin`, and an adapter's own config."""

from __future__ import annotations

import importlib
import json
import pickle
from pathlib import Path
from typing import Any

from headwater.training.folder import TrainerFolder
from headwater.truth.finetune import Lora, Recipe
from headwater.types import DataError, UsageError

ARGUMENTS, ADAPTER = "training_args.bin", "adapter_config.json"

# training_args.bin is a pickle. These classes hold values; nothing else in such a file is ever made, let alone called.
ALLOWED = (
    "accelerate.state.PartialState",
    "accelerate.utils.dataclasses.DistributedType",
    "transformers.trainer_pt_utils.AcceleratorConfig",
    "transformers.trainer_utils.HubStrategy",
    "transformers.trainer_utils.IntervalStrategy",
    "transformers.trainer_utils.SaveStrategy",
    "transformers.trainer_utils.SchedulerType",
    "transformers.training_args.OptimizerNames",
    "transformers.training_args.TrainingArguments",
)
DECAYS = {"linear": "linear", "cosine": "cosine", "constant": "none", "constant_with_warmup": "none"}
# What `finetune` does not do: where one of these is set otherwise, the training cannot be repeated by a recipe.
MUST_BE = {"max_steps": -1, "label_smoothing_factor": 0.0, "neftune_noise_alpha": None, "adam_epsilon": 1e-8}
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")
LORA_MUST_BE = {
    "peft_type": "LORA",
    "use_dora": False,
    "use_rslora": False,
    "bias": "none",
    "modules_to_save": None,
    "layers_to_transform": None,
}


def recipe_of(folder: str | Path) -> Recipe:
    """The recipe of the training whose output is in `folder` (a Trainer's output_dir), LoRA included.

    Learning rate, its schedule, epochs, rows of a step, decay and clipping are the Trainer's own. Dropout inside the model, mixed precision
    and the order of rows are not repeated: two trainings by this recipe differ by these from the Trainer's, not from each other.
    Raises UsageError where the folder does not say how it was trained, or it was trained as a recipe cannot.
    """
    trained = TrainerFolder.open(folder)
    found = [path for path in (trained.path / ARGUMENTS, trained.final / ARGUMENTS) if path.is_file()]
    if not found:
        raise UsageError(f"{folder} does not say how it was trained: {ARGUMENTS} is not in it. Give a recipe (--recipe FILE).")
    arguments = read_arguments(found[0])
    return _recipe(arguments, lora_of(trained.final), where=found[0])


def lora_of(folder: str | Path) -> Lora | None:
    """The adapter's shape; None where the folder is no adapter's. Raises UsageError for one that is more than a plain LoRA."""
    path = Path(folder) / ADAPTER
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        others = {name: config[name] for name, value in LORA_MUST_BE.items() if config.get(name, value) != value}
        targets = config["target_modules"]
        shape = {"r": config["r"], "alpha": config["lora_alpha"], "dropout": config.get("lora_dropout") or 0.0}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read as an adapter's config ({type(error).__name__}: {error})") from error
    if others or not (isinstance(targets, list) or targets == "all-linear"):
        raise UsageError(f"{path}: an adapter with {others or targets} cannot be trained again by a recipe, which knows plain LoRA")
    return Lora(**shape, targets=tuple(sorted(targets)) if isinstance(targets, list) else "all-linear")


def read_arguments(path: Path) -> Any:
    """TrainingArguments from a file, without running anything that is in it. Raises DataError where it holds something else."""
    import torch

    try:
        with torch.serialization.safe_globals(_allowed()):
            arguments = torch.load(path, map_location="cpu", weights_only=True)
        assert hasattr(arguments, "learning_rate"), f"a {type(arguments).__name__}"
    except (OSError, RuntimeError, pickle.UnpicklingError, AttributeError, TypeError, EOFError, AssertionError) as error:
        raise DataError(
            f"{path} cannot be read as a Trainer's arguments ({' '.join(str(error).split())[:200]}). Likely cause: another version of "
            "transformers, or arguments of a class of its own. Give a recipe (--recipe FILE)."
        ) from error
    return arguments


def _allowed() -> list[Any]:
    classes = [(importlib.import_module(module), name) for module, _, name in (full.rpartition(".") for full in ALLOWED)]
    return [getattr(module, name) for module, name in classes if hasattr(module, name)]


def _recipe(arguments: Any, lora: Lora | None, *, where: Path) -> Recipe:
    decay, optimizer = DECAYS.get(_word(arguments.lr_scheduler_type)), _word(arguments.optim)
    odd = {name: getattr(arguments, name) for name, value in MUST_BE.items() if getattr(arguments, name, value) != value}
    if decay is None:
        odd["lr_scheduler_type"] = _word(arguments.lr_scheduler_type)
    if optimizer not in OPTIMIZERS:
        odd["optim"] = optimizer
    if float(arguments.num_train_epochs) != int(arguments.num_train_epochs):
        odd["num_train_epochs"] = arguments.num_train_epochs
    if odd or decay is None:
        raise UsageError(
            f"{where}: trained with {odd}, which no recipe does. Give one (--recipe FILE), or a function that makes a Trainer."
        )
    return Recipe(
        epochs=int(arguments.num_train_epochs),
        lr=arguments.learning_rate,
        batch_rows=arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * _processes(arguments),
        warmup=_warmup(arguments, where),
        decay=decay,  # pyright: ignore[reportArgumentType]
        weight_decay=arguments.weight_decay,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        clip=arguments.max_grad_norm or 1e30,  # 0: the Trainer does not clip
        lora=lora,
    )


def _warmup(arguments: Any, where: Path) -> float:
    """A share of all steps; a number of steps means another share for another number of rows."""
    share = float(getattr(arguments, "warmup_ratio", None) or arguments.warmup_steps or 0.0)
    if share >= 1:
        raise UsageError(
            f"{where}: {share:g} steps of warm-up, and with fewer rows there are fewer steps: give a recipe that says which share of them"
        )
    return share


def _processes(arguments: Any) -> int:
    return int(getattr(getattr(arguments, "distributed_state", None), "num_processes", 1) or 1)


def _word(value: Any) -> str:
    return str(getattr(value, "value", value))
