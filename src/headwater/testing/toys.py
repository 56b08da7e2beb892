"""Small seeded indexes that the checks edit and judge with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from headwater.index.memory import MemoryIndex
from headwater.types import Block, DataError, Index, Layout, Member, MemberRole

COLUMNS = ("prompt", "response", "group", "source", "row", "label", "loss", "n_tokens", "n_loss_tokens", "truncated", "bad")
COLUMNS += ("measure", "measure_name")  # the queries'
WORDS = ["river", "spring", "delta", "brook", "rain", "cloud", "snow", "ice", "lake", "pond"]
WORDS += ["marsh", "tide", "wave", "shore", "reef", "sand", "7", "12"]  # digits are words too
LAYOUT = Layout((Block("layer.weight", (12, 10), (4, 3)), Block("norm.weight", (6,), (6,))), sketch_seed=5)


@dataclass(frozen=True)
class Toy:
    """Rows that can be edited before they become an index."""

    ids: tuple[str, ...]
    layout: Layout
    gradient_of: str
    features: Mapping[str, Tensor]
    columns: Mapping[str, np.ndarray]
    members: tuple[ToyMember, ...] = ()

    def index(self) -> MemoryIndex:
        members = [Member(one.name, one.role, one.rows.index(), one.step, one.learning_rate) for one in self.members]
        return MemoryIndex(self.ids, self.layout, self.gradient_of, dict(self.features), dict(self.columns), members)

    def rows(self, positions: Sequence[int]) -> Toy:
        """These rows in this order; a row that comes again is a further copy, with an id of its own."""
        chosen = list(positions)
        copies = [chosen[:place].count(position) for place, position in enumerate(chosen)]
        ids = tuple(f"{self.ids[i]}~{copy + 1}" if copy else self.ids[i] for i, copy in zip(chosen, copies, strict=True))
        features = {name: tensor[chosen] for name, tensor in self.features.items()}
        columns = {name: column[chosen] for name, column in self.columns.items()}
        return replace(self, ids=ids, features=features, columns=columns).each(lambda toy: toy.rows(chosen))

    def filled(self, position: int, value: float) -> Toy:
        """Every feature of one row set to `value`; a row of NaN is marked bad."""
        features = {name: tensor.clone() for name, tensor in self.features.items()}
        for tensor in features.values():
            tensor[position] = value
        bad = np.array(self.columns.get("bad", np.zeros(len(self.ids), dtype=bool)))
        bad[position] |= np.isnan(value)
        return replace(self, features=features, columns={**self.columns, "bad": bad}).each(lambda toy: toy.filled(position, value))

    def scaled(self, factor: float) -> Toy:
        """The gradients times a number."""
        features = {**self.features, "gradient": factor * self.features["gradient"]}
        return replace(self, features=features).each(lambda toy: toy.scaled(factor))

    def resketched(self) -> Toy:
        """The same numbers under another sketch seed: of the same length, and of another meaning."""
        layout = replace(self.layout, sketch_seed=self.layout.sketch_seed + 100)
        return replace(self, layout=layout).each(lambda toy: toy.resketched())

    def each(self, edit: Callable[[Toy], Toy]) -> Toy:
        """The members' rows edited alike."""
        return replace(self, members=tuple(replace(member, rows=edit(member.rows)) for member in self.members))

    def with_members(self, roles: Iterable[MemberRole], *, seed: int) -> Toy:
        """Members of these roles, with gradients and losses of their own."""
        members = [ToyMember(name, role, self._redrawn(role, i, seed), i, 0.1 / (i + 1)) for role in roles for i, name in MEMBERS[role]]
        return replace(self, members=tuple(members))

    def _redrawn(self, role: MemberRole, i: int, seed: int) -> Toy:
        rng = np.random.default_rng([seed, i, len(role)])
        features = {name: torch.from_numpy(rng.normal(size=tuple(tensor.shape))).float() for name, tensor in self.features.items()}
        columns = {**self.columns, "loss": rng.gamma(3.0, 4.0, size=len(self)).astype(np.float32)}
        layout = replace(self.layout, sketch_seed=self.layout.sketch_seed + i) if role == "seed" else self.layout
        return replace(self, layout=layout, features=features, columns=columns)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class ToyMember:
    """A `types.Member` whose rows can be edited."""

    name: str
    role: MemberRole
    rows: Toy
    step: int | None = None
    learning_rate: float | None = None


