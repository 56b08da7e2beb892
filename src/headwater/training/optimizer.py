"""Adam's state at a checkpoint, by the names of the parameters: as `HeadwaterCallback` wrote it, or from the Trainer's own file."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from headwater.types import DataError, LayoutMismatch, UsageError

OURS, TRAINERS = "headwater-optimizer.safetensors", "optimizer.pt"
FIRST, SECOND = "exp_avg.", "exp_avg_sq."
ONLY_ADAM = "only Adam and AdamW (in full precision, without AMSGrad) have the moments that adam and second_moment members are made of."


@dataclass(frozen=True, eq=False)
class AdamState:
    """First and second moments of each trained parameter, as the optimizer keeps them (not bias-corrected), after `steps` steps of it."""

    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]
    steps: Mapping[str, int]
    betas: tuple[float, float]
    eps: float

    def to(self, device: torch.device | str, dtype: torch.dtype) -> AdamState:
        first, second = ({name: moment.to(device, dtype) for name, moment in side.items()} for side in (self.first, self.second))
        return replace(self, first=first, second=second)

    @cached_property
    def fingerprint(self) -> str:
        """A hash over names, steps and bytes of all moments. Cost: one read of them."""
        hasher = xxhash.xxh3_128()
        for name in sorted(self.second):
            hasher.update(f"{name} {self.steps[name]}".encode())
            for moment in (self.first[name], self.second[name]):
                hasher.update(moment.detach().float().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return hasher.hexdigest()


# -------------------------------------------------------------------------------------------------------- our file


def save_adam(path: Path, state: AdamState) -> None:
    """One safetensors file: `exp_avg.NAME` and `exp_avg_sq.NAME`; betas, eps and steps are its metadata. Whole or absent."""
    tensors = {f"{FIRST}{name}": moment for name, moment in state.first.items()}
    tensors |= {f"{SECOND}{name}": moment for name, moment in state.second.items()}
    about = {"format": 1, "betas": list(state.betas), "eps": state.eps, "steps": dict(state.steps)}
    temporary = path.with_name(f".{path.name}.tmp")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(plain, temporary, metadata={name: json.dumps(value) for name, value in about.items()})
    os.replace(temporary, path)


def load_adam(path: Path) -> AdamState:
    """What `save_adam` wrote. Raises DataError where it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            about = {name: json.loads(value) for name, value in file.metadata().items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        first, second = ({name.removeprefix(kind): t for name, t in tensors.items() if name.startswith(kind)} for kind in (FIRST, SECOND))
        return AdamState(first, second, {name: int(about["steps"][name]) for name in second}, tuple(about["betas"]), float(about["eps"]))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read as the optimizer's moments ({type(error).__name__}: {error}). HeadwaterCallback writes it beside each "
            f"checkpoint: restore it, or remove it to read {TRAINERS} instead."
        ) from error


def check_adam(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Raise UsageError where the optimizer is no Adam, or has parameters that the model does not: there are no moments to keep then."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    unnamed = sum(p not in names for p in parameters)
    if not all("betas" in group for group in optimizer.param_groups):
        raise UsageError(f"the optimizer is no Adam: {ONLY_ADAM} Pass moments=False to HeadwaterCallback to record the rest.")
    if unnamed:
        raise UsageError(
            f"{unnamed} of the optimizer's {len(parameters)} parameters are none of the model's. Likely cause: a training that spreads "
            "each parameter over devices. Pass moments=False to HeadwaterCallback."
        )


def live_adam(optimizer: torch.optim.Optimizer, model: nn.Module) -> AdamState:
    """The state of a running optimizer, by the model's names. Raises UsageError where it keeps no moments as Adam does."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    values = {names[p]: (p, optimizer.state.get(p, {})) for p in parameters}
    return _adam_state(values, optimizer.param_groups, where="the optimizer")


# ---------------------------------------------------------------------------------------------------- theirs


def read_adam(checkpoint: Path, model: nn.Module) -> AdamState:
    """The optimizer's state in a checkpoint folder: HeadwaterCallback's file where it is there, else the Trainer's.

    Raises UsageError where there is neither, DataError where it is damaged, LayoutMismatch where it is of other parameters than `model`
    trains.
    """
    if (checkpoint / OURS).exists():
        return load_adam(checkpoint / OURS)
    if not (checkpoint / TRAINERS).exists():
        raise UsageError(
            f"{checkpoint} has no optimizer state (neither {OURS} nor {TRAINERS}). Likely cause: trained with save_only_model=True. Train "
            "with HeadwaterCallback or without that option, or ask for other members than adam and second_moment."
        )
    saved = _load_plainly(checkpoint / TRAINERS)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    order = _order(saved, model, list(shapes), checkpoint / TRAINERS)
    values = {name: (shapes[name], saved["state"].get(i, {})) for i, name in order.items()}
    _check_shapes(values, checkpoint / TRAINERS)
    like = {name: (torch.empty(shape, device="meta"), state) for name, (shape, state) in values.items()}
    return _adam_state(like, saved["param_groups"], where=str(checkpoint / TRAINERS))


def _load_plainly(path: Path) -> dict[str, Any]:
    """The file's tensors and numbers; nothing in it can run."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        assert {"state", "param_groups"} <= saved.keys()
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, AssertionError, AttributeError, KeyError) as error:
        raise DataError(
            f"{path} cannot be read as an optimizer's state ({type(error).__name__}: {' '.join(str(error).split())[:200]}). It may be cut "
            "short, or hold more than tensors and numbers, which is not read. HeadwaterCallback writes a file that can be."
        ) from error
    return saved


