"""Recipes: what is given where wins over what, what is wrong is named, and what is written repeats."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.recipe import DEFAULT_METHODS, IndexRecipe, TraceRecipe, resolved
from headwater.types import UsageError

NEEDED = {"model.path": "some/model", "data.source": "some-data"}


def test_a_file_then_flags_then_overrides(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {path: m}\ndata: {source: d}\nsketch: {rank: 1, seed: 1, whole_below: 1}\n")
    recipe = IndexRecipe.build(config=path, flags={"sketch.seed": 2, "sketch.whole_below": 2}, overrides=["sketch.whole_below=3"])
    assert (recipe.sketch.rank, recipe.sketch.seed, recipe.sketch.whole_below) == (1, 2, 3)


def test_a_flag_that_is_not_given_changes_nothing_and_zero_is_given() -> None:
    recipe = IndexRecipe.build(flags={**NEEDED, "sketch.rank": None, "sketch.whole_below": 0})
    assert recipe.sketch.rank == 16
    assert recipe.sketch.whole_below == 0
    assert IndexRecipe.build(flags=NEEDED, overrides=["sketch.rank=null"]).sketch.rank is None


@given(rank=st.none() | st.integers(1, 999), patterns=st.lists(st.text(st.characters(exclude_categories=["Cs"]))), merge=st.booleans())
def test_what_is_written_is_what_is_read(rank: int | None, patterns: list[str], merge: bool) -> None:
    import yaml

    flags = {**NEEDED, "scope.include": patterns, "model.merge": merge}
    recipe = IndexRecipe.build(flags=flags, overrides=[f"sketch.rank={'null' if rank is None else rank}"])
    assert IndexRecipe.parse(yaml.safe_load(recipe.to_yaml())) == recipe
    assert recipe.scope.include == tuple(patterns)


def test_paths_hold_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    recipe = IndexRecipe.build(flags={**NEEDED, "data.source": "rows.jsonl", "data.chat_template": "{{ messages }}" * 200})
    assert recipe.data.source == str(tmp_path / "rows.jsonl")
    assert recipe.data.chat_template == "{{ messages }}" * 200
    assert recipe.model.path == "some/model"  # a hub id stays one
    assert resolved("\0") == "\0"


def test_every_wrong_option_is_named_with_what_would_be_right() -> None:
    with pytest.raises(UsageError) as caught:
        IndexRecipe.build(flags={"model.path": "m", "sketch.rank": 0, "store.dtype": "int3", "colour": 1, "engine.tokens": 5})
    message = str(caught.value)
    for part in ("data is not given", "sketch.rank is 0", "'int3'", "bfloat16", "no option colour", "engine.token_budget"):
        assert part in message


@pytest.mark.parametrize("override", ["sketch.rank", "model.path.x=1", "sketch.rank=[", "sketch=3"])
def test_overrides_that_are_none(override: str) -> None:
    with pytest.raises(UsageError):
        IndexRecipe.build(flags=NEEDED, overrides=[override])


@pytest.mark.parametrize("content", [b"- a\n- b\n", b"text", b"a: [", b"\xff\xfe\x00", b"1: 2\n"])
def test_files_that_are_no_recipe(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=r"recipe\.yaml|options"):
        IndexRecipe.build(config=tmp_path / "recipe.yaml")


def test_methods_by_name_or_with_options() -> None:
    assert list(TraceRecipe.parse({}).methods) == list(DEFAULT_METHODS)
    assert TraceRecipe.parse({"methods": ["loss", "random"]}).methods == {"loss": {}, "random": {}}
    assert TraceRecipe.parse({"methods": {"loss": None, "random": {"seed": 1}}}).methods == {"loss": {}, "random": {"seed": 1}}
    for wrong in ("loss", [], {}, {"random": 3}):
        with pytest.raises(UsageError, match="methods"):
            TraceRecipe.parse({"methods": wrong})


def test_the_primary_method_is_the_first_and_survives_sorted_json() -> None:
    """trace.json sorts its keys: the choice has to be made before."""
    recipe = TraceRecipe.parse({"methods": ["random", "loss"]})
    assert recipe.primary == "random"
    again = TraceRecipe.parse({**recipe.model_dump(mode="json"), "methods": {"loss": {}, "random": {}}})
    assert again == recipe
    with pytest.raises(UsageError, match="loss, random"):
        TraceRecipe.parse({"methods": ["loss", "random"], "primary": "nope"})


def test_defaults_are_not_shared() -> None:
    TraceRecipe.parse({}).methods["loss"]["seed"] = 1
    assert TraceRecipe.parse({}).methods["loss"] == {}