MEMBERS: Mapping[MemberRole, tuple[tuple[int, str], ...]] = {
    "checkpoint": ((1, "checkpoint-1"), (2, "checkpoint-2")),
    "base": ((0, "base"),),
    "seed": ((1, "seed-1"), (2, "seed-2")),
    "adam": ((1, "adam-1"), (2, "adam-2")),
    "second_moment": ((1, "second-moment-1"),),
}


def toy_rows(n: int, *, seed: int) -> Toy:
    """n training rows: random features in a layout with a sketched and a whole block, texts of common words."""
    rng = np.random.default_rng(seed)
    prompts, responses = ([" ".join(rng.choice(WORDS, size=rng.integers(4, 9))) for _ in range(n)] for _ in range(2))
    lengths = rng.integers(8, 60, size=n)
    columns = {
        "prompt": _objects(prompts),
        "response": _objects(responses),
        "group": _objects([_id(prompt + response) for prompt, response in zip(prompts, responses, strict=True)]),
        "source": _objects(["toy.jsonl"] * n),
        "row": np.arange(n),
        "label": np.full(n, np.nan),
        "loss": rng.gamma(3.0, 4.0, size=n).astype(np.float32),
        "n_tokens": lengths,
        "n_loss_tokens": lengths // 2,
        "truncated": np.zeros(n, dtype=bool),
        "bad": np.zeros(n, dtype=bool),
    }
    widths = {"gradient": LAYOUT.size, "representation": 7, "representation_response": 7, "rept": 14}
    features = {name: torch.from_numpy(rng.normal(size=(n, width))).float() for name, width in widths.items()}
    return Toy(tuple(_id(f"{seed}/{i}") for i in range(n)), LAYOUT, "loss", features, columns)


def toy_queries(n: int, *, seed: int) -> Toy:
    return as_queries(toy_rows(n, seed=seed))


def as_queries(toy: Toy) -> Toy:
    """The rows in the place of queries, their measure being the log-probability that their loss is minus of."""
    measure = {"measure": -toy.columns["loss"], "measure_name": _objects(["response_log_probability"] * len(toy))}
    return replace(toy, gradient_of="measure", columns={**toy.columns, **measure}).each(as_queries)


def toy_of(index: Index) -> Toy:
    everything = np.arange(len(index))
    features = {name: index.take(name, everything) for name in index.features}
    members = [ToyMember(m.name, m.role, toy_of(m.index), m.step, m.learning_rate) for role in MEMBERS for m in index.members(role)]
    return Toy(tuple(index.ids), index.layout, index.gradient_of, features, dict(_columns(index)), tuple(members))


def _columns(index: Index) -> Iterator[tuple[str, np.ndarray]]:
    for name in COLUMNS:
        try:
            yield name, index.column(name)
        except (DataError, KeyError):
            continue


def _id(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


def _objects(values: Sequence[str]) -> np.ndarray:
    return np.array(values, dtype=object)


class Reblocked:
    """An index that hands out its rows in blocks of another size. Nothing else differs."""

    def __init__(self, index: MemoryIndex, rows: int) -> None:
        self.inner, self.rows = index, rows
        self.layout, self.gradient_of, self.ids, self.features = index.layout, index.gradient_of, index.ids, index.features
        self.take, self.column = index.take, index.column

    def __len__(self) -> int:
        return len(self.inner)

    def blocks(self, feature: str) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, len(self), self.rows):
            yield start, self.take(feature, np.arange(start, min(start + self.rows, len(self))))

    def products(self, feature: str, queries_QD: Tensor, *, scale_N: Tensor | None = None) -> Tensor:
        values_QN = torch.cat([queries_QD @ block_ND.T for _, block_ND in self.blocks(feature)], dim=1)
        return values_QN if scale_N is None else values_QN * scale_N

    def members(self, role: MemberRole) -> tuple[Member, ...]:
        members: tuple[Any, ...] = self.inner.members(role)
        return tuple(replace(member, index=Reblocked(member.index, self.rows)) for member in members)