def _order(saved: Mapping[str, Any], model: nn.Module, names: Sequence[str], path: Path) -> dict[int, str]:
    """{number in the file: parameter}. The file numbers them group by group; the Trainer's groups are with and without weight decay."""
    groups = saved["param_groups"]
    if all("param_names" in group for group in groups):
        return {i: name for group in groups for i, name in zip(group["params"], group["param_names"], strict=True)}
    sizes = [len(group["params"]) for group in groups]
    for grouped in ([list(names)], _trainer_groups(model, names)):
        if [len(group) for group in grouped if group] == [size for size in sizes if size]:
            numbers = [i for group in groups for i in group["params"]]
            return dict(zip(numbers, [name for group in grouped for name in group], strict=True))
    raise LayoutMismatch(
        f"{path} has groups of {sizes} parameters; this model trains {len(names)}, in the Trainer's groups of "
        f"{[len(group) for group in _trainer_groups(model, names)]}. Likely cause: an optimizer with groups of its own, or parameters that "
        "were frozen in training. Train with HeadwaterCallback, which writes the moments by name."
    )


def _trainer_groups(model: nn.Module, names: Iterable[str]) -> list[list[str]]:
    """With weight decay and without, as `Trainer.create_optimizer` sorts them."""
    from transformers import Trainer

    decayed = set(Trainer.get_decay_parameter_names(cast(Any, None), model))
    return [[name for name in names if name in decayed], [name for name in names if name not in decayed]]


def _check_shapes(values: Mapping[str, tuple[tuple[int, ...], Mapping[str, Any]]], path: Path) -> None:
    for name, (shape, state) in values.items():
        found = tuple(state["exp_avg_sq"].shape) if isinstance(state.get("exp_avg_sq"), Tensor) else shape
        if found != shape:
            raise LayoutMismatch(
                f"{path}: the moments that stand where {name} should are {found}, the parameter is {shape}. Likely cause: the optimizer "
                "was made in another order than the Trainer's. Train with HeadwaterCallback, which writes the moments by name."
            )


def _adam_state(values: Mapping[str, tuple[Tensor, Mapping[str, Any]]], groups: Sequence[Mapping[str, Any]], *, where: str) -> AdamState:
    """A parameter that never had a gradient has no state: its moments are zero, after one step as after any."""
    known = [state for _, state in values.values() if state]
    plain = all({"exp_avg", "exp_avg_sq", "step"} <= state.keys() and "max_exp_avg_sq" not in state for state in known)
    if not known or not plain:
        found = ", ".join(sorted(map(str, known[0]))) if known else "nothing"
        raise UsageError(f"{where} keeps {found} of a parameter, expected step, exp_avg and exp_avg_sq: {ONLY_ADAM} Ask for other members.")
    options = {(tuple(map(float, group["betas"])), float(group["eps"])) for group in groups if len(group["params"])}
    if len(options) != 1:
        raise UsageError(f"{where} has parameter groups with different betas or eps ({sorted(options)}), expected one pair for all")
    ((betas, eps),) = options
    first, second = (
        {name: state.get(key, torch.zeros(like.shape)) for name, (like, state) in values.items()} for key in ("exp_avg", "exp_avg_sq")
    )
    steps = {name: max(int(state.get("step", 0)), 1) for name, (_, state) in values.items()}
    return AdamState(first, second, steps, cast(tuple[float, float], betas), eps)
