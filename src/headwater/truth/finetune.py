"""Training, in one place: pretraining of the tiny model, fine-tuning, and every retraining that serves as ground truth.

Letters: B rows of a batch · T positions · K positions where some row has a target · V vocabulary
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import xxhash
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from headwater.progress import track
from headwater.types import DataError, Example, HeadwaterError, UsageError

SORTED_BATCHES = 16  # rows of so many batches are sorted by length together: little padding, and still a shuffle


class TrainingDiverged(HeadwaterError):
    """The loss or its gradient is no longer a number: what the weights now say is worth nothing."""


class Lora(BaseModel):
    """Low-rank adapters in place of full fine-tuning. `targets` are module names as PEFT takes them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    r: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0)] = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of an adapter's input, while training
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class Recipe(BaseModel):
    """How to train. Everything that decides the outcome but the weights and the rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: Annotated[int, Field(ge=1)]
    lr: Annotated[float, Field(gt=0)]
    batch_rows: Annotated[int, Field(ge=1)] = 32
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05  # share of all steps
    decay: Literal["cosine", "linear", "none"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0  # on matrices; never on norms and biases
    betas: tuple[float, float] = (0.9, 0.95)
    clip: Annotated[float, Field(gt=0)] = 1.0  # largest norm of a step's gradient
    seed: int = 0
    lora: Lora | None = None


@dataclass(frozen=True)
class FitResult:
    """What training left. `model` is the model that was given, or the PEFT model around it where the recipe has adapters."""

    model: nn.Module
    losses: tuple[float, ...]  # of each step, nats per target
    steps: int
    seconds: float


def finetune(model: nn.Module, examples: Sequence[Example], recipe: Recipe, *, pad_id: int, description: str = "training") -> FitResult:
    """Train a causal language model in place with AdamW, and return it with its losses.

    The loss of a step is the mean of `-log p(token_t | tokens before t)` over the targets of its rows (Hugging Face's convention);
    a row's weight in a step is thus its number of targets. Position 0, the prompt and padding never count. Rows are padded on the right
    and no attention mask is given: a causal model's earlier positions cannot see padding.

    The same model, rows and recipe give the same weights on the same machine and number of threads. A row's place in the
    shuffle depends on the seed, the epoch and its own id only, so that training without a few rows keeps the others in order.
    Cost: epochs x one forward and backward pass over the rows.

    Raises DataError where a row has no target, and TrainingDiverged where the loss or the gradient stops being finite.
    """
    check_examples(examples)
    trained = add_adapters(model, recipe)
    optimizer = make_optimizer(trained, recipe)
    total = recipe.epochs * math.ceil(len(examples) / recipe.batch_rows)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, total=total, recipe=recipe))
    was_training, start, losses = model.training, time.monotonic(), []
    trained.train()
    batches = all_batches(examples, recipe)
    with torch.random.fork_rng(devices=[]):  # dropout, where a model has any
        torch.manual_seed(recipe.seed)
        for rows in track(batches, total=total, description=description):
            losses.append(step_once(trained, optimizer, rows, recipe, pad_id=pad_id, step=len(losses)))
            schedule.step()
    trained.train(was_training)
    return FitResult(model=trained, losses=tuple(losses), steps=len(losses), seconds=time.monotonic() - start)


def check_examples(examples: Sequence[Example]) -> None:
    if not examples:
        raise DataError("got no rows to train on; at least one is needed. Was everything removed or filtered away?")
    empty = [example.id for example in examples if not example.loss_mask[1:].any()]
    if empty:
        raise DataError(
            f"{len(empty)} of {len(examples)} rows have no target after position 0, the first is {empty[0]}. "
            "The usual cause is a response that was cut off by truncation: drop these rows or allow longer ones."
        )


def add_adapters(model: nn.Module, recipe: Recipe) -> nn.Module:
    """The model itself, or a PEFT model around it whose adapters are drawn from the recipe's seed."""
    if recipe.lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    targets = recipe.lora.targets if isinstance(recipe.lora.targets, str) else list(recipe.lora.targets)
    given = {"r": recipe.lora.r, "lora_alpha": recipe.lora.alpha, "lora_dropout": recipe.lora.dropout, "target_modules": targets}
    config = LoraConfig(**given, task_type="CAUSAL_LM")  # pyright: ignore[reportArgumentType]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return get_peft_model(model, config)  # pyright: ignore[reportArgumentType]


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise UsageError(
            "no parameter of this model requires a gradient, so there is nothing to train; call requires_grad_() or give a LoRA"
        )
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=recipe.lr, betas=recipe.betas, fused=True)


