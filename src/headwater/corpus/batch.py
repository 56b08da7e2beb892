"""Rows into batches: little padding, a bounded number of tokens, and the same plan every time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from headwater.types import Batch, Example, UsageError

MOST_PADDING = 0.10


def plan_batches(lengths: Sequence[int] | np.ndarray, *, token_budget: int, max_rows: int | None = None) -> list[list[int]]:
    """Positions of rows, batch by batch: every row once, longest first, equal lengths in their order.

    A batch of n rows, the longest of L tokens, has n * L <= `token_budget` (a longer row stands alone), at most `max_rows` rows, and
    at most 10 % padding. Longest first, so that a batch that does not fit into memory fails at once and not after an hour.
    Cost O(N log N). Raises UsageError for a budget or row limit below 1.
    """
    if token_budget < 1 or (max_rows is not None and max_rows < 1):
        raise UsageError(f"got token_budget {token_budget} and max_rows {max_rows}, expected at least 1")
    most_rows = len(lengths) if max_rows is None else max_rows
    batches: list[list[int]] = []
    longest = used = 0
    for position in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist():
        length = int(lengths[position])
        cells = (len(batches[-1]) + 1) * longest if batches else 0
        fits = bool(batches) and len(batches[-1]) < most_rows and cells <= token_budget
        if fits and cells - used - length <= MOST_PADDING * cells:
            batches[-1].append(position)
            used += length
        else:
            batches.append([position])
            longest = used = length
    return batches


def collate(examples: Sequence[Example], *, pad_id: int) -> Batch:
    """The rows padded on the right with `pad_id`; `alternative` is set where every row has one.

    Raises UsageError for rows of which only some have a label.
    """
    assert examples, "a batch needs at least one row"
    lengths = np.array([example.n_tokens for example in examples])
    tokens_BT = np.full((len(examples), int(lengths.max())), pad_id, dtype=np.int64)
    mask_BT = np.zeros(tokens_BT.shape, dtype=bool)
    for b, example in enumerate(examples):
        tokens_BT[b, : lengths[b]] = example.tokens
        mask_BT[b, : lengths[b]] = example.loss_mask
    alternatives = [example.alternative for example in examples if example.alternative is not None]
    return Batch(
        ids=tuple(example.id for example in examples),
        tokens_BT=torch.from_numpy(tokens_BT),
        loss_mask_BT=torch.from_numpy(mask_BT),
        lengths_B=torch.from_numpy(lengths.astype(np.int64)),
        last_prompt_B=torch.tensor([example.last_prompt_position for example in examples]),
        labels_B=_labels(examples),
        alternative=collate(alternatives, pad_id=pad_id) if len(alternatives) == len(examples) else None,
    )


def _labels(examples: Sequence[Example]) -> torch.Tensor | None:
    labels = [example.label for example in examples if example.label is not None]
    if labels and len(labels) < len(examples):
        raise UsageError(
            f"{len(labels)} of {len(examples)} rows of a batch have a label, expected all or none; trace the two kinds separately"
        )
    return torch.tensor(labels) if labels else None
