"""What makes a row that row: content ids, copies, groups of near-identical text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import xxhash

from headwater.types import Example

COPY_SIGN = "~"


def content_id(tokens: np.ndarray, loss_mask: np.ndarray, label: int | None) -> str:
    """xxh3_128 over the token ids, the loss mask and the label (-1 for none), all little-endian; 32 hex digits."""
    digest = xxhash.xxh3_128(tokens.astype("<i8").tobytes())
    digest.update(loss_mask.astype(np.uint8).tobytes())
    digest.update(np.int64(-1 if label is None else label).astype("<i8").tobytes())
    return digest.hexdigest()


def group_of(prompt: str, response: str, label: int | None) -> str:
    """The same for texts that differ only in case and white space."""
    parts = [" ".join(text.casefold().split()) for text in (prompt, response)]
    return xxhash.xxh3_128_hexdigest("\x1f".join([*parts, "" if label is None else str(label)]).encode())


def base_id(row_id: str) -> str:
    """The content's id, without the number of the copy."""
    return row_id.partition(COPY_SIGN)[0]


def count_copies(ids: Iterable[str]) -> dict[str, int]:
    """{content id: highest copy number in use}: what `number_copies` continues from when rows are appended."""
    seen: dict[str, int] = {}
    for row_id in ids:
        base, _, number = row_id.partition(COPY_SIGN)
        seen[base] = max(seen.get(base, 0), int(number or 1))
    return seen


def number_copies(examples: Iterable[Example], seen: Mapping[str, int]) -> list[Example]:
    """The same rows with unique ids: the k-th row of one content, k >= 2, is `<id>~k`, counting on from `seen`."""
    counts = dict(seen)
    numbered: list[Example] = []
    for example in examples:
        base = base_id(example.id)
        counts[base] = counts.get(base, 0) + 1
        unique = base if counts[base] == 1 else f"{base}{COPY_SIGN}{counts[base]}"
        numbered.append(example if example.id == unique else replace(example, id=unique))
    return numbered


def fingerprint(ids: Iterable[str]) -> str:
    """One hash over the ids in their order, so over every token, mask and label of a corpus."""
    return xxhash.xxh3_128_hexdigest("\n".join(ids).encode())
