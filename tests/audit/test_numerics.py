"""Numerics: healthy models in every dtype are healthy, and each planted fault turns its own finding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headwater.audit.numerics import Numerics
from headwater.audit.sampled import Passed, differences
from headwater.audit.subject import Subject
from headwater.types import Example, Finding
from tests.audit_world import make_world

NAMES = ("dtype", "loss", "stored rows", "repeatability", "batch mates", "padding", "padding side", "attention kernel")


def found(subject: Subject, **options: Any) -> dict[str, Finding]:
    return {finding.name.removeprefix("numerics: "): finding for finding in Numerics(**options)(subject).findings}


def failed(subject: Subject) -> set[str]:
    return {name for name, finding in found(subject).items() if finding.status == "fail"}


def with_model(subject: Subject, edit: Callable[[torch.nn.Module], Any]) -> Subject:
    model = copy.deepcopy(subject.session.model)
    model = edit(model) or model
    return replace(subject, session=replace(subject.session, model=model))


def test_a_healthy_world(subject: Subject) -> None:
    one = found(subject)
    assert set(one) == set(NAMES)
    assert {name: finding.status for name, finding in one.items()} == dict.fromkeys(NAMES, "ok")
    assert one["batch mates"].value is not None
    assert 0 <= one["batch mates"].value < 1e-4  # some processors round alike whatever the batch: exactly 0
    assert one["stored rows"].value == pytest.approx(1, abs=1e-4)
    assert one["repeatability"].n == 8


def test_without_an_index_there_are_no_stored_rows(subject: Subject) -> None:
    one = found(replace(subject, index=None, trace=None))
    assert set(one) == set(NAMES) - {"stored rows"}
    assert {finding.status for finding in one.values()} == {"ok"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_healthy_where_it_is(subject: Subject, dtype: torch.dtype) -> None:
    one = found(with_model(replace(subject, index=None), lambda model: model.to(dtype)))
    assert {finding.status for finding in one.values()} == {"ok"}, one
    assert 0.99 < (one["dtype"].value or 0) < 1 - 1e-9


# --------------------------------------------------------------------------------------------------------------- faults


def test_weights_that_are_not_numbers(subject: Subject) -> None:
    def destroy(model: torch.nn.Module) -> None:
        with torch.no_grad():
            next(model.parameters()).fill_(torch.nan)

    one = found(with_model(subject, destroy))
    assert {name for name, finding in one.items() if finding.status == "fail"} == {"dtype"}
    assert one["repeatability"].status == one["stored rows"].status == "unknown"


def test_overflow_in_half_precision(subject: Subject) -> None:
    """Activations of 1e6 are fine in float32 and infinite in float16."""

    def blow_up(model: Any) -> Any:
        with torch.no_grad():
            for layer in model.model.layers:
                layer.mlp.down_proj.weight.mul_(1e6)
                layer.mlp.up_proj.weight.mul_(1e3)

    wide = with_model(replace(subject, index=None), blow_up)
    assert found(wide)["dtype"].status == "ok"
    assert found(with_model(wide, lambda model: model.half()))["dtype"].status == "fail"


def test_bfloat16_garbage(subject: Subject) -> None:
    """Small numbers that ride on a large one: float32 keeps them, bfloat16 has no bits left for them."""

    def offset(model: Any) -> Any:
        model.model.norm.register_forward_hook(lambda module, args, output: (output + 300) - 300)

    riding = with_model(replace(subject, index=None), offset)
    assert failed(riding) == set()
    assert failed(with_model(riding, lambda model: model.bfloat16())) == {"dtype"}


def test_weights_that_know_less_than_a_guess(subject: Subject) -> None:
    def noise(model: torch.nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    one = found(with_model(replace(subject, index=None), noise))
    assert one["loss"].status == "fail"
    assert one["dtype"].status == "ok"


def test_stored_rows_that_were_destroyed(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = subject.stored.take

    def garbage(feature: str, positions: Any) -> torch.Tensor:
        return torch.randn(taken(feature, positions).shape, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(subject.stored, "take", garbage)
    assert failed(subject) == {"stored rows"}


def test_a_single_stored_row_that_is_not_finite(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = subject.stored.take
    monkeypatch.setattr(subject.stored, "take", lambda feature, at: taken(feature, at).index_fill_(0, torch.tensor([2]), torch.nan))
    assert failed(subject) == {"stored rows"}


def test_stored_losses_of_other_rows_are_left_to_identity(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    column = subject.stored.column
    monkeypatch.setattr(subject.stored, "column", lambda name: column(name) + 100 if name == "loss" else column(name))
    assert found(subject)["stored rows"].status == "unknown"


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_rows_stored_in_few_bits(tmp_path: Path, dtype: str) -> None:
    world = make_world(tmp_path, store__dtype=dtype)
    stored = found(world.subject())["stored rows"]
    assert stored.status == "ok"
    assert 0.99 < (stored.value or 0) < 1 - 1e-9


def test_noise_in_the_forward_pass(subject: Subject) -> None:
    def noisy(model: Any) -> Any:
        model.model.norm.register_forward_hook(lambda module, args, output: output + 0.3 * torch.randn_like(output))

    assert "repeatability" in failed(with_model(subject, noisy))


def test_a_norm_over_the_batch(subject: Subject) -> None:
    def mixing(model: Any) -> Any:
        model.model.norm.register_forward_hook(lambda module, args, output: output - output.mean((0, 1), keepdim=True) * (len(output) > 1))

    assert failed(with_model(subject, mixing)) == {"batch mates"}


def test_a_model_that_sees_its_padding(subject: Subject) -> None:
    """The mean over all positions, those of padding too."""

    def seeing(model: Any) -> Any:
        model.model.norm.register_forward_hook(lambda module, args, output: output + output.sum(1, keepdim=True))

    assert "padding" in failed(with_model(replace(subject, index=None), seeing))


def test_an_attention_kernel_that_sees_the_future(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = torch.nn.functional.scaled_dot_product_attention

    def everywhere(*args: Any, is_causal: bool = False, **options: Any) -> torch.Tensor:
        return attend(*args, is_causal=False, **{**options, "attn_mask": None})

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", everywhere)
    assert "attention kernel" in failed(replace(subject, index=None))


def test_the_attention_kernel_is_put_back(subject: Subject) -> None:
    before = subject.session.network.config._attn_implementation
    found(subject)
    assert subject.session.network.config._attn_implementation == before


def left_padded(row: Example, pad_id: int, n: int) -> Example:
    tokens = np.concatenate([np.full(n, pad_id), row.tokens])
    return replace(row, tokens=tokens, loss_mask=np.concatenate([np.zeros(n, dtype=bool), row.loss_mask]))


def test_rows_that_were_padded_on_the_left(subject: Subject) -> None:
    rows = [left_padded(row, subject.session.pad_id, 6) for row in subject.rows]
    padded = replace(subject, rows=rows, index=None, trace=None)
    assert failed(padded) == {"padding side"}
    assert "begin with" in found(padded)["padding side"].because


def test_a_full_row_leaves_no_room_for_padding(subject: Subject) -> None:
    tokens = np.resize(subject.rows[0].tokens, subject.session.max_length)
    full = replace(subject.rows[0], tokens=tokens, loss_mask=np.arange(len(tokens)) > 0)
    assert found(replace(subject, rows=[full], index=None, trace=None))["padding"].status == "unknown"


def test_the_difference_against_a_slow_twin() -> None:
    generator = torch.Generator().manual_seed(0)
    one = Passed(torch.tensor([0.2, 30.0, 3.0]).double(), torch.randn(3, 5, generator=generator, dtype=torch.float64))
    other = Passed(torch.tensor([0.3, 33.0, 3.0]).double(), one.gradient_SD * torch.tensor([[1.0], [1.0], [1.5]]))
    torch.testing.assert_close(differences(one, other), torch.tensor([0.1, 0.1, 0.5]).double())
