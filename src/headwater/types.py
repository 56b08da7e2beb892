"""The core types: what a score names, what it explains, what it rests on, and what is doubtful about it.

Dimension letters used throughout the package:
    B rows of a batch · T positions · I inputs of a layer · O outputs of a layer · D stored numbers of a gradient row
    N training rows · Q queries · K solves or candidates · H hidden size · V vocabulary
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd


# --------------------------------------------------------------------------------------------------------- errors


class HeadwaterError(Exception):
    """Something the user can act on. The message says: got, expected, likely cause, what to do."""

    exit_code = 3


class UsageError(HeadwaterError, ValueError):
    """A wrong option or a wrong combination of inputs (exit code 2)."""

    exit_code = 2


class DataError(HeadwaterError, ValueError):
    """Input that cannot be read as what it claims to be (exit code 3)."""


class IntegrityError(HeadwaterError):
    """An artefact on disk that is damaged, or belongs to another run (exit code 3)."""


class LayoutMismatch(IntegrityError):
    """Two things that speak of different parameters, or of the same ones in another order or sketch."""


# ------------------------------------------------------------------------------------------------------- examples


@dataclass(frozen=True, eq=False)
class Example:
    """One row, as the model sees it.

    `loss_mask[t]` is true where the token at position t is a *target*: it is predicted from the positions before it and
    counts in the loss. Position 0 has nothing before it and is never a target. There is no padding in an Example.
    """

    id: str
    tokens: np.ndarray  # [T] int64
    loss_mask: np.ndarray  # [T] bool
    prompt: str = ""
    response: str = ""
    label: int | None = None  # the class, for sequence classification
    group: str = ""  # rows whose text is the same but for case and white space share a group
    source: str = ""  # where the row came from: "train.jsonl"
    row: int = -1  # its number in that source, from 0
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    alternative: Example | None = None  # a contrast's second response

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def n_loss_tokens(self) -> int:
        return int(self.loss_mask.sum())

    @property
    def last_prompt_position(self) -> int:
        """The position just before the first target: the last token that the model read before it had to answer."""
        targets = np.flatnonzero(self.loss_mask)
        return int(targets[0]) - 1 if len(targets) else self.n_tokens - 1


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to a common length. Padding is never a target and, for causal models, is never attended to."""

    ids: tuple[str, ...]
    tokens_BT: Tensor  # int64
    loss_mask_BT: Tensor  # bool
    lengths_B: Tensor  # int64
    last_prompt_B: Tensor  # int64: Example.last_prompt_position
    labels_B: Tensor | None = None
    alternative: Batch | None = None

    def to(self, device: torch.device | str) -> Batch:
        return Batch(
            ids=self.ids,
            tokens_BT=self.tokens_BT.to(device),
            loss_mask_BT=self.loss_mask_BT.to(device),
            lengths_B=self.lengths_B.to(device),
            last_prompt_B=self.last_prompt_B.to(device),
            labels_B=None if self.labels_B is None else self.labels_B.to(device),
            alternative=None if self.alternative is None else self.alternative.to(device),
        )

    def __len__(self) -> int:
        return len(self.ids)


class Outputs(Protocol):
    """What one forward pass of a session offers to a measure. Everything is differentiable; what is not asked for is not computed."""

    def token_log_probs(self) -> Tensor:
        """[B, T] log p(token_t | tokens before t) where the loss mask is set, 0 elsewhere."""
        ...

    def class_logits(self) -> Tensor:
        """[B, C] logits of a sequence classifier."""
        ...

    @property
    def alternative(self) -> Outputs | None:
        """The outputs on `batch.alternative`, for contrasts."""
        ...


@dataclass(frozen=True)
class Measure:
    """What is being explained: a differentiable number per row, `fn(outputs, batch) -> [B]`, in `unit`.

    On a processor batches are worked on side by side, so `fn` is called from several threads.
    """

    name: str
    unit: str | None
    fn: Callable[[Outputs, Batch], Tensor]


# ----------------------------------------------------------------------------------------------------- parameters


