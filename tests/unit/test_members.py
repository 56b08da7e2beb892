"""Further indexes of the same rows: paired with the queries by name, read from a run folder, built from a finished training."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from tests.e2e.conftest import ROWS as DATA
from tests.e2e.conftest import contents, write_rows
from tests.trainer import STEPS, encoded, make_trainer, train

import headwater
from headwater import HeadwaterCallback
from headwater.corpus import read_queries
from headwater.gradient.transform import SecondMoment
from headwater.index.members import plan_members
from headwater.index.memory import MemoryIndex
from headwater.index.queries import query_index, query_members
from headwater.index.read import StoredIndex
from headwater.index.tombstones import add_tombstones
from headwater.index.verify import verify
from headwater.index.write import Writer
from headwater.methods.shared import check, member_roles, pairs
from headwater.model import measures
from headwater.model.session import load_session
from headwater.recipe import IndexRecipe
from headwater.replay import replay
from headwater.testing import Toy, toy_queries, toy_rows
from headwater.training.optimizer import OURS, load_adam
from headwater.types import IntegrityError, Layout, LayoutMismatch, Member, MemberRole, UsageError


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


# ----------------------------------------------------------------------------------- built from a finished training


@dataclass(frozen=True)
class World:
    """A finished training with its data, and a run with every kind of member. Nobody writes into them."""

    out: Path
    data: Path
    run: Path

    def copy(self, folder: Path) -> Path:
        return shutil.copytree(self.run, folder / "run")


ROLES = ["checkpoint", "base", "adam", "second_moment", "seed"]
FEW: list[MemberRole] = ["checkpoint", "second_moment"]
OPTIONS: dict[str, Any] = {"store__dtype": "float32", "store__shard_rows": 8, "sketch__whole_below": 200, "sketch__rank": 4}


def index_all(out: Path, data: Path, run: Path, **options: Any) -> headwater.Run:
    return headwater.index(data=data, out=run, from_run=out, members__roles=ROLES, members__sketch_seeds=[7], **OPTIONS, **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("members")
    train(make_trainer(root / "out", callback=HeadwaterCallback(initial_weights=True)))
    data = write_rows(root / "train.jsonl", DATA)
    return World(root / "out", data, index_all(root / "out", data, root / "run").path)


def gradients(model: Path, world: World, run: Path, **changes: Any) -> torch.Tensor:
    """[N, D] the rows of an index of its own, made of a model by hand."""
    indexed = headwater.index(model, world.data, run, **{**OPTIONS, **changes}).index
    return indexed.take("gradient", range(len(indexed)))


def rows_of(index: Any) -> torch.Tensor:
    return index.take("gradient", range(len(index)))


def shards(run: Path) -> dict[str, bytes]:
    """The numbers and tables of the main index and of every member."""
    return {name: content for name, content in contents(run).items() if "shards" in name}


def test_every_kind_of_member_is_there_with_its_step_and_rate(world: World) -> None:
    index = headwater.load(world.run).index
    rates = [1e-2 * (STEPS + 1 - step) / STEPS for step in (3, 6, 8)]
    found = index.members("checkpoint")
    assert [(m.name, m.step) for m in found] == [("checkpoint-3", 3), ("checkpoint-6", 6), ("checkpoint-8", 8)]
    assert [m.learning_rate for m in found] == pytest.approx(rates)
    assert [(m.name, m.learning_rate) for m in index.members("adam")] == [
        (f"adam-{step}", pytest.approx(rate)) for step, rate in zip((3, 6, 8), rates, strict=True)
    ]
    assert [(m.name, m.step) for m in index.members("second_moment")] == [("second_moment", 8)]
    assert [m.name for m in index.members("base")] == ["base"]
    assert [m.index.layout.sketch_seed for m in index.members("seed")] == [7]
    table = headwater.load(world.run).members()
    assert table["name"].tolist() == [m.name for role in get_args(MemberRole) for m in index.members(role)]
    assert table["notes"][0] == ("learning rate 0.0075, recorded by HeadwaterCallback",)


def test_a_checkpoint_member_is_the_index_of_that_checkpoint(world: World, tmp_path: Path) -> None:
    index = headwater.load(world.run).index
    for member in index.members("checkpoint"):
        torch.testing.assert_close(rows_of(member.index), gradients(world.out / member.name, world, tmp_path / member.name), rtol=0, atol=0)
    assert not torch.equal(rows_of(index.members("checkpoint")[0].index), rows_of(index))
    assert index.members("checkpoint")[-1].index is index, "the last checkpoint is the final model: its rows are not computed twice"
    assert not (world.run / "members" / "checkpoint-8" / "index").exists()


def test_base_and_seed_members_are_the_first_weights_and_another_sketch(world: World, tmp_path: Path) -> None:
    index = headwater.load(world.run).index
    base = gradients(world.out / "headwater-initial", world, tmp_path / "base")
    torch.testing.assert_close(rows_of(index.members("base")[0].index), base, rtol=0, atol=0)
    seeded = gradients(world.out, world, tmp_path / "seed", sketch__seed=7)
    torch.testing.assert_close(rows_of(index.members("seed")[0].index), seeded, rtol=0, atol=0)


def test_an_adam_row_is_what_the_trainers_own_optimizer_would_do_with_it_next(world: World, tmp_path: Path) -> None:
    """The model's own loss on one row, its own backward pass, torch's AdamW from the Trainer's optimizer.pt. Nothing of ours is in it."""
    run = tmp_path / "whole"
    options = {**OPTIONS, "sketch__rank": None, "members__roles": ["adam"]}
    index = headwater.index(data=world.data, out=run, from_run=world.out, data__limit=3, **options).index
    member = index.members("adam")[1]
    folder = world.out / "checkpoint-6"
    got = member.index.layout.split(rows_of(member.index))
    for row in range(3):
        trainer = make_trainer(tmp_path / "again")
        trainer.model = model = type(trainer.model).from_pretrained(folder)
        inputs = {name: torch.tensor([value]) for name, value in encoded(trainer.processing_class, DATA[row]).items()}
        optimizer = trainer.create_optimizer()
        optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        for group in optimizer.param_groups:
            group |= {"lr": 1.0, "weight_decay": 0.0}
        before = {name: p.detach().double() for name, p in model.named_parameters()}
        model(**inputs).loss.backward()
        optimizer.step()
        for name, p in model.named_parameters():
            torch.testing.assert_close(got[name][row].double(), before[name] - p.detach().double(), rtol=1e-3, atol=1e-4)


