"""What counts in a row's loss: everything, as the paper has it, or less. B rows of a batch · N rows · D numbers of a gradient row

Padding is made of explicit tokens, so a masked row is an `Example` like any other. Unlike an attention mask this lets the row's own tokens
see padding to their left. Every loss is the mean cross-entropy over what counts, which is the paper's; a stored index has the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from headwater.corpus import collate, plan_batches
from headwater.gradient.rows import row_engine
from headwater.model import measures
from headwater.model.session import Session
from headwater.types import Example, Layout

Mask = Literal["none", "prompt", "padding", "prompt and padding"]
"""What does *not* count. "none": prompt, response and padding on the left do (v2 of the paper). "prompt": the response and padding on the
right (v1). "padding": prompt and response. "prompt and padding": the response alone, as in a training that masks."""

MASKS: tuple[Mask, ...] = get_args(Mask)
TOKEN_BUDGET = 4096


def masked(example: Example, mask: Mask, *, length: int, pad_id: int) -> Example:
    """The row with other targets, padded to `length` with `pad_id` where padding counts. The first token is never a target."""
    padding = np.full(max(0, length - example.n_tokens) if mask in ("none", "prompt") else 0, pad_id, dtype=example.tokens.dtype)
    if mask == "prompt and padding":
        return example
    if mask == "prompt":
        counted = np.concatenate([example.loss_mask, np.ones(len(padding), dtype=bool)])
        return replace(example, tokens=np.concatenate([example.tokens, padding]), loss_mask=counted)
    tokens = np.concatenate([padding, example.tokens])
    return replace(example, tokens=tokens, loss_mask=np.arange(len(tokens)) > 0)


def padded_length(examples: Sequence[Example], *, share: float, most: int | None) -> int:
    """The length at which a share of all positions is padding; no less than the longest row, and beyond it no more than `most`."""
    lengths = [example.n_tokens for example in examples]
    wanted = round(float(np.mean(lengths)) / (1 - share))
    return max(max(lengths), wanted if most is None else min(wanted, most))


def padding_share(examples: Sequence[Example], length: int) -> float:
    return 1 - float(np.mean([example.n_tokens for example in examples])) / length


def padding_id(session: Session) -> int:
    """The end-of-text id, as the paper pads; the padding id where there is none."""
    return session.pad_id if session.tokenizer.eos_token_id is None else int(session.tokenizer.eos_token_id)


def loss_gradients(session: Session, layout: Layout, examples: Sequence[Example]) -> Tensor:
    """[N, D] the gradient of each row's mean loss over its targets, in `layout`. One pass over the rows."""
    rows_ND = torch.empty(len(examples), layout.size, dtype=session.dtype)
    with row_engine(session, layout) as engine:
        for positions in plan_batches([example.n_tokens for example in examples], token_budget=TOKEN_BUDGET):
            batch = collate([examples[i] for i in positions], pad_id=session.pad_id)
            rows_ND[torch.tensor(positions)] = engine.rows(batch, measures.get("mean_loss")).gradient_BD.to(rows_ND)
    return rows_ND
