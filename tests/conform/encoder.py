"""A text encoder small enough to build in a test: a BERT of random weights and a tokenizer over a handful of words."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from headwater.testing import WORDS

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def save_tiny_encoder(folder: Path, *, padding: bool = True) -> str:
    """The folder's path, with model and tokenizer in it."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    special = SPECIAL if padding else {name: token for name, token in SPECIAL.items() if name != "pad_token"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=40, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)