@dataclass(frozen=True)
class Block:
    """One parameter tensor in scope.

    `shape` is the parameter as a matrix (O, I), or (H,) for a vector. `stored` is what the sketch keeps of its gradient:
    the same shape where the block is kept whole, (k_O, k_I) where it is projected on both sides.
    """

    name: str
    shape: tuple[int, ...]
    stored: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.stored)

    @property
    def sketched(self) -> bool:
        return self.shape != self.stored


@dataclass(frozen=True)
class Layout:
    """Which parameters, in which order, under which sketch: the one owner of what a gradient row's numbers mean."""

    blocks: tuple[Block, ...]
    sketch_seed: int = 0

    @property
    def size(self) -> int:
        """D, the numbers in a row."""
        return self.offsets[-1]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each block starts in a row; one more entry than blocks, the last is D."""
        return tuple(accumulate((block.size for block in self.blocks), initial=0))

    def split(self, rows_ND: Tensor) -> dict[str, Tensor]:
        """[N, D] -> {block name: [N, *stored]}. Views, no copy."""
        if rows_ND.shape[-1] != self.size:
            raise LayoutMismatch(f"rows have {rows_ND.shape[-1]} numbers, this layout has {self.size}: they come from another index")
        ends = self.offsets
        return {block.name: rows_ND[..., ends[i] : ends[i + 1]].unflatten(-1, block.stored) for i, block in enumerate(self.blocks)}

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """{block name: [N, *stored]} -> [N, D], in the layout's order."""
        missing = [block.name for block in self.blocks if block.name not in parts]
        if missing:
            raise LayoutMismatch(f"no part given for {missing[:3]}{'...' if len(missing) > 3 else ''}")
        return torch.cat([parts[block.name].flatten(-len(block.stored)) for block in self.blocks], dim=-1)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def check(self, other: Layout) -> None:
        """Raise LayoutMismatch unless `other` is this layout."""
        if self.fingerprint == other.fingerprint:
            return
        mine, theirs = ({b.name: b for b in layout.blocks} for layout in (self, other))
        differ = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        what = f"blocks differ: {', '.join(differ[:3])}" if differ else "the order of blocks or the sketch seed differs"
        raise LayoutMismatch(
            f"layout {self.fingerprint} against {other.fingerprint}: {what}. "
            "Both sides must come from the same model, scope and sketch; index again with the options of the first."
        )

    def to_json(self) -> dict[str, Any]:
        return {"sketch_seed": self.sketch_seed, "blocks": [asdict(block) for block in self.blocks]}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Layout:
        blocks = tuple(Block(b["name"], tuple(b["shape"]), tuple(b["stored"])) for b in value["blocks"])
        return Layout(blocks=blocks, sketch_seed=int(value["sketch_seed"]))


@dataclass(frozen=True)
class Factors:
    """The gradient of each row of a batch with respect to one matrix W (O x I), kept factored: `G_b = sum_t g_bt (x) a_bt`.

    `a_BTI` is the layer's input and `g_BTO` the derivative of the row's loss with respect to its output. Mask, projection,
    scaling, an eigenbasis: each is a linear map on one side, so each is a call of `map`.
    """

    a_BTI: Tensor
    g_BTO: Tensor

    def dense(self) -> Tensor:
        """[B, O, I]. Cost B T O I multiplications."""
        return self.g_BTO.transpose(-2, -1) @ self.a_BTI

    def map(self, left_KO: Tensor | None = None, right_KI: Tensor | None = None) -> Factors:
        """The factors of `left @ G @ right'`. Cost B T (K O + K I)."""
        return Factors(
            a_BTI=self.a_BTI if right_KI is None else self.a_BTI @ right_KI.T,
            g_BTO=self.g_BTO if left_KO is None else self.g_BTO @ left_KO.T,
        )

    def per_token(self) -> Tensor:
        """[B, T, O, I]: each position's own term; they add up to `dense()`."""
        return self.g_BTO.unsqueeze(-1) * self.a_BTI.unsqueeze(-2)

    def squared_norm(self) -> Tensor:
        """[B] `||G_b||_F^2 = sum_tt' (g_t . g_t') (a_t . a_t')`, by the cheaper of the Gram matrices and the dense gradient.

        Cost B T^2 (O + I) or B T O I; the choice does not change the number.
        """
        n_positions, n_inputs = self.a_BTI.shape[-2:]
        n_outputs = self.g_BTO.shape[-1]
        if n_positions * (n_outputs + n_inputs) < n_outputs * n_inputs:
            return ((self.a_BTI @ self.a_BTI.mT) * (self.g_BTO @ self.g_BTO.mT)).sum((-2, -1))
        return self.dense().square().sum((-2, -1))