def test_an_adam_members_table_has_the_rows_own_loss(world: World, tmp_path: Path) -> None:
    index = headwater.load(world.run).index
    (member,) = (m for m in index.members("adam") if m.step == STEPS)  # of the final model
    assert member.index.column("loss") == pytest.approx(index.column("loss"), rel=1e-5)


def test_a_second_moment_row_is_the_gradient_over_the_optimizers_own_moment(world: World, tmp_path: Path) -> None:
    run = tmp_path / "whole"
    options = {**OPTIONS, "sketch__rank": None, "members__roles": ["second_moment"]}
    index = headwater.index(data=world.data, out=run, from_run=world.out, data__limit=3, **options).index
    plain, scaled = (index.layout.split(rows_of(one)) for one in (index, index.members("second_moment")[0].index))
    state = load_adam(world.out / "checkpoint-8" / OURS)
    for name, rows in plain.items():
        v = state.second[name].double() / (1 - 0.999**STEPS)
        factored = v if v.dim() == 1 else v.sum(1, keepdim=True) @ v.sum(0, keepdim=True) / v.sum()
        expected = torch.where(factored > 0, rows.double() / factored.sqrt(), 0.0)
        torch.testing.assert_close(scaled[name].double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


# ------------------------------------------------------------------------------------------------- as a run folder


def test_removed_rows_are_gone_from_the_members_too(world: World, tmp_path: Path) -> None:
    run = world.copy(tmp_path)
    before = {m.name: rows_of(m.index) for m in headwater.load(run).index.members("adam")}
    add_tombstones(run, [headwater.load(run).index.ids[5]], reason="a test")
    index = headwater.load(run).index
    for member in index.members("adam"):
        assert member.index.ids == index.ids
        torch.testing.assert_close(rows_of(member.index), torch.cat([before[member.name][:5], before[member.name][6:]]), rtol=0, atol=0)


def test_a_build_that_is_killed_goes_on_where_it_stopped(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, commit, left = tmp_path / "run", Writer.commit, iter(range(8))

    def dies(self: Writer, shard: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        commit(self, shard)

    options = {"from_run": world.out, "members__roles": FEW, **OPTIONS}
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "commit", dies)
        with pytest.raises(KeyboardInterrupt):
            headwater.index(data=world.data, out=run, **options)  # 3 shards each: the main index, checkpoint-3, two of checkpoint-6
    index = headwater.load(run).index
    with pytest.raises(IntegrityError, match=r"'checkpoint-6'.* 8 of its rows are not indexed yet"):
        index.members("checkpoint")
    headwater.index(data=world.data, out=run, **options)
    assert len(shards(run)) == 4 * 3 * 2, "four indexes of three shards of two files"
    assert shards(run).items() <= shards(world.run).items()


def test_a_build_with_nothing_left_to_do_loads_no_members_model_and_changes_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world.copy(tmp_path)
    before = contents(run)
    monkeypatch.setattr("headwater.index.members.open_session", None)
    index_all(world.out, world.data, run)
    assert contents(run) == before


def test_appended_rows_reach_every_member_whatever_was_interrupted(world: World, tmp_path: Path) -> None:
    halves = [write_rows(tmp_path / f"{i}.jsonl", DATA[i * 12 : (i + 1) * 12]) for i in range(2)]
    run = tmp_path / "run"
    options = {"from_run": world.out, "members__roles": FEW, **OPTIONS}
    headwater.index(data=halves[0], out=run, **options)
    headwater.index(world.out, halves[1], run, append=True, **OPTIONS)  # the main index alone
    with pytest.raises(IntegrityError, match="rows were added to the run since"):
        headwater.load(run).index.members("second_moment")
    headwater.index(data=halves[1], out=run, **options)  # nothing to append to the main index; each member takes what it lacks
    index, whole = headwater.load(run).index, headwater.load(world.run).index
    for role in FEW:
        for mine, theirs in zip(index.members(role), whole.members(role), strict=True):
            torch.testing.assert_close(rows_of(mine.index), rows_of(theirs.index), rtol=1e-4, atol=1e-3)


def test_a_member_begun_after_rows_were_appended_is_filled_in_the_same_order(world: World, tmp_path: Path) -> None:
    halves = [write_rows(tmp_path / f"{i}.jsonl", DATA[i * 12 : (i + 1) * 12]) for i in range(2)]
    run, base = tmp_path / "run", {**OPTIONS, "members__roles": ["base"]}
    for i, half in enumerate(halves):
        headwater.index(world.out, half, run, append=i > 0, **OPTIONS)
    with pytest.raises(IntegrityError, match="1 earlier corpora, the member 0"):
        headwater.index(data=halves[1], out=run, from_run=world.out, **base)
    for half in halves:
        headwater.index(data=half, out=run, from_run=world.out, **base)
    index = headwater.load(run).index
    assert index.members("base")[0].index.ids == index.ids


def test_a_name_stands_for_one_member_for_good(world: World, tmp_path: Path) -> None:
    run = world.copy(tmp_path)
    with pytest.raises(IntegrityError, match=r"'base' .*made with another model"):
        headwater.index(data=world.data, out=run, from_run=world.out, members__roles=["base"], members__base=str(world.out), **OPTIONS)


def test_verify_names_the_member_that_is_damaged_and_repair_mends_it(world: World, tmp_path: Path) -> None:
    run = world.copy(tmp_path)
    assert {finding.status for finding in verify(run)} == {"ok"}
    path = sorted((run / "members" / "adam-6" / "index" / "shards").glob("*.safetensors"))[1]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert [(f.name, f.status) for f in verify(run) if f.status != "ok"] == [("adam-6: shard", "fail")]
    verify(run, repair=True)
    index_all(world.out, world.data, run)
    assert contents(run) == contents(world.run)
    (run / "members" / "base" / "member.json").write_text("{}")
    assert [f.name for f in verify(run) if f.status == "fail"] == ["members"]


def test_members_are_replayed_as_the_runs_that_they_are(world: World, tmp_path: Path) -> None:
    run = world.copy(tmp_path)
    for name in ("checkpoint-3", "checkpoint-6", "adam-6", "adam-8", "base"):
        shutil.rmtree(run / "members" / name)
    result = replay(run, tmp_path / "again")
    assert result.identical
    assert result.compared == 4 * 3 * 2
    damaged = next((run / "members" / "adam-3" / "index" / "shards").glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert replay(run, tmp_path / "again").different == [str(damaged.relative_to(run))]


# --------------------------------------------------------------------------------------------------------- a trace

QUERY = {"prompt": "What colour is car number 3?", "response": "The car is red."}


def test_a_trace_asks_each_member_with_its_own_model(world: World, tmp_path: Path) -> None:
    """TracIn by hand: one plain trace by grad_dot at each checkpoint, times its rate."""
    traced = headwater.trace(world.copy(tmp_path), queries=[QUERY], methods=["tracin", "dda"], n_reference=4)
    total = 0.0
    for step in (3, 6, 8):
        run = headwater.index(world.out / f"checkpoint-{step}", world.data, tmp_path / str(step), **OPTIONS)
        plain = headwater.trace(run, queries=[QUERY], methods=["grad_dot"], n_reference=0).scores["grad_dot"].values_QN
        total = total + plain * len(DATA) * (1e-2 * (STEPS + 1 - step) / STEPS)
    assert traced.scores["tracin"].values_QN == pytest.approx(total, rel=1e-4, abs=1e-7)
    assert traced.record["methods"][0]["provenance"]["step_sizes"]["checkpoint-3"] == pytest.approx(0.0075)


def test_queries_of_second_moment_members_are_divided_too_and_those_of_adam_members_are_plain(world: World) -> None:
    session = load_session(world.out)
    index = StoredIndex.open(world.run)
    example = read_queries([QUERY], session.tokenizer)
    measure = measures.get("response_log_probability")
    adam, second = (query_members(session, index, [role], example, measure)[-1] for role in ("adam", "second_moment"))  # of the final model
    plain = query_index(session, index.layout, example, measure)
    torch.testing.assert_close(rows_of(adam.index), rows_of(plain), rtol=0, atol=0)
    state = SecondMoment(load_adam(world.out / "checkpoint-8" / OURS))
    expected = query_index(session, index.layout, example, measure, transform=state)
    torch.testing.assert_close(rows_of(second.index), rows_of(expected), rtol=0, atol=0)
    assert not torch.allclose(rows_of(second.index), rows_of(plain))


def test_states_and_traces_are_keyed_on_the_members(world: World, tmp_path: Path) -> None:
    run = world.copy(tmp_path)
    first = headwater.trace(run, queries=[QUERY], methods=["less"], n_reference=0)
    again = headwater.trace(run, queries=[QUERY], methods=["less"], n_reference=0)
    record = run / "members" / "adam-3" / "member.json"
    record.write_text(record.read_text().replace('"learning_rate": 0.0075', '"learning_rate": 0.05'))
    other = headwater.trace(run, queries=[QUERY], methods=["less"], n_reference=0)
    assert first.folder == again.folder != other.folder
    assert len(list((run / "state").glob("less-*"))) == 2
    assert not (first.scores["less"].values_QN == other.scores["less"].values_QN).all()


def test_a_member_whose_model_has_changed_is_refused(world: World, tmp_path: Path) -> None:
    out = shutil.copytree(world.out, tmp_path / "out")
    run = headwater.index(data=world.data, out=tmp_path / "run", from_run=out, **OPTIONS)
    shutil.copy(out / "checkpoint-6" / "model.safetensors", out / "checkpoint-3" / "model.safetensors")
    with pytest.raises(IntegrityError, match="checkpoint-3 was made with other weights"):
        headwater.trace(run, queries=[QUERY], methods=["tracin"], n_reference=0)


# ----------------------------------------------------------------------------------------------------------- LoRA


def test_the_members_of_an_adapter(tmp_path: Path) -> None:
    out, data = tmp_path / "out", write_rows(tmp_path / "train.jsonl", DATA)
    train(make_trainer(out, callback=HeadwaterCallback(), lora=True, max_steps=3))
    run = index_all(out, data, tmp_path / "run")
    index = run.index
    assert [m.index is index for role in ("checkpoint", "base", "seed") for m in index.members(role)] == [True, False, True]
    (base,) = index.members("base")
    zeroed = load_session(out, zero_adapter=True)
    tokens = torch.arange(5, 25)[None]
    plain = load_session(tmp_path / "base").model(input_ids=tokens).logits
    torch.testing.assert_close(zeroed.model(input_ids=tokens).logits, plain, rtol=0, atol=0)
    assert not torch.equal(load_session(out).model(input_ids=tokens).logits, plain)
    parts = index.layout.split(rows_of(base.index))
    assert all(bool((part == 0).all()) for name, part in parts.items() if "lora_A" in name), "behind a B of zeros"
    assert any(bool((part != 0).any()) for name, part in parts.items() if "lora_B" in name)
    traced = headwater.trace(run, queries=[QUERY], methods=["dda", "less"], n_reference=0)
    assert all(bool(np.isfinite(scores.values_QN).all()) for scores in traced.scores.values())


# ------------------------------------------------------------------------------------------------ what goes wrong


def recipe(**options: Any) -> IndexRecipe:
    flags = {"model.path": "model", "data.source": "train.jsonl", **{f"members.{name}": value for name, value in options.items()}}
    return IndexRecipe.build(flags=flags)


def test_roles_are_the_checkpoints_of_a_training_and_none_without() -> None:
    assert recipe(from_run="out").members.roles == ("checkpoint",)
    assert recipe().members.roles == ()
    assert recipe(from_run="out", roles=["adam", "adam"]).members.roles == ("adam",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roles": ["adam"]}, "made from the output folder of a Trainer"),
        ({"roles": ["seed"]}, "sketch_seeds belong together"),
        ({"sketch_seeds": [1]}, "sketch_seeds belong together"),
        ({"roles": ["seed"], "sketch_seeds": [1, 2], "seed_models": ["a"]}, "as many runs as there are sketch_seeds"),
        ({"base": "model"}, "no base member asked for"),
        ({"roles": ["checkpoints"]}, "checkpoint"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe(**options)


def test_what_a_training_lacks_is_said_before_anything_is_loaded(world: World, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(world.out / name, bare / name)
    for role, message in (("checkpoint", "no checkpoint-N"), ("adam", "none of the 0 checkpoints"), ("base", "nothing says which that is")):
        with pytest.raises(UsageError, match=message):
            plan_members(recipe(from_run=str(bare), roles=[role]))
    with pytest.raises(UsageError, match="sketch seeds are"):
        plan_members(recipe(roles=["seed"], sketch_seeds=[1, 1]))
    assert [m.record.notes for m in plan_members(recipe(from_run=str(bare), roles=["base"], base="org/model"))] == [
        ("the model that was named",)
    ]
    with pytest.raises(UsageError, match="has no adapter"):
        load_session(bare, zero_adapter=True, tokenizer=object())


def test_seeds_may_be_of_other_trainings(world: World) -> None:
    other = str(world.out / "checkpoint-3")
    (member,) = plan_members(recipe(roles=["seed"], sketch_seeds=[5], seed_models=[other]))
    assert (member.recipe.model.path, member.recipe.sketch.seed) == (other, 5)
    assert member.record.notes == (f"sketch seed 5, model {other}",)
