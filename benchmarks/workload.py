"""The workload that engines are compared on, as files which every one of them can read: two models, rows, queries.

    model/           the 4-layer Llama of `benchmarks.indexing`; in scope: its 28 linear layers ("w1")
    adapter/         LoRA of rank 8 on q_proj and v_proj of that model; in scope: its 16 matrices ("w2")
    rows.npz         tokens [sum of lengths], lengths [N]
    queries.npz      the same, drawn by the same generator with another seed

The loss of a row is the sum of the cross-entropies of its tokens 1, 2, ...; a query's measure is minus its loss, the log-probability of its
tokens given those before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.indexing import examples, model
from headwater.types import Example

Workload = Literal["w1", "w2"]
WORKLOADS: dict[Workload, str] = {"w1": "28 linear layers, 3.16 M weights", "w2": "LoRA rank 8 on q and v, 32,768 weights"}
RANK, ALPHA, QUERY_SEED = 8, 16, 1


def lora(network: torch.nn.Module) -> Any:
    """The network under LoRA. `lora_B` is not zero, as in a model that was tuned: at zero the gradient of `lora_A` vanishes."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    tuned = get_peft_model(network, config)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return tuned


def rows(n_rows: int) -> list[Example]:
    return examples(n_rows)


def queries(n_queries: int) -> list[Example]:
    return examples(n_queries, seed=QUERY_SEED)


def write(folder: Path, *, n_rows: int = 1000, n_queries: int = 64) -> Path:
    """The whole workload as files; an engine that is given fewer rows takes the first ones."""
    network: Any = model()
    network.save_pretrained(folder / "model")
    tuned = lora(network)
    tuned.peft_config["default"].base_model_name_or_path = str(folder / "model")
    tuned.save_pretrained(folder / "adapter")
    _write_tokens(folder / "rows.npz", rows(n_rows))
    _write_tokens(folder / "queries.npz", queries(n_queries))
    return folder


def _write_tokens(path: Path, which: Sequence[Example]) -> None:
    np.savez(path, tokens=np.concatenate([row.tokens for row in which]), lengths=np.array([row.n_tokens for row in which]))
