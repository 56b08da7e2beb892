"""Tiny random models of many architectures, in float64, and batches for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from headwater.model.session import Session
from headwater.types import Batch

VOCABULARY, HIDDEN, LAYERS = 61, 16, 2


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=1)
    )


def _gpt_neox() -> nn.Module:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=2)
    )


COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**COMMON, attention_bias=True))


def _mistral() -> nn.Module:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**COMMON, sliding_window=4))


def _qwen3() -> nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**COMMON, head_dim=8))


def _gemma3() -> nn.Module:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(Gemma3TextConfig(**{**COMMON, "pad_token_id": 0}, head_dim=8, sliding_window=4, final_logit_softcapping=3.0))


def _mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    return _eager(MixtralForCausalLM(MixtralConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2)))


def _qwen3_moe() -> nn.Module:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    return _eager(
        Qwen3MoeForCausalLM(
            Qwen3MoeConfig(**COMMON, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12, norm_topk_prob=True)
        )
    )


def _eager(model: nn.Module) -> nn.Module:
    """The fused kernels that transformers picks by default know no float64."""
    model.set_experts_implementation("eager")  # pyright: ignore[reportCallIssue]
    return model


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=32,
            num_labels=3,
        )
    )


def _lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(_llama(), LoraConfig(r=3, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]))  # pyright: ignore
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)  # zero as it starts, A's gradient would be zero everywhere
    return model


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "mistral": _mistral,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "bert": _bert,
    "llama_lora": _lora,
}


def make_session(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Session:
    torch.manual_seed(seed)
    model = ARCHITECTURES[name]().to(dtype).eval()
    for parameter in model.parameters():  # norms start at one and biases at zero: anything else shows more faults
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=0.5, std=0.3)
    return Session(model, None, "sequence-classification" if name == "bert" else "causal-lm", name=name)


def make_batch(session: Session, *, seed: int = 0, lengths: tuple[int, ...] = (9, 5, 7)) -> Batch:
    """Rows of unlike lengths whose first third is the prompt; tokens avoid the padding id."""
    rng = np.random.default_rng(seed)
    width = max(lengths)
    tokens = np.full((len(lengths), width), session.pad_id)
    mask = np.zeros((len(lengths), width), dtype=bool)
    for row, length in enumerate(lengths):
        tokens[row, :length] = rng.integers(2, VOCABULARY, size=length)
        mask[row, max(1, length // 3) : length] = session.task == "causal-lm"
    labels = torch.tensor(rng.integers(0, 3, size=len(lengths))) if session.task == "sequence-classification" else None
    last_prompt = torch.tensor([max(1, length // 3) - 1 for length in lengths])
    return Batch(
        ids=tuple(str(i) for i in range(len(lengths))),
        tokens_BT=torch.tensor(tokens),
        loss_mask_BT=torch.tensor(mask),
        lengths_B=torch.tensor(lengths),
        last_prompt_B=last_prompt,
        labels_B=labels,
    )


def single(batch: Batch, row: int) -> Batch:
    """One row of a batch, without its padding."""
    end = int(batch.lengths_B[row])
    return Batch(
        ids=(batch.ids[row],),
        tokens_BT=batch.tokens_BT[row : row + 1, :end],
        loss_mask_BT=batch.loss_mask_BT[row : row + 1, :end],
        lengths_B=batch.lengths_B[row : row + 1],
        last_prompt_B=batch.last_prompt_B[row : row + 1],
        labels_B=None if batch.labels_B is None else batch.labels_B[row : row + 1],
    )
