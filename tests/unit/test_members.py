"""Further indexes of the same rows: paired with the queries by name, read from a run folder, built from a finished training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from headwater.index.memory import MemoryIndex
from headwater.methods.shared import check, member_roles, pairs
from headwater.testing import Toy, toy_queries, toy_rows
from headwater.types import Layout, LayoutMismatch, Member, MemberRole, UsageError


@dataclass(frozen=True)
class Needs:
    """As much of a method as `check` looks at."""

    requires: frozenset[str]
    name = "needs"


def with_members(toy: Toy, names: tuple[str, ...], role: MemberRole = "checkpoint", layout: Layout | None = None) -> MemoryIndex:
    inner = replace(toy, layout=layout or toy.layout)
    members = [Member(name, role, inner.index(), step=i, learning_rate=0.1 / (i + 1)) for i, name in enumerate(names)]
    return MemoryIndex(toy.ids, toy.layout, toy.gradient_of, toy.features, toy.columns, members)


def test_members_are_paired_with_the_queries_by_name_in_the_order_of_training() -> None:
    index = with_members(toy_rows(5, seed=0), ("checkpoint-2", "checkpoint-10"))
    queries = with_members(toy_queries(2, seed=1), ("checkpoint-10", "checkpoint-2"))
    found = pairs(index, queries, "checkpoint")
    assert [member.name for member, _ in found] == ["checkpoint-2", "checkpoint-10"]
    assert [query is queries.members("checkpoint")[i].index for (_, query), i in zip(found, (1, 0), strict=True)] == [True, True]
    assert [member.learning_rate for member, _ in found] == [0.1, 0.05]


@pytest.mark.parametrize("role", ["checkpoint", "base", "seed", "adam", "second_moment"])
def test_a_missing_member_is_named_with_the_command_that_builds_it(role: str) -> None:
    method = Needs(frozenset({"gradient", f"members:{role}"}))
    assert member_roles(method) == (role,)
    with pytest.raises(UsageError, match=f"no member of role '{role}'.*headwater index .*--members {role}"):
        check(method, toy_rows(5, seed=0).index(), toy_queries(2, seed=1).index())


def test_queries_that_lack_a_member_are_refused() -> None:
    index, queries = with_members(toy_rows(5, seed=0), ("a", "b")), with_members(toy_queries(2, seed=1), ("a",))
    with pytest.raises(UsageError, match="the queries lack b"):
        check(Needs(frozenset({"members:checkpoint"})), index, queries)


def test_a_pair_of_two_layouts_is_refused() -> None:
    rows, asked = toy_rows(5, seed=0), toy_queries(2, seed=1)
    other: Any = replace(asked.layout, sketch_seed=9)
    with pytest.raises(LayoutMismatch):
        check(Needs(frozenset({"members:seed"})), with_members(rows, ("s",), "seed"), with_members(asked, ("s",), "seed", other))


def test_a_role_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match="role checkpoints; there are: checkpoint, base"):
        member_roles(Needs(frozenset({"members:checkpoints"})))