# ---------------------------------------------------------------------------------------------------------- index


@runtime_checkable
class Index(Protocol):
    """Features of rows that a method can score with: on disk for the training rows, in memory for queries.

    Positions count the live rows (no tombstones) from 0. Features, where stored:
        "gradient"         [D]  sketched gradient of the row's measure, in `layout`
        "representation"   [H]  last layer's hidden state (after the final norm) at the last prompt token
        "representation_response" [H]  the same, mean over the response tokens' positions
    Training rows carry the gradient of their *loss*, queries the gradient of their *measure*: `gradient_of` says which.
    """

    @property
    def layout(self) -> Layout: ...

    @property
    def gradient_of(self) -> str: ...

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def features(self) -> frozenset[str]:
        """Names that `blocks` and `take` accept."""
        ...

    def blocks(self, feature: str) -> Iterator[tuple[int, Tensor]]:
        """(position of the first row, [n, D] float32) in order, block by block: the whole feature, never all in memory at once."""
        ...

    def take(self, feature: str, positions: Sequence[int] | np.ndarray) -> Tensor:
        """[len(positions), D] float32, in the order asked for."""
        ...

    def products(self, feature: str, queries_QD: Tensor, *, scale_N: Tensor | None = None) -> Tensor:
        """[Q, N] float32 inner products with every row, times the row's scale: the scan. NaN for a row stored as bad."""
        ...

    def column(self, name: str) -> np.ndarray:
        """[N] one column of the row table: prompt, response, group, source, row, label, loss, n_tokens, n_loss_tokens, bad, ..."""
        ...

    def members(self, role: MemberRole) -> tuple[Member, ...]:
        """Further indexes of the same rows, in the order of training; empty where there are none."""
        ...

    def __len__(self) -> int: ...


MemberRole = Literal["checkpoint", "base", "seed", "adam", "second_moment"]
"""Why a run has a further index of its rows: at another checkpoint; at the model before fine-tuning; under another sketch seed (and
perhaps from another training seed); of Adam's update for each row in place of its gradient (LESS); of gradients divided by the
root of the optimizer's second moment before the sketch (TrackStar)."""


@dataclass(frozen=True)
class Member:
    """A further index of the same rows. Queries have members of the same names: a method pairs them by name."""

    name: str
    role: MemberRole
    index: Index
    step: int | None = None
    learning_rate: float | None = None  # at that step: what TracIn and LESS weigh a checkpoint by


SolveStatus = Literal["closed_form", "converged", "max_steps", "diverged"]


@dataclass(frozen=True)
class Solve:
    """An inverse-Hessian-vector product that says how it ended.

    `residual_K` is `||(C + lambda) x - b|| / ||b||` of each right-hand side, on the operator that `residual_of` names; None where it was
    not taken. A closed form is exact on its own matrix by definition: what says something is its residual on the reference operator.
    `facts` are further numbers that decided the value, named by the solver's docstring (LiSSA's scale).
    """

    value: Tensor
    status: SolveStatus
    steps: int = 0
    residual_K: Tensor | None = None
    residual_of: str = ""
    facts: Mapping[str, float] = field(default_factory=dict[str, float])


