"""Which sets of rows to train on: pure functions of sizes, scores or groups, and of a seed.

D designs · N training rows · K rows of a set
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from headwater.types import DataError, UsageError

HALF, LEAVE_OUT, RANDOM = range(3)  # a stream of random numbers for each kind: random rows of seed 0 are no half of seed 0


@dataclass(frozen=True, eq=False)
class Designs:
    """Named sets of rows: `kept_DN[d, n]` says whether design d trains on row n. `+` puts two lists of designs one after the other."""

    names: tuple[str, ...]
    kept_DN: np.ndarray  # bool

    def __post_init__(self) -> None:
        assert self.kept_DN.shape[:1] == (len(self.names),), f"{len(self.names)} names for kept rows of shape {self.kept_DN.shape}"
        assert len(set(self.names)) == len(self.names), "two designs have one name"

    def __len__(self) -> int:
        return len(self.names)

    def __add__(self, other: Designs) -> Designs:
        return Designs(self.names + other.names, np.concatenate([self.kept_DN, other.kept_DN]))


def all_rows(n_rows: int) -> Designs:
    """The one design "all": nothing is left out (k = 0). Its spread over seeds is what chance alone does."""
    return Designs(("all",), np.ones((1, n_rows), dtype=bool))


def subsets(n_rows: int, count: int, *, fraction: float = 0.5, seed: int = 0) -> Designs:
    """`count` random sets of `round(fraction N)` rows: what LDS is taken over (Park et al. 2023, section 2).

    Set d depends on seed, fraction, N and d alone: asking for more of them keeps those there were. Raises UsageError where a set would
    have no rows or all of them.
    """
    size = round(fraction * n_rows)
    if not 0 < size < n_rows:
        raise UsageError(
            f"a share of {fraction:g} of {n_rows} rows is {size} rows, expected at least 1 and at most {n_rows - 1}: choose a fraction "
            "between 0 and 1, or k = 0 (the design 'all') to train on every row"
        )
    _check_count(count)
    drawn = [_drawn(n_rows, size, (seed, HALF, d)) for d in range(count)]
    name = "half" if fraction == 0.5 else f"share-{fraction:g}"
    return Designs(tuple(f"{name}/{d}" for d in range(count)), _masks(n_rows, drawn))


def leave_out(n_rows: int, count: int, *, k: int, seed: int = 0) -> Designs:
    """`count` sets without k random rows each. Every row is left out once before any is left out again (but for N modulo k of them).

    k = 1 and count = N leaves each row out once. More of them keep those there were.
    """
    _check_size(k, n_rows)
    _check_count(count)
    a_round = n_rows // k
    rounds = [np.random.default_rng((seed, LEAVE_OUT, r)).permutation(n_rows) for r in range(-(-count // a_round))]
    gone = [rounds[d // a_round][d % a_round * k :][:k] for d in range(count)]
    return Designs(tuple(f"without-{k}/{d}" for d in range(count)), ~_masks(n_rows, gone))


def leave_each_out(ids: Sequence[str], positions: Sequence[int] | None = None) -> Designs:
    """Leave-one-out: a design "without/ID" for each row, or for those at `positions`."""
    positions = range(len(ids)) if positions is None else positions
    return Designs(tuple(f"without/{ids[n]}" for n in positions), ~_masks(len(ids), [np.array([n]) for n in positions]))


def leave_groups_out(groups: Sequence[str]) -> Designs:
    """A design "without-group/NAME" for each distinct group, in the order of their first rows. Raises DataError where there is only one."""
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        raise DataError(f"all {len(groups)} rows are of one group ({names[0] if names else ''!r}): without it no row is left to train on")
    codes_N = np.asarray(groups, dtype=object)
    return Designs(tuple(f"without-group/{name}" for name in names), np.stack([codes_N != name for name in names]))


def without_top(scores_N: np.ndarray, k: int, *, label: str = "") -> Designs:
    """Without the k rows of the highest score; equal scores in the order of the rows, NaN never. `label` tells score vectors apart."""
    return _by_score(-_vector(scores_N), k, f"top/{k}", label)


def without_bottom(scores_N: np.ndarray, k: int, *, label: str = "") -> Designs:
    """Without the k rows of the lowest score."""
    return _by_score(_vector(scores_N), k, f"bottom/{k}", label)


def without_zero(scores_N: np.ndarray, k: int, *, label: str = "") -> Designs:
    """Without the k rows whose score is nearest to 0: those that should not matter."""
    return _by_score(np.abs(_vector(scores_N)), k, f"zero/{k}", label)


def without_random(n_rows: int, k: int, *, draws: int = 1, seed: int = 0) -> Designs:
    """`draws` designs without k random rows each, drawn apart from one another: the control of the three above."""
    _check_size(k, n_rows)
    _check_count(draws)
    gone = [_drawn(n_rows, k, (seed, RANDOM, d)) for d in range(draws)]
    return Designs(tuple(f"random/{k}/{d}" for d in range(draws)), ~_masks(n_rows, gone))


# --------------------------------------------------------------------------------------------------------- by name


@dataclass(frozen=True, eq=False)
class Corpus:
    """What a design may depend on: ids, groups and, where there are any, scores: [N], or [Q, N] with a label for each line."""

    ids: Sequence[str]
    groups: Sequence[str]
    scores_QN: np.ndarray | None = None
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Options:
    count: int = 100
    fraction: float = 0.5
    k: int | None = None
    seed: int = 0


def make_designs(kind: str, corpus: Corpus, options: Options) -> Designs:
    """The designs of a kind in `KINDS`. Raises UsageError for another kind, or where an option it needs is not given."""
    if kind not in KINDS:
        raise UsageError(f"there is no design {kind!r}; there are: {', '.join(KINDS)}")
    return KINDS[kind](corpus, options)


def _removals(by_score: Callable[..., Designs]) -> Callable[[Corpus, Options], Designs]:
    def designs(corpus: Corpus, options: Options) -> Designs:
        if corpus.scores_QN is None:
            raise UsageError("this design leaves out rows by their score, and no scores are given (a .npy file of [N] or [Q, N] numbers)")
        lines_QN = np.atleast_2d(corpus.scores_QN)
        if lines_QN.ndim != 2 or lines_QN.shape[1] != len(corpus.ids):
            raise DataError(f"scores are of shape {np.shape(corpus.scores_QN)}, expected a number for each of the {len(corpus.ids)} rows")
        labels = corpus.labels or [f"{q}" if len(lines_QN) > 1 else "" for q in range(len(lines_QN))]
        made = [by_score(line_N, _needed(options), label=label) for line_N, label in zip(lines_QN, labels, strict=True)]
        return sum(made[1:], made[0])

    return designs


def _needed(options: Options) -> int:
    if options.k is None:
        raise UsageError("how many rows this design leaves out is not given: name k")
    return options.k


KINDS: dict[str, Callable[[Corpus, Options], Designs]] = {
    "half": lambda corpus, options: subsets(len(corpus.ids), options.count, seed=options.seed),
    "share": lambda corpus, options: subsets(len(corpus.ids), options.count, fraction=options.fraction, seed=options.seed),
    "leave-out": lambda corpus, options: leave_out(len(corpus.ids), options.count, k=_needed(options), seed=options.seed),
    "leave-each-out": lambda corpus, options: leave_each_out(corpus.ids),
    "leave-group-out": lambda corpus, options: leave_groups_out(corpus.groups),
    "top": _removals(without_top),
    "bottom": _removals(without_bottom),
    "zero": _removals(without_zero),
    "random": lambda corpus, options: without_random(len(corpus.ids), _needed(options), draws=options.count, seed=options.seed),
    "all": lambda corpus, options: all_rows(len(corpus.ids)),
}


# --------------------------------------------------------------------------------------------------------- plumbing


def _drawn(n_rows: int, k: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(n_rows)[:k]


def _masks(n_rows: int, sets: Sequence[np.ndarray]) -> np.ndarray:
    """[D, N] true in each set."""
    masks_DN = np.zeros((len(sets), n_rows), dtype=bool)
    for mask_N, positions in zip(masks_DN, sets, strict=True):
        mask_N[positions] = True
    return masks_DN


def _vector(scores_N: np.ndarray) -> np.ndarray:
    values_N = np.asarray(scores_N, dtype=np.float64)
    if values_N.ndim != 1:
        raise DataError(f"scores are of shape {values_N.shape}, expected one number for each row")
    return values_N


def _by_score(rank_N: np.ndarray, k: int, name: str, label: str) -> Designs:
    """Without the k smallest of `rank_N`."""
    _check_size(k, len(rank_N))
    known = np.flatnonzero(~np.isnan(rank_N))
    if len(known) < k:
        raise DataError(f"{len(known)} of {len(rank_N)} rows have a score, and {k} are to be left out by it: ask for fewer")
    gone = known[np.argsort(rank_N[known], kind="stable")[:k]]
    return Designs((f"{name}/{label}" if label else name,), ~_masks(len(rank_N), [gone]))


def _check_size(k: int, n_rows: int) -> None:
    if not 0 < k < n_rows:
        raise UsageError(f"k is {k} of {n_rows} rows, expected 1 to {n_rows - 1}: at least one row must be left to train on")


def _check_count(count: int) -> None:
    if count < 1:
        raise UsageError(f"{count} sets of rows were asked for, expected 1 or more")
