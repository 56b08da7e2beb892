"""A tiny Llama and its own tokenizer, made from nothing: for the demo, for tests, for anyone without a network.

The weights are random. Nothing here trains: `headwater.truth.finetune` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from headwater.types import UsageError

PAD, BOS, EOS, USER, ASSISTANT = SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)  # every byte is a token, so any text can be written


class TinyModel(NamedTuple):
    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast


def chat_text(prompt: str, response: str) -> str:
    """One exchange as `CHAT_TEMPLATE` writes it, without the beginning-of-text token."""
    return f"{USER}{prompt}{ASSISTANT}{response}{EOS}"


def tiny_tokenizer(texts: Iterable[str], vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learned from `texts`, with `SPECIAL_TOKENS` as ids 0 to 4 and a chat template.

    The vocabulary is at most `vocab_size`: few texts give few merges, none give the 256 bytes alone.
    Raises UsageError where `vocab_size` cannot hold the bytes.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise UsageError(f"vocab_size is {vocab_size}; at least {SMALLEST_VOCABULARY} are needed, for the bytes and the special tokens")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def tiny_llama_config(*, vocab_size: int, **changes: Any) -> LlamaConfig:
    """Llama with grouped-query attention and untied embeddings, about 1.3 M parameters at a vocabulary of 2,048.

    `changes` are LlamaConfig's own options and win over the defaults here.
    """
    defaults = {
        "vocab_size": vocab_size,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "pad_token_id": SPECIAL_TOKENS.index(PAD),
        "bos_token_id": SPECIAL_TOKENS.index(BOS),
        "eos_token_id": SPECIAL_TOKENS.index(EOS),
    }
    return LlamaConfig(**(defaults | changes))


def tiny_model(seed: int, *, texts: Iterable[str] = (), vocab_size: int = 2048, **changes: Any) -> TinyModel:
    """A randomly initialised tiny Llama with a tokenizer learned from `texts`. The same seed gives the same weights.

    `changes` go to `tiny_llama_config`. Global random state is left as it was.
    """
    tokenizer = tiny_tokenizer(texts, vocab_size)
    config = tiny_llama_config(vocab_size=len(tokenizer), **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return TinyModel(model.eval(), tokenizer)
