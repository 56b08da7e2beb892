"""The recipe of a training that is over: from a real Trainer's folder, and never by running what is in a file."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer import make_trainer, train

from headwater.truth.finetune import Lora
from headwater.truth.trained import ARGUMENTS, lora_of, recipe_of
from headwater.types import DataError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own


def folder(out: Path, **changes: Any) -> Path:
    """A Trainer's output, as if it had trained: the model and the arguments are saved."""
    make_trainer(out, **changes).save_model()
    return out


def test_every_option_of_a_recipe_is_the_trainers(tmp_path: Path) -> None:
    out = folder(
        tmp_path / "out",
        weight_decay=0.2,
        lr_scheduler_type="cosine",
        warmup_steps=0.25,
        max_grad_norm=0.5,
        adam_beta2=0.95,
        num_train_epochs=4,
    )
    found = recipe_of(out).model_dump()
    assert found == {
        "epochs": 4, "lr": 1e-2, "batch_rows": 6, "warmup": 0.25, "decay": "cosine", "weight_decay": 0.2, "betas": (0.9, 0.95), "clip": 0.5,
        "seed": 0, "lora": None,
    }  # fmt: skip


def test_an_adapter_brings_its_shape(tmp_path: Path) -> None:
    assert recipe_of(folder(tmp_path / "out", lora=True)).lora == Lora(r=2, alpha=8, dropout=0.1, targets=("q_proj", "v_proj"))


def test_a_folder_with_checkpoints_alone_will_do(tmp_path: Path) -> None:
    train(make_trainer(tmp_path / "out"))
    for path in (tmp_path / "out").iterdir():
        if path.is_file():
            path.unlink()
    assert recipe_of(tmp_path / "out").epochs == 2


def test_no_clipping_is_no_clipping(tmp_path: Path) -> None:
    assert recipe_of(folder(tmp_path / "out", max_grad_norm=0.0)).clip > 1e20


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_steps": 5}, "max_steps"),
        ({"optim": "adafactor"}, "adafactor"),
        ({"lr_scheduler_type": "polynomial"}, "polynomial"),
        ({"num_train_epochs": 1.5}, "num_train_epochs"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"warmup_steps": 10}, "10 steps of warm-up"),
    ],
)
def test_what_a_recipe_cannot_do_is_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        recipe_of(folder(tmp_path / "out", **changes))


def test_a_folder_that_does_not_say_is_refused(tmp_path: Path) -> None:
    out = folder(tmp_path / "out")
    (out / ARGUMENTS).unlink()
    with pytest.raises(UsageError, match="does not say how it was trained"):
        recipe_of(out)


class Loud:
    """Code in a pickle: what must never run."""

    def __reduce__(self) -> Any:
        return print, ("a pickle was run",)


@pytest.mark.parametrize("content", [b"", b"nonsense", pickle.dumps({"learning_rate": 1.0})])
def test_damaged_arguments_are_refused(tmp_path: Path, content: bytes) -> None:
    out = folder(tmp_path / "out")
    (out / ARGUMENTS).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as a Trainer's arguments"):
        recipe_of(out)


def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder(tmp_path / "out")
    torch.save(Loud(), out / ARGUMENTS)
    with pytest.raises(DataError, match="cannot be read as a Trainer's arguments"):
        recipe_of(out)
    assert "a pickle was run" not in capsys.readouterr().out


def test_an_adapter_that_is_more_than_lora_is_refused(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    for more in ({"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"target_modules": ".*q_proj"}):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **more}))
        with pytest.raises(UsageError, match="plain LoRA"):
            lora_of(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(DataError, match="adapter's config"):
        lora_of(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "target_modules": "all-linear"}))
    assert lora_of(tmp_path) == Lora(r=4, alpha=8, targets="all-linear")
