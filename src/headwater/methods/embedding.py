"""A frozen text encoder: rows that mean the same as the query to a model that has nothing to do with the one traced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headwater.methods.shared import Text, check, check_rows, check_text, make_scores, rows_key, texts, unit_length
from headwater.progress import track
from headwater.types import Index, Scores, State, UsageError

LONGEST = 8192  # tokens; an encoder that names no limit of its own is cut here


@dataclass(frozen=True)
class Embedding:
    """Cosine of a Hugging Face encoder's embeddings: mean of the last hidden states over the attended positions.

    `model` (a path or a hub id, pinned by `revision`) has no default: it decides the answer. `text` says which text of
    either side is compared; longer than the encoder reads is cut. The training rows' embeddings [N, H] are the state.
    Cost: one pass of the encoder over the texts. No unit. Raises UsageError where `model` is not an encoder with padding.
    """

    model: str
    revision: str | None = None
    device: str = "cpu"
    text: Text = "both"
    batch_size: int = 32

    name = "embedding"
    unit = None
    requires = frozenset[str]()
    columns = frozenset({"prompt", "response"})
    summary = "cosine of a frozen encoder's text embeddings"
    reference = "Reimers and Gurevych 2019, mean pooling"
    cost = "the encoder's pass over the texts to fit; one product"

    def __post_init__(self) -> None:
        check_text(self.name, self.text)

    def fit(self, index: Index) -> State:
        return {"embedding": self.encode(texts(index, self.text)), "rows": rows_key(index)}

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        check_rows(state, index)
        values_QN = self.encode(texts(queries, self.text)) @ state["embedding"].T
        return make_scores(self, values_QN, index, queries)

    def encode(self, documents: list[str]) -> Tensor:
        """[N, H] float32 of unit length, on the CPU, in the order given. Sorted by length inside, so that little is padding."""
        tokenizer, encoder = _load(self.model, self.revision, self.device)
        order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
        starts = range(0, len(order), self.batch_size)
        pooled_NH = torch.zeros(len(documents), encoder.config.hidden_size)
        for start in track(starts, total=len(starts), description="embedding texts"):
            chosen = order[start : start + self.batch_size]
            pooled_NH[chosen] = _pool(tokenizer, encoder, [documents[i] for i in chosen]).float().cpu()
        return unit_length(pooled_NH)


def _load(model: str, revision: str | None, device: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
        encoder = AutoModel.from_pretrained(model, revision=revision).to(device).eval()
    except (OSError, ValueError) as error:
        raise UsageError(f"embedding: {model!r} cannot be loaded as an encoder ({error}). Give a folder or a hub id of one.") from error
    if tokenizer.pad_token is None or encoder.config.is_encoder_decoder:
        what = "has no padding token" if tokenizer.pad_token is None else "is an encoder-decoder"
        raise UsageError(f"embedding: {model!r} {what}, so it is not a text encoder. Give one that is (BERT-like, or an embedding model).")
    return tokenizer, encoder


@torch.inference_mode()
def _pool(tokenizer: Any, encoder: Any, documents: list[str]) -> Tensor:
    """[B, H] the mean over attended positions; padding never enters it. A text without any token is a vector of zeros."""
    limit = min(tokenizer.model_max_length, getattr(encoder.config, "max_position_embeddings", LONGEST), LONGEST)
    batch = tokenizer(documents, padding=True, truncation=True, max_length=limit, return_tensors="pt").to(encoder.device)
    mask_BT1 = batch["attention_mask"].unsqueeze(-1)
    hidden_BTH = encoder(**batch).last_hidden_state
    return (hidden_BTH * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