# --------------------------------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class Scores:
    """`values_QN[q, n]`: the predicted change of query q's measure if row n were trained on once more.

    Positive: a proponent, the row pushed the model towards this output. `unit` is "nats" where the number predicts a
    change; None where the method only ranks (cosine, RepSim, BM25). NaN marks a row that could not be scored.
    """

    values_QN: np.ndarray
    query_ids: tuple[str, ...]
    train_ids: tuple[str, ...]
    method: str
    unit: str | None
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])
    standard_errors_QN: np.ndarray | None = None

    def __post_init__(self) -> None:
        expected = (len(self.query_ids), len(self.train_ids))
        assert self.values_QN.shape == expected, f"scores are {self.values_QN.shape}, ids say {expected}"

    def query(self, query: int | str) -> np.ndarray:
        """[N] the scores of one query, by position or id."""
        return self.values_QN[query if isinstance(query, int) else self.query_ids.index(query)]

    def top(self, query: int | str = 0, k: int = 10) -> list[tuple[str, float]]:
        """The k strongest proponents, best first; equal scores stand in the order of the rows; NaN never ranks."""
        values = self.query(query)
        order = np.argsort(-np.where(np.isnan(values), -np.inf, values), kind="stable")[:k]
        return [(self.train_ids[i], float(values[i])) for i in order if not np.isnan(values[i])]

    def to_pandas(self) -> pd.DataFrame:
        """One row per (query, training row), best first within a query, NaN last."""
        import pandas as pd

        n_queries, n_rows = self.values_QN.shape
        order_QN = np.argsort(-np.nan_to_num(self.values_QN, nan=-np.inf), axis=1, kind="stable")
        columns = {
            "query": np.repeat(self.query_ids, n_rows),
            "id": np.asarray(self.train_ids)[order_QN].ravel(),
            "score": np.take_along_axis(self.values_QN, order_QN, axis=1).ravel(),
            "method": np.repeat(self.method, n_queries * n_rows),
        }
        return pd.DataFrame(columns)


FindingStatus = Literal["ok", "warn", "fail", "unknown"]


@dataclass(frozen=True)
class Finding:
    """One audited fact: what was measured, how surely, and what to do about it."""

    name: str
    status: FindingStatus
    because: str
    value: float | None = None
    unit: str | None = None
    interval: tuple[float, float] | None = None
    n: int | None = None
    next_step: str | None = None

    def to_json(self) -> dict[str, Any]:
        """What is no number (NaN, infinity) is null: JSON has no word for it."""
        value = self.value if self.value is not None and math.isfinite(self.value) else None
        known = self.interval is not None and all(map(math.isfinite, self.interval))
        return {**asdict(self), "value": value, "interval": list(self.interval) if self.interval is not None and known else None}


SUPPORTED, CONTRADICTED = 0.8, 0.2
"""A verdict's word: `supported` from the one probability on, `contradicted` up to the other, `weak` between them."""


VerdictWord = Literal["supported", "weak", "contradicted", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """Whether a query's trace can be believed: a probability, a word for it, and the findings that decided it.

    The probability is that removing the named rows changes the answer more than removing as many random ones. It is None where removal
    itself was measured, and where nothing that bears on it was (`unknown`).
    """

    query_id: str
    status: VerdictWord
    probability: float | None = None
    findings: tuple[Finding, ...] = ()


TruthKind = Literal["cold", "warm", "proximal", "pbrf", "tail_patch"]
"""What was done with the rows that a design keeps: trained from the start; from the final weights on; moved to the minimum of the proximal
objective, or of the proximal Bregman objective, near the final weights; or one step taken. The kinds are never mixed in one figure."""


@dataclass(frozen=True)
class Truth:
    """Counterfactual outcomes: for each design (a set of kept rows), seed and query, the measure after training on it.

    NaN: not measured, or worth nothing because its training diverged (`diverged_DS` says which): never averaged in. `designs` names each
    set of rows ("half/17", "all", "without/ID"); `recipe` is how it was trained.
    """

    outcomes_DSQ: np.ndarray
    kept_DN: np.ndarray  # bool
    train_ids: tuple[str, ...]
    query_ids: tuple[str, ...]
    seeds: tuple[int, ...]
    kind: TruthKind
    unit: str | None
    designs: tuple[str, ...] = ()
    diverged_DS: np.ndarray | None = None  # bool
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])
    noise_ceiling: float | None = None

    def __post_init__(self) -> None:
        expected = (len(self.kept_DN), len(self.seeds), len(self.query_ids))
        assert self.outcomes_DSQ.shape == expected, f"outcomes are {self.outcomes_DSQ.shape}, designs, seeds and queries say {expected}"
        assert self.kept_DN.shape[1:] == (len(self.train_ids),), f"kept rows are {self.kept_DN.shape}, {len(self.train_ids)} ids"


