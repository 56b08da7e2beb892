"""Records a Hugging Face training as it runs, and changes nothing in it.

    data = with_row_ids(data)                      # before anything is shuffled, filtered or split
    Trainer(model, args, train_dataset=data, data_collator=RowIdCollator(collator), callbacks=[HeadwaterCallback()])

with `remove_unused_columns=False` in the arguments. The final weights are, bit for bit, those of the same training without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from headwater.training.optimizer import OURS, check_adam, live_adam, save_adam
from headwater.training.record import INITIAL, RecordWriter, Step, record_path
from headwater.types import DataError, UsageError

COLUMN = "headwater_row"


class HeadwaterCallback(TrainerCallback):
    """Writes `headwater-training.jsonl` into the output folder: the rows, learning rates and losses of each optimizer step.

    The rows are taken from the model's own inputs, by a hook that removes the integer column `column` as a forward pass begins: what the
    data loader reads ahead, or skips when training resumes, is not what was trained on. `column=None` records no rows. Beside each
    checkpoint goes `headwater-optimizer.safetensors`, Adam's moments by parameter name, unless `moments` is false; before the first step
    the weights go to `headwater-initial`, where `initial_weights` is set. Cost: one line a step; the moments are twice the trained weights.

    Raises UsageError as training begins where the Trainer would take the column out of the data or the optimizer is no Adam, DataError
    where the column does not arrive.
    """

    def __init__(self, *, column: str | None = COLUMN, moments: bool = True, initial_weights: bool = False) -> None:
        self.column, self.moments, self.initial_weights = column, moments, initial_weights
        self._hooks: list[Any] = []
        self._writer: RecordWriter | None = None
        self._rows: list[Tensor] = []
        self._losses: list[Tensor | None] = []
        self._rates: tuple[float, ...] = ()

    def on_train_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._check(args)
        if self.moments:
            check_adam(now["optimizer"], now["model"])
        self._stop()
        output, model = Path(args.output_dir), now["model"]
        if self.initial_weights and state.global_step == 0 and args.should_save:
            _save_initial(output / INITIAL, model, now.get("processing_class"))
        header = {"column": self.column, "accumulation": args.gradient_accumulation_steps, "processes": args.world_size, **_versions()}
        self._writer = RecordWriter(record_path(output, args.process_index), header, after=state.global_step)
        self._hooks = [
            model.register_forward_pre_hook(self._take_rows, with_kwargs=True),
            model.register_forward_hook(self._see_loss),
        ]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._rates = tuple(float(group["lr"]) for group in now["optimizer"].param_groups)

    def on_step_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        rows, losses = self._rows, self._losses
        self._rows, self._losses = [], []
        assert self._writer is not None, "a step ended in a training that never began"
        self._writer.append(
            Step(
                step=state.global_step,
                rows=tuple(tuple(some.tolist()) for some in rows),
                learning_rates=self._rates,
                losses=tuple(None if loss is None else loss.item() for loss in losses),
                skipped=bool(getattr(now["optimizer"], "step_was_skipped", False)),
            )
        )

    def on_save(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        if self.moments and args.should_save:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            save_adam(folder / OURS, live_adam(now["optimizer"], now["model"]))

    def on_train_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._stop()

    def _check(self, args: Any) -> None:
        if self.column is not None and args.remove_unused_columns:
            raise UsageError(
                f"the Trainer would take the column {self.column!r} out of the data before the model sees it. Set "
                "remove_unused_columns=False in TrainingArguments (and leave in the data set only what the collator takes), or pass "
                "column=None to record no rows."
            )

    def _stop(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._writer, self._rows, self._losses = [], None, [], []

    def _take_rows(self, module: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self.column is None:
            return None
        rest = {name: value for name, value in inputs.items() if name != self.column}
        if module.training:
            if self.column not in inputs:
                raise DataError(
                    f"a training batch without the column {self.column!r} (it has {', '.join(inputs)}). Add it with with_row_ids(dataset); "
                    "where the collator drops it, wrap that in RowIdCollator(collator)."
                )
            self._rows.append(inputs[self.column].detach().reshape(-1))
        return args, rest

    def _see_loss(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if module.training:
            loss = output.get("loss") if isinstance(output, Mapping) else None
            self._losses.append(None if loss is None else loss.detach().clone())  # the Trainer scales it in place


def with_row_ids(data: Any, *, column: str = COLUMN) -> Any:
    """The data set with each row's number, from 0, in a column: a `datasets.Dataset`, or anything with a length whose rows are mappings.

    The numbers have to be those of the rows in the data that is indexed later: number it before it is shuffled, filtered or split.
    """
    if hasattr(data, "add_column"):
        if column in (data.column_names or ()):
            raise UsageError(
                f"the data has a column {column!r} already: number the rows once, or name another column here and in the callback"
            )
        return data.add_column(column, list(range(len(data))))
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise UsageError(f"got a {type(data).__name__}, expected a data set with a length: rows that are only streamed have no number")
    return _Numbered(data, column)


@dataclass(frozen=True)
class _Numbered:
    data: Any
    column: str

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {**self.data[position], self.column: position}


@dataclass(frozen=True)
class RowIdCollator:
    """A collator that carries the row numbers around one that knows nothing of them."""

    collator: Callable[[list[dict[str, Any]]], Any]
    column: str = COLUMN

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> Any:
        rest = [{name: value for name, value in row.items() if name != self.column} for row in features]
        batch = self.collator(rest)
        if all(self.column in row for row in features):  # rows to evaluate on need no number
            batch[self.column] = torch.tensor([int(row[self.column]) for row in features])
        return batch


def _save_initial(folder: Path, model: Any, tokenizer: Any) -> None:
    model.save_pretrained(folder)
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("headwater", "transformers", "torch")}