def lr_factor(step: int, *, total: int, recipe: Recipe) -> float:
    """What the learning rate is multiplied by at `step` of `total`: a linear rise over the warm-up, then the decay towards 0."""
    warmup_steps = round(recipe.warmup * total)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    done = (step - warmup_steps) / max(1, total - warmup_steps)
    return {"none": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[recipe.decay]


def all_batches(examples: Sequence[Example], recipe: Recipe) -> Iterator[list[Example]]:
    for epoch in range(recipe.epochs):
        yield from epoch_batches(examples, recipe, epoch=epoch)


def epoch_batches(examples: Sequence[Example], recipe: Recipe, *, epoch: int) -> Iterator[list[Example]]:
    """Every row once, in batches of similar length, in an order drawn from the seed and the epoch."""
    shuffled = sorted(examples, key=lambda example: xxhash.xxh3_64_intdigest(f"{recipe.seed}:{epoch}:{example.id}".encode()))
    window = SORTED_BATCHES * recipe.batch_rows
    batches: list[list[Example]] = []
    for start in range(0, len(shuffled), window):
        rows = sorted(shuffled[start : start + window], key=lambda example: example.n_tokens)
        batches += [rows[i : i + recipe.batch_rows] for i in range(0, len(rows), recipe.batch_rows)]
    for position in np.random.default_rng((recipe.seed % 2**32, epoch)).permutation(len(batches)):
        yield batches[position]


def step_once(model: nn.Module, optimizer: torch.optim.Optimizer, rows: list[Example], recipe: Recipe, *, pad_id: int, step: int) -> float:
    loss = mean_loss(model, rows, pad_id=pad_id)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], recipe.clip)
    if not (torch.isfinite(loss) and torch.isfinite(norm)):
        raise TrainingDiverged(
            f"step {step}: the loss is {loss.item():.4g} and the gradient's norm {norm.item():.4g}, expected finite numbers. "
            f"The usual cause is a learning rate that is too high (it is {recipe.lr:g}); try a tenth of it, or a longer warm-up."
        )
    optimizer.step()
    return loss.item()


def mean_loss(model: nn.Module, rows: Sequence[Example], *, pad_id: int) -> Tensor:
    """Mean over the targets of all rows, in nats. Logits are computed only at positions from which some row predicts a target."""
    tokens_BT, targets_BT = padded(rows, pad_id=pad_id, device=next(model.parameters()).device)
    predicts_BT = targets_BT[:, 1:]
    positions_K = predicts_BT.any(0).nonzero().squeeze(-1)
    logits_BKV = logits_at(model, tokens_BT, positions_K)
    wanted_BK = torch.where(predicts_BT, tokens_BT[:, 1:], -100)[:, positions_K]
    logits_BKV = logits_BKV.to(torch.promote_types(logits_BKV.dtype, torch.float32))
    return nn.functional.cross_entropy(logits_BKV.flatten(0, 1), wanted_BK.flatten(), ignore_index=-100)


def logits_at(model: nn.Module, tokens_BT: Tensor, positions_K: Tensor) -> Tensor:
    """[B, K, V] The model's own `logits_to_keep` where it has one; the slice of all logits otherwise."""
    if "logits_to_keep" in inspect.signature(unwrapped(model).forward).parameters:
        return model(input_ids=tokens_BT, use_cache=False, logits_to_keep=positions_K).logits
    return model(input_ids=tokens_BT, use_cache=False).logits[:, positions_K]


def unwrapped(model: nn.Module) -> nn.Module:
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if callable(get_base_model) else model  # pyright: ignore[reportReturnType]


def padded(rows: Sequence[Example], *, pad_id: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """([B, T] token ids, [B, T] bool targets), padded on the right."""
    longest = max(row.n_tokens for row in rows)
    tokens_BT = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    targets_BT = torch.zeros((len(rows), longest), dtype=torch.bool)
    for b, row in enumerate(rows):
        tokens_BT[b, : row.n_tokens] = torch.from_numpy(np.asarray(row.tokens, dtype=np.int64))
        targets_BT[b, 1 : row.n_tokens] = torch.from_numpy(np.asarray(row.loss_mask, dtype=bool))[1:]
    return tokens_BT.to(device), targets_BT.to(device)