# ------------------------------------------------------------------------------------------------------ protocols


State = Mapping[str, Tensor]
"""What `fit` learned: plain tensors, so that it can be saved, moved and compared. Empty where there is nothing to learn."""

Labels = Literal["true", "sampled", "resampled"]
"""Whose gradients make a Fisher matrix: the rows' own targets (the empirical Fisher), or targets drawn from the model's own prediction at
each position (the true Fisher, which for a softmax is the Gauss-Newton matrix). "resampled" are drawn once more, independently."""


class Source(Protocol):
    """What a curvature is fitted on: gradient rows in a layout, block by block. An index is one; `len` counts its rows."""

    @property
    def layout(self) -> Layout: ...

    def blocks(self, feature: str) -> Iterator[tuple[int, Tensor]]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class FactorBatch:
    """One batch of training rows by their factors: for each block the inputs and output gradients of every position.

    Blocks that read the same activation share one `a_BTI` tensor, the same object. A vector (a bias, a norm's weight) is a matrix of one
    column: its `a` is ones [B, T, 1]. Padding is zero in `g`; `used_BT` marks what is no padding, which a covariance averages over.
    """

    positions: Sequence[int]
    factors: Mapping[str, Factors]
    used_BT: Tensor


@runtime_checkable
class ModelSource(Source, Protocol):
    """A live model with its training rows: gradients whole (nothing sketched), recomputed by a pass whenever they are asked for."""

    def factors(self, labels: Labels, *, positions: int | None = None) -> Iterator[FactorBatch]:
        """Every row once, batch by batch; with `positions`, only batches that have about as many of them, evenly spread over all.

        One forward and one backward pass over the rows that are given.
        """
        ...

    def rows(self, labels: Labels) -> Iterator[tuple[Sequence[int], Tensor]]:
        """(positions, [B, D]) for every row once, in batches."""
        ...

    def gauss_newton(self, v_KD: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """[K, D] `(1/n) sum_n J_n' H_n J_n v` over all rows or the n chosen ones: the reference operator. A pass and more for each v."""
        ...


class Curvature(Protocol):
    """`(C + lambda)^-1` of the training loss. The object is its frozen config, its state plain tensors, the source is live.

    C is that of the mean over rows of the row's summed loss. `state["damping"]` is [blocks] float64: the absolute lambda of each block
    of the layout, in C's unit (the same number everywhere for a joint matrix). `name`, `summary`, `reference`, `cost` are class
    attributes, `damping` a field (a number, or a rule as text: see `headwater.curvature.damping`).
    """

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def damping(self) -> float | str: ...

    def fit(self, source: Source) -> State: ...

    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        """`b_KD` [K, D] in the source's layout -> value [K, D]. Raises LayoutMismatch where D differs."""
        ...


@runtime_checkable
class Method(Protocol):
    """A way to score every training row for every query.

    `fit` sees training data only, so its state can be kept; `score` sees the queries. `requires` names the features that
    both indexes must have; `summary` is one line for `headwater methods`.
    """

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str | None: ...

    @property
    def requires(self) -> frozenset[str]: ...

    def fit(self, index: Index) -> State: ...

    def score(self, state: State, index: Index, queries: Index) -> Scores: ...


def with_values(scores: Scores, values_QN: np.ndarray, **changes: Any) -> Scores:
    """The same scores with other numbers (a correction, a mask); ids and provenance stay."""
    return replace(scores, values_QN=values_QN, **changes)
