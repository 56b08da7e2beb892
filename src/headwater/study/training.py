"""How a study trains: a Hugging Face Trainer as the paper's authors had it, LoRA on top of a base model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from headwater.model.session import Session, load_session
from headwater.study.models import Model
from headwater.training.callback import HeadwaterCallback, RowIdCollator, with_row_ids
from headwater.truth.retrain import ByRecipe, ByTrainer, Training, trainer_rows
from headwater.truth.trained import recipe_of
from headwater.types import Example


def make_trainer(rows: Sequence[Example], seed: int, *, model: Model, base: str, out: str, epochs: int, checkpoints: int = 0) -> Any:
    """A Trainer over these rows, ready to train: AdamW, gradients clipped at norm 1, no warm-up, the model's own schedule.

    `checkpoints` of them are written, evenly spaced; none where 0.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    session = load_session(base, task=model.task, dtype=model.dtype, revision=model.revision)
    steps = math.ceil(len(rows) / model.batch_rows)
    every = steps * max(1, round(epochs / max(checkpoints, 1)))
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": every} if checkpoints else {"save_strategy": "no"}
    arguments = TrainingArguments(
        out, num_train_epochs=epochs, learning_rate=model.lr, per_device_train_batch_size=model.batch_rows, lr_scheduler_type=model.decay,
        seed=seed, report_to=[], remove_unused_columns=False, disable_tqdm=True, logging_steps=every, use_cpu=not torch.cuda.is_available(),
        **saving,
    )  # fmt: skip
    torch.manual_seed(seed)
    trainer = Trainer(
        adapted(session, model),
        arguments,
        RowIdCollator(collator(session)),
        with_row_ids(trainer_rows(rows)),
        processing_class=session.tokenizer,
        callbacks=[HeadwaterCallback()] if checkpoints else [],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def adapted(session: Session, model: Model) -> Any:
    from peft import LoraConfig, get_peft_model

    kind = {"causal-lm": "CAUSAL_LM", "sequence-classification": "SEQ_CLS"}[model.task]
    targets = list(model.lora.targets) if not isinstance(model.lora.targets, str) else model.lora.targets
    config: Any = LoraConfig(
        r=model.lora.r,
        lora_alpha=model.lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=model.lora.dropout,
        target_modules=targets,
        task_type=kind,
    )
    network: Any = session.network
    return get_peft_model(network.train(), config)


def collator(session: Session) -> Any:
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

    return DataCollatorForSeq2Seq(session.tokenizer) if session.task == "causal-lm" else DataCollatorWithPadding(session.tokenizer)


def again(model: Model, base: str, out: Path, epochs: int) -> Training:
    """The same training, to be repeated on other rows: by the recipe of the Trainer's folder, or by a Trainer where no recipe can."""
    if model.task == "causal-lm":
        return ByRecipe(partial(load_session, base, dtype=model.dtype, revision=model.revision), recipe_of(out))
    factory = partial(make_trainer, model=model, base=base, out=str(out.parent / "again"), epochs=epochs)
    return ByTrainer(factory, {"model": model.name, "lr": model.lr, "epochs": epochs, "batch_rows": model.batch_rows}, task=model.task)
