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
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.indexing import VOCABULARY, examples, model
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


# ------------------------------------------------------------------------------- a model that has learned something


def structured_rows(n_rows: int, seed: int = 0) -> list[Example]:
    """Rows as long as those of `rows`, in an invented language: what `trained_model` was trained on, drawn anew."""
    blank = examples(n_rows, seed=seed)
    tokens_NT = _language(np.random.default_rng([seed, 1]), n_rows, max((row.n_tokens for row in blank), default=0))
    return [replace(row, tokens=tokens_T[: row.n_tokens]) for row, tokens_T in zip(blank, tokens_NT, strict=True)]


def trained_model(*, steps: int = 200, batch: int = 16, length: int = 80) -> torch.nn.Module:
    """The Llama of `benchmarks.indexing` after a short training on the invented language; the same weights each time on one machine.

    Untrained, its gradients are noise of a flat spectrum. Cost: `steps * batch * length` tokens of training, 256,000 by default.
    """
    network: Any = model().train()
    peak, warm, rng = 2e-3, 30, np.random.default_rng([0, 2])
    optimizer = torch.optim.AdamW(network.parameters(), lr=peak)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / warm) * (1 - step / steps))
    for _ in range(steps):
        tokens = torch.from_numpy(_language(rng, batch, length))
        network(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return network.eval()


def _language(rng: np.random.Generator, n: int, length: int) -> np.ndarray:
    """[n, length] tokens. The next one is, with probability .7, one of eight successors of the last; .15 a word of the row's topic, one of
    20; .15 any word. Words have Zipf's frequencies."""
    fixed = np.random.default_rng([0, 3])  # the language itself, whatever is said in it
    words, zipf = np.arange(2, VOCABULARY), 1 / np.arange(1, VOCABULARY - 1)
    successors_V8 = fixed.choice(words, size=(VOCABULARY, 8), p=zipf / zipf.sum())
    topics = fixed.choice(words, size=(20, 40), p=zipf / zipf.sum())
    any_NT = rng.choice(words, size=(n, length), p=zipf / zipf.sum())
    topical_NT = topics[rng.integers(20, size=(n, 1)), rng.integers(40, size=(n, length))]
    follows_NT, kind_NT = rng.choice(8, size=(n, length), p=zipf[:8] / zipf[:8].sum()), rng.random((n, length))
    tokens_NT = any_NT.copy()
    for t in range(1, length):
        following_N = successors_V8[tokens_NT[:, t - 1], follows_NT[:, t]]
        tokens_NT[:, t] = np.select([kind_NT[:, t] < 0.7, kind_NT[:, t] < 0.85], [following_N, topical_NT[:, t]], any_NT[:, t])
    return tokens_NT
