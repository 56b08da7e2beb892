"""What became of every row that was read: counted by reason, listed, and summed up."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from headwater.corpus.identity import COPY_SIGN
from headwater.types import DataError, Example

Reason = Literal["truncated", "empty", "undecodable", "no_response_token"]
REASONS: dict[Reason, str] = {
    "truncated": "kept, cut at the maximum length",
    "empty": "dropped, nothing to learn in it",
    "undecodable": "dropped, not readable as text",
    "no_response_token": "dropped, no token to predict (after truncation)",
}
LISTED_IN_JSON = 1000
LARGEST_GROUPS = 10
QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


class UnusableRow(Exception):
    """Raised while one row is read or rendered, caught where rows are counted; never reaches the user."""

    def __init__(self, reason: Reason, note: str) -> None:
        super().__init__(note)
        self.reason: Reason = reason
        self.note = note


@dataclass(frozen=True)
class Listing:
    """One row that did not go through untouched, and why. `row` counts from 0 within its source."""

    reason: Reason
    source: str
    row: int
    note: str


def refuse_mostly_undecodable(listings: Iterable[Listing], n_rows: Mapping[str, int]) -> None:
    """Raise DataError for a source of which more than half cannot be read: then the file is wrong, not its rows."""
    bad: dict[str, list[Listing]] = defaultdict(list)
    for listing in listings:
        if listing.reason == "undecodable":
            bad[listing.source].append(listing)
    for source, rows in bad.items():
        if 2 * len(rows) > n_rows[source]:
            first = min(rows, key=lambda listing: listing.row)
            raise DataError(
                f"{source}: {len(rows)} of {n_rows[source]} rows cannot be read, first row {first.row}: {first.note}. "
                "The file is probably not of the kind that its name or the column mapping says; repair it or map other columns."
            )


@dataclass(frozen=True)
class TokenStatistics:
    """Over the rows kept. `length_quantiles` are in tokens per row."""

    n_tokens: int
    n_loss_tokens: int
    length_quantiles: Mapping[str, float]

    @staticmethod
    def of(examples: Sequence[Example]) -> TokenStatistics:
        lengths = np.array([example.n_tokens for example in examples])
        quantiles = {name: float(np.quantile(lengths, q)) for name, q in QUANTILES.items()} if len(lengths) else {}
        return TokenStatistics(int(lengths.sum()), sum(example.n_loss_tokens for example in examples), quantiles)


@dataclass(frozen=True)
class Duplicates:
    """`copies`: rows beyond the first of identical tokens, mask and label. A group's rows differ in case and white space at most."""

    copies: int
    groups: int  # groups of more than one row
    largest: tuple[Mapping[str, Any], ...]  # {"group", "rows", "example_id"}, largest first

    @staticmethod
    def of(examples: Sequence[Example]) -> Duplicates:
        sizes = Counter(example.group for example in examples)
        first = {example.group: example.id for example in reversed(examples)}
        repeated = [(group, size) for group, size in sizes.most_common() if size > 1]
        largest = tuple({"group": group, "rows": size, "example_id": first[group]} for group, size in repeated[:LARGEST_GROUPS])
        return Duplicates(sum(COPY_SIGN in example.id for example in examples), len(repeated), largest)


@dataclass(frozen=True)
class CorpusReport:
    """The account of one corpus: every row read is kept or listed under a reason."""

    rows_read: int
    rows_kept: int
    listings: tuple[Listing, ...]
    duplicates: Duplicates
    tokens: TokenStatistics
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])  # how rows became tokens: columns, template, loss_on, ...

    @property
    def counts(self) -> dict[Reason, int]:
        """Rows by reason; every reason is there, also with 0."""
        found = Counter(listing.reason for listing in self.listings)
        return {reason: found[reason] for reason in REASONS}

    def listed(self, reason: Reason) -> list[Listing]:
        return [listing for listing in self.listings if listing.reason == reason]

    def to_json(self) -> dict[str, Any]:
        """Plain data. At most 1,000 rows are listed per reason; `counts` always has the full number."""
        rows = {
            reason: [{"source": x.source, "row": x.row, "note": x.note} for x in self.listed(reason)[:LISTED_IN_JSON]] for reason in REASONS
        }
        return {
            "rows_read": self.rows_read,
            "rows_kept": self.rows_kept,
            "counts": dict(self.counts),
            "listed": rows,
            "duplicates": {**asdict(self.duplicates), "largest": list(self.duplicates.largest)},
            "tokens": asdict(self.tokens),
            "settings": dict(self.settings),
        }

    def summary(self) -> str:
        """A few plain lines for a terminal."""
        lines = [f"{self.rows_kept:,} of {self.rows_read:,} rows kept"]
        for reason, count in self.counts.items():
            if count:
                first = self.listed(reason)[0]
                lines.append(f"  {reason}: {count:,} ({REASONS[reason]}), first {first.source} row {first.row}: {first.note}")
        lines.append(f"{self.tokens.n_tokens:,} tokens, {self.tokens.n_loss_tokens:,} of them targets{self._lengths()}")
        if self.duplicates.groups:
            largest = self.duplicates.largest[0]
            lines.append(
                f"{self.duplicates.copies:,} exact copies; {self.duplicates.groups:,} groups of near-identical text, "
                f"the largest of {largest['rows']:,} rows"
            )
        return "\n".join(lines)

    def _lengths(self) -> str:
        q = self.tokens.length_quantiles
        return f"; row length {q['min']:.0f} to {q['max']:.0f}, median {q['median']:.0f}" if q else ""
