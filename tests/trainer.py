"""A real Hugging Face Trainer on a tiny Llama, as a user would set it up, with HeadwaterCallback or without."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from headwater.model.tiny import tiny_model
from headwater.training.callback import HeadwaterCallback, RowIdCollator, with_row_ids
from tests.e2e.conftest import ROWS

ARGUMENTS = {
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 2,
    "learning_rate": 1e-2,
    "save_steps": 3,
    "logging_steps": 2,
    "seed": 3,
    "report_to": [],
    "remove_unused_columns": False,
    "use_cpu": True,
    "disable_tqdm": True,
}  # 24 rows, 6 a step: 8 steps, checkpoints 3, 6 and 8
STEPS = 8


def make_trainer(
    out: Path,
    *,
    callback: HeadwaterCallback | None = None,
    lora: bool = False,
    more: Sequence[Any] = (),
    evaluate: bool = False,
    **changes: Any,
) -> Any:
    """With a callback, rows are numbered and the collator carries the numbers; otherwise nothing of ours is in it."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    texts = [f"{row['prompt']} {row['response']}" for row in ROWS]
    model, tokenizer = tiny_model(0, texts=texts, vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=2)
    trained = _with_lora(model, tokenizer, out.with_name("base")) if lora else model
    data, collator = Dataset.from_list([encoded(tokenizer, row) for row in ROWS]), DataCollatorForSeq2Seq(tokenizer)
    if callback is not None:
        data, collator = with_row_ids(data), RowIdCollator(collator)
    rows_to_evaluate = data if evaluate else None
    callbacks = [*([] if callback is None else [callback]), *more]
    arguments = TrainingArguments(output_dir=str(out), **{**ARGUMENTS, **changes})
    return Trainer(trained, arguments, collator, data, rows_to_evaluate, tokenizer, callbacks=callbacks)


def train(trainer: Any, *, resume: bool = False) -> dict[str, torch.Tensor]:
    """Train to the end, save the final model into the output folder; the final weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model()
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def encoded(tokenizer: Any, row: dict[str, str]) -> dict[str, list[int]]:
    """What headwater makes of the row: the chat template, and the response as the target."""
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    asked = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=False)
    tokens = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
    n_prompt = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
    return {"input_ids": tokens, "labels": [-100] * n_prompt + tokens[n_prompt:]}


def _with_lora(model: Any, tokenizer: Any, base: Path) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=0.1)
        return get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
