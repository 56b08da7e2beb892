"""What the methods share: checks before any number is computed, cosines, and the one place where Scores are put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
import xxhash
from torch import Tensor

from headwater.types import Index, IntegrityError, Member, MemberRole, ModelSource, Scores, State, UsageError

Text = Literal["prompt", "response", "both"]
Weights = Literal["learning_rate", "equal"]

STORED_WHERE = {"rept": "`--set store.rept_layer=-1`: -1 is the last layer"}  # features that an index has where it is told to

MEMBERS = "members:"  # in a method's `requires`, before the role of the members it needs
ROLES: dict[MemberRole, str] = {
    "checkpoint": "the rows at earlier checkpoints of the training",
    "base": "the rows at the model before fine-tuning",
    "seed": "the rows under other sketch seeds",
    "adam": "Adam's update for each row",
    "second_moment": "the rows' gradients over the root of the optimizer's second moment",
}
_FROM_RUN = "`headwater index --from-run OUTPUT_DIR DATA -o RUN --members {}`, OUTPUT_DIR being the folder that the Trainer wrote"
HOW_TO_BUILD: dict[MemberRole, str] = {
    **{role: _FROM_RUN.format(role) + "." for role in get_args(MemberRole)},
    "base": _FROM_RUN.format("base") + " (for a full fine-tuning with `--base MODEL`, the model that it started from).",
    "seed": "`headwater index MODEL DATA -o RUN --members seed --sketch-seeds 1,2`.",
}


def check(method: Any, index: Index, queries: Index) -> None:
    """Raise unless both sides have what the method needs, mean the same parameters, and stand on the right side.

    UsageError: a feature or a member that is not there, or query and train swapped. LayoutMismatch: gradients of other parameters.
    """
    roles = wanted_roles(method, index)
    check_features(method, index, "the index")
    check_features(method, queries, "the queries")
    of_gradients = any(feature.startswith("gradient") for feature in method.requires)
    if of_gradients or roles:
        _check_sides(method.name, index, queries)
    if of_gradients:
        index.layout.check(queries.layout)
    for role in roles:
        pairs(index, queries, role)


def check_features(method: Any, side: Index, name: str) -> None:
    """Raise UsageError unless a side has the features that the method needs."""
    missing = sorted(feature for feature in method.requires - side.features if not feature.startswith(MEMBERS))
    if missing:
        with_it = "".join(f" ({STORED_WHERE[feature]})" for feature in missing if feature in STORED_WHERE)
        raise UsageError(
            f"{method.name} needs {', '.join(missing)}, missing in {name} (there: {', '.join(sorted(side.features)) or 'nothing'}). "
            f"Index again with it{with_it}, or choose another method: `headwater methods` says what each needs."
        )


# -------------------------------------------------------------------------------------------------------- members


def member_roles(method: Any, *, optional: bool = False) -> tuple[MemberRole, ...]:
    """The roles of members that a method needs: "members:checkpoint" in its `requires` asks for the role checkpoint.

    With `optional` also those that it uses where there are any, which it names in `may_use` in the same way.
    """
    named = method.requires | (getattr(method, "may_use", frozenset[str]()) if optional else frozenset())
    asked = sorted(name.removeprefix(MEMBERS) for name in named if name.startswith(MEMBERS))
    if unknown := sorted(set(asked) - set(get_args(MemberRole))):
        raise UsageError(f"{method.name} requires members of role {', '.join(unknown)}; there are: {', '.join(get_args(MemberRole))}")
    return tuple(role for role in get_args(MemberRole) if role in asked)


def wanted_roles(method: Any, index: Index) -> tuple[MemberRole, ...]:
    """The roles on which the queries must be computed too: those that the method needs, and those of its `may_use` that the index has."""
    needed = member_roles(method)
    return tuple(role for role in member_roles(method, optional=True) if role in needed or index.members(role))


def pairs(index: Index, queries: Index, role: MemberRole) -> list[tuple[Member, Index]]:
    """[(member of the index, the queries as that member's model sees them)], paired by name, in the order of training.

    UsageError where the index has no such member, or the queries lack one of its names; LayoutMismatch where the two sides of a pair are
    of other parameters or sketches.
    """
    members = members_of(index, role)
    asked = {member.name: member.index for member in queries.members(role)}
    if missing := [member.name for member in members if member.name not in asked]:
        raise UsageError(
            f"the index has the {role} members {', '.join(member.name for member in members)}, the queries lack {', '.join(missing)}. "
            "Likely cause: the queries were computed on the final model alone. `headwater trace` computes them on each member that a "
            f'method names in its `requires` ("{MEMBERS}{role}").'
        )
    for member in members:
        _check_same_rows(member, index)
        member.index.layout.check(asked[member.name].layout)
    return [(member, asked[member.name]) for member in members]


def pairs_if_any(index: Index, queries: Index, role: MemberRole) -> list[tuple[Member, Index]]:
    """`pairs` for a role that a method can do without: none where the index has no such member."""
    return pairs(index, queries, role) if index.members(role) else []


def members_of(index: Index, role: MemberRole) -> tuple[Member, ...]:
    """The index's members of a role. UsageError, with the command that builds them, where there is none."""
    if members := index.members(role):
        return members
    raise UsageError(f"the index has no member of role {role!r} ({ROLES[role]}). Build it: {HOW_TO_BUILD[role]}")


def step_sizes(members: Sequence[Member], weights: Weights) -> list[float]:
    """What each checkpoint counts: its learning rate, or 1. UsageError where a learning rate was not recorded."""
    if weights == "equal":
        return [1.0] * len(members)
    rates = [member.learning_rate for member in members if member.learning_rate is not None]
    if len(rates) < len(members):
        missing = [member.name for member in members if member.learning_rate is None]
        raise UsageError(
            f"members {', '.join(missing)} have no learning rate. Likely cause: the training's output folder had no trainer_state.json. "
            "Count every checkpoint alike with weights='equal', or build the members from a folder that has it."
        )
    return rates


def check_weights(method: str, weights: str) -> None:
    if weights not in get_args(Weights):
        raise UsageError(f"{method}: weights is {weights!r}, expected one of {', '.join(get_args(Weights))}")


def prefixed(name: str, state: State) -> dict[str, Tensor]:
    """A member's state as a part of the method's; that of a method that learns nothing leaves its name at least."""
    return {f"{name}/": torch.empty(0), **{f"{name}/{key}": tensor for key, tensor in state.items()}}


def part_of(state: State, name: str) -> State:
    """One member's state out of the method's. IntegrityError where it was fitted without that member."""
    if f"{name}/" not in state:
        raise IntegrityError(
            f"this state was fitted without the member {name!r}. Likely cause: the member was built since. Fit the method again."
        )
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in state.items() if key.startswith(f"{name}/")}


def _check_same_rows(member: Member, index: Index) -> None:
    if tuple(member.index.ids) != tuple(index.ids):
        raise IntegrityError(
            f"member {member.name!r} has {len(member.index)} rows, the index {len(index)}: not the same rows in the same order. "
            "Likely cause: rows were appended or removed since it was built. Build it again."
        )


def live(index: Index) -> Live:
    """The index with its model at hand. UsageError where it is only the stored rows."""
    if not isinstance(index, Live):
        raise UsageError(
            "this needs the model and the training rows themselves, and the index was opened without them. Trace with the model at hand "
            "(`headwater trace` does), or take mode 'stored', which works on the stored rows."
        )
    return index


@runtime_checkable
class Live(Protocol):
    """What an index offers beside `types.Index` when the model is at hand. Its feature "gradient_whole" has every number of a gradient."""

    @property
    def source(self) -> ModelSource: ...

    def hold(self, n_queries: int) -> Any:
        """Room for so many solved queries: `put(start, x_KD)` fills it, `held_products` multiplies it with every row."""
        ...

    def held_products(self, held: Any) -> Tensor: ...

    def sketch(self, whole_KD: Tensor) -> Tensor:
        """[K, D of the source's layout] -> [K, D of the index's layout], by the maps that made the stored rows."""
        ...


def _check_sides(name: str, index: Index, queries: Index) -> None:
    """Swapped sides give a score of the wrong sign or of the wrong thing, and nothing else shows it."""
    if (index.gradient_of, queries.gradient_of) != ("loss", "measure"):
        raise UsageError(
            f"{name} got rows with the gradient of their {index.gradient_of} and queries with their {queries.gradient_of}'s, expected "
            "loss and measure. Likely cause: index and queries are swapped in score(state, index, queries)."
        )


def make_scores(method: Any, values_QN: Tensor | np.ndarray, index: Index, queries: Index, **provenance: Any) -> Scores:
    """Scores in float32 under both sides' ids; the provenance says the method's options, the number of rows, and what is given."""
    return Scores(
        values_QN=np.asarray(values_QN, dtype=np.float32),
        query_ids=tuple(queries.ids),
        train_ids=tuple(index.ids),
        method=method.name,
        unit=method.unit,
        provenance={**asdict(method), "n_rows": len(index), **provenance},
    )


def same_for_every_query(values_N: np.ndarray, queries: Index) -> np.ndarray:
    """[N] -> [Q, N] float32: what a method says that looks at the training row alone."""
    return np.repeat(np.asarray(values_N, dtype=np.float32)[None], len(queries), axis=0)


# ---------------------------------------------------------------------------------------------------------- state


def rows_key(index: Index) -> Tensor:
    """[16] uint8: a hash of the ids in order. Kept in a state, so that a state fitted on other rows is noticed."""
    hasher = xxhash.xxh3_128()
    for row_id in index.ids:
        hasher.update(f"{row_id}\n".encode())
    return torch.from_numpy(np.frombuffer(hasher.digest(), dtype=np.uint8).copy())


def check_rows(state: State, index: Index) -> None:
    """Raise IntegrityError where `state` was fitted on other rows than these, or on these in another order."""
    if not torch.equal(state["rows"], rows_key(index)):
        raise IntegrityError(
            f"this state was fitted on other rows than the {len(index)} of this index. Likely cause: rows were appended or removed "
            "since. Fit the method again on the index as it is now."
        )


# -------------------------------------------------------------------------------------------------------- cosines


def whole(index: Index, feature: str) -> Tensor:
    """[Q, D] every row of a feature: for queries, which are few."""
    return index.take(feature, np.arange(len(index)))


def fit_norms(index: Index, feature: str) -> State:
    """{"norm": [N], "rows": key}. One pass over the feature, block by block; NaN for a bad row."""
    norms = [torch.linalg.vector_norm(block_ND, dim=1) for _, block_ND in index.blocks(feature)]
    return {"norm": torch.cat(norms) if norms else torch.zeros(0), "rows": rows_key(index)}


def cosines(state: State, index: Index, queries: Index, feature: str) -> Tensor:
    """[Q, N] `q . n / (|q| |n|)`. A vector of zeros has no direction: its cosine is 0, no evidence. NaN stays NaN."""
    check_rows(state, index)
    scale_N = divide(torch.ones_like(state["norm"]), state["norm"])
    return index.products(feature, unit_length(whole(queries, feature)), scale_N=scale_N)


def unit_length(rows_ND: Tensor) -> Tensor:
    return divide(rows_ND, torch.linalg.vector_norm(rows_ND, dim=-1, keepdim=True))


def divide(x: Tensor, by: Tensor) -> Tensor:
    """x / by, and 0 where `by` is 0."""
    return torch.where(by == 0, torch.zeros_like(x), x / by)


# ----------------------------------------------------------------------------------------------------------- text


def check_text(method: str, text: str) -> None:
    if text not in get_args(Text):
        raise UsageError(f"{method}: text is {text!r}, expected one of {', '.join(get_args(Text))}")


def texts(index: Index, text: Text) -> list[str]:
    """The text of every row that a text method compares: its prompt, its response, or one after the other."""
    if text == "both":
        return [f"{prompt}\n{response}" for prompt, response in zip(texts(index, "prompt"), texts(index, "response"), strict=True)]
    return _strings(index.column(text))


def _strings(column: Iterable[Any]) -> list[str]:
    return ["" if value is None else str(value) for value in column]
