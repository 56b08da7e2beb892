"""`headwater truth`: from a run to a bank, killed half-way, and every way to ask for what cannot be."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headwater import HeadwaterCallback
from headwater.index.read import StoredIndex
from headwater.index.tombstones import add_tombstones
from headwater.truth.bank import read_bank
from tests.e2e.conftest import ROWS, Answer, World, command, contents, tiny, write_rows
from tests.trainer import make_trainer, train

Cli = Callable[..., Answer]

QUERIES = [{"id": f"q{i}", "prompt": f"What colour is car number {i}?", "response": "The car is red."} for i in range(3)]
RECIPE = "epochs: 2\nlr: 0.003\nbatch_rows: 4\n"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A training's recipe and queries."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml", write_rows(tmp_path / "queries.jsonl", QUERIES)


def test_a_run_becomes_a_bank(world: World, run: Path, files: tuple[Path, Path], cli: Cli) -> None:
    recipe, queries = files
    asked = ("--base", world.model, "--recipe", recipe, "--queries", queries, "--subsets", 4, "--seeds", 2, "--threads", 1)
    made = cli("truth", run, *asked, "--json")
    assert made.code == 0, made.err
    assert made.json["bank"] == str(run / "truth" / "half-cold")
    numbers = {"designs": 4, "seeds": 2, "queries": 3, "rows": 24, "diverged": 0, "kind": "cold"}
    assert {name: made.json[name] for name in numbers} == numbers
    bank = read_bank(run / "truth" / "half-cold")
    assert bank.train_ids == tuple(StoredIndex.open(run).ids)
    assert bank.query_ids == ("q0", "q1", "q2")
    assert bank.noise_ceiling == made.json["noise_ceiling"]
    assert (bank.kept_DN.sum(1) == 12).all()

    before = contents(run)
    again = cli("truth", run, *asked)
    assert again.code == 0, again.err
    assert "8 of 8 trainings are in" in again.err
    assert "4 designs x 2 seeds, 3 queries measured after each (cold start)" in again.out
    assert "that a perfect prediction would reach" in again.out
    assert contents(run) == before
    assert cli("verify", run).code == 0


def test_without_queries_those_of_the_newest_trace_are_measured(run: Path, files: tuple[Path, Path], cli: Cli, tmp_path: Path) -> None:
    made = cli("truth", run, "--recipe", files[0], "--start", "warm", "--design", "all", "--seeds", 1, "-o", tmp_path / "bank", "--json")
    assert made.code == 0, made.err
    assert (made.json["kind"], made.json["queries"], made.json["noise_ceiling"]) == ("warm", 1, None)
    shown = cli("truth", run, "--recipe", files[0], "--start", "warm", "--design", "all", "--seeds", 1, "-o", tmp_path / "bank", "-q")
    assert "ceiling    unknown" in shown.out
    assert shown.err == ""


def test_every_design_by_its_name(world: World, run: Path, files: tuple[Path, Path], cli: Cli, tmp_path: Path) -> None:
    scores = np.arange(len(ROWS), dtype=float) - 12
    np.save(tmp_path / "scores.npy", scores)
    recipe, queries = files
    asked = ("--base", world.model, "--recipe", recipe, "--queries", queries, "--seeds", 1, "--threads", 1)
    for design, more, names, left_out in (
        ("share", ("--fraction", 0.75, "--subsets", 2), ("share-0.75/0", "share-0.75/1"), 6),
        ("leave-out", ("-k", 5, "--subsets", 2), ("without-5/0", "without-5/1"), 5),
        ("top", ("-k", 3, "--scores", tmp_path / "scores.npy"), ("top/3",), 3),
        ("random", ("-k", 3, "--subsets", 2, "--design-seed", 4), ("random/3/0", "random/3/1"), 3),
        ("leave-group-out", ("--by", "source"), None, None),
    ):
        made = cli("truth", run, *asked, "--design", design, *more)
        if names is None:
            assert made.code == 3
            assert "one group" in made.err
            continue
        assert made.code == 0, made.err
        bank = read_bank(run / "truth" / f"{design}-cold")
        assert bank.designs == names
        assert ((~bank.kept_DN).sum(1) == left_out).all()
    top = read_bank(run / "truth" / "top-cold")
    assert np.flatnonzero(~top.kept_DN[0]).tolist() == [21, 22, 23]


def test_rows_that_were_taken_out_of_the_run_are_not_trained_on(
    world: World, run: Path, files: tuple[Path, Path], cli: Cli, tmp_path: Path
) -> None:
    gone = StoredIndex.open(run).ids[5]
    add_tombstones(run, [gone], reason="a test")
    asked = ("--base", world.model, "--recipe", files[0], "--queries", files[1], "--design", "all", "--seeds", 1)
    made = cli("truth", run, *asked, "-o", tmp_path / "b")
    assert made.code == 0, made.err
    bank = read_bank(tmp_path / "b")
    assert len(bank.train_ids) == len(ROWS) - 1
    assert gone not in bank.train_ids


@pytest.mark.slow
def test_killed_half_way_the_same_command_goes_on(world: World, run: Path, files: tuple[Path, Path], cli: Cli, tmp_path: Path) -> None:
    asked = ("--base", world.model, "--recipe", files[0], "--queries", files[1], "--subsets", 12, "--seeds", 2, "--threads", 1)
    assert cli("truth", run, *asked, "-o", tmp_path / "whole").code == 0
    started = command("truth", run, *asked, "-o", tmp_path / "killed")
    outcomes, end = tmp_path / "killed" / "outcomes", time.monotonic() + 120
    while len(list(outcomes.glob("*.json"))) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(started.pid, signal.SIGKILL)
    started.communicate()
    done = len(list(outcomes.glob("*.json")))
    assert 3 <= done < 24
    again = cli("truth", run, *asked, "-o", tmp_path / "killed")
    assert again.code == 0, again.err
    assert f"{done} of 24 trainings are in" in again.err
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_from_a_trainer_folder_base_and_recipe_are_known(cli: Cli, tmp_path: Path) -> None:
    train(make_trainer(tmp_path / "out", callback=HeadwaterCallback(), lora=True))
    data, queries = write_rows(tmp_path / "train.jsonl", ROWS), write_rows(tmp_path / "queries.jsonl", QUERIES)
    assert cli("index", "--from-run", tmp_path / "out", data, "-o", tmp_path / "run").code == 0
    made = cli("truth", tmp_path / "run", "--queries", queries, "--subsets", 3, "--seeds", 1, "--json")
    assert made.code == 0, made.err
    recipe = read_bank(tmp_path / "run" / "truth" / "half-cold").recipe
    assert recipe["model"]["name"] == str(tmp_path / "base")
    assert recipe["model"]["adapter"] is None
    training = recipe["training"]
    assert (training["epochs"], training["lr"], training["batch_rows"], training["decay"]) == (2, 0.01, 6, "linear")
    assert training["lora"] == {"r": 2, "alpha": 8.0, "dropout": 0.1, "targets": ["q_proj", "v_proj"]}
    (tmp_path / "own.yaml").write_text("epochs: 1\nlr: 0.001\n")
    own_recipe = ("--recipe", tmp_path / "own.yaml", "-o", tmp_path / "b")
    own = cli("truth", tmp_path / "run", "--queries", queries, "--subsets", 1, "--seeds", 1, *own_recipe)
    assert own.code == 0, own.err
    assert "the recipe says nothing of adapters: LoRA as in" in own.err
    assert read_bank(tmp_path / "b").recipe["training"]["lora"]["r"] == 2


# --------------------------------------------------------------------------------------------------------- bad input


def test_what_cannot_be_done_is_said(world: World, run: Path, files: tuple[Path, Path], cli: Cli, tmp_path: Path) -> None:
    recipe, queries = files
    np.save(tmp_path / "short.npy", np.zeros(5))
    (tmp_path / "wrong.yaml").write_text("epochs: 0\nlearning_rate: 1\n")
    good = ("--base", world.model, "--recipe", recipe, "--queries", queries)
    before = contents(run)
    for arguments, code, said in (
        ((*good, "--design", "halves"), 2, "there is no design 'halves'; there are: half, share"),
        ((*good, "--design", "leave-out", "-k", 24), 2, "k is 24 of 24 rows"),
        ((*good, "--design", "leave-out"), 2, "name k"),
        ((*good, "--fraction", 0.3), 2, "a half is 0.5; for another share the design is share"),
        ((*good, "--design", "share", "--fraction", 0.001), 2, "is 0 rows"),
        ((*good, "--design", "top", "-k", 2), 2, "no scores are given"),
        ((*good, "--design", "top", "-k", 2, "--scores", tmp_path / "short.npy"), 3, "expected a number for each of the 24 rows"),
        ((*good, "--design", "top", "-k", 2, "--scores", recipe), 3, "cannot be read as scores"),
        ((*good, "--design", "leave-group-out", "--by", "colour"), 3, "there is no column 'colour'"),
        (("--recipe", recipe, "--queries", queries), 2, "Name the base model (--base MODEL)"),
        ((*good, "--start", "warm"), 2, "choose one of the two"),
        ((*good, "--start", "hot"), 2, "start is 'hot'"),
        (("--base", world.model, "--queries", queries), 2, "give a recipe (--recipe FILE)"),
        (("--base", world.model, "--queries", queries, "--recipe", tmp_path / "wrong.yaml"), 2, "lr: Field required"),
        (("--base", world.model, "--queries", queries, "--recipe", queries), 2, "not YAML"),
        (("--base", world.model, "--recipe", recipe, "--queries", tmp_path / "none.jsonl"), 2, "none.jsonl"),
        ((*good, "--measure", "joy"), 2, "no measure is called 'joy'"),
        ((*good, "--seeds", 0), 2, "seeds is 0"),
    ):
        answer = cli("truth", run, *arguments)
        assert answer.code == code, f"{arguments}: {answer.code} {answer.err}"
        assert said in answer.err, answer.err
        assert "Traceback" not in answer.err
    assert contents(run) == before
    assert cli("truth", tmp_path / "nowhere", *good).code == 3


def test_a_bank_of_another_corpus_model_or_recipe_is_refused(
    world: World, run: Path, files: tuple[Path, Path], cli: Cli, tmp_path: Path
) -> None:
    recipe, queries = files
    asked = ("--queries", queries, "--design", "all", "--seeds", 1, "-o", tmp_path / "bank")
    assert cli("truth", run, "--base", world.model, "--recipe", recipe, *asked).code == 0
    before = contents(tmp_path / "bank")
    (tmp_path / "other.yaml").write_text(RECIPE.replace("0.003", "0.03"))
    other_recipe = cli("truth", run, "--base", world.model, "--recipe", tmp_path / "other.yaml", *asked)
    other_model = cli("truth", run, "--base", tiny(tmp_path / "other", seed=1), "--recipe", recipe, *asked)
    add_tombstones(run, [StoredIndex.open(run).ids[0]], reason="a test")
    other_rows = cli("truth", run, "--base", world.model, "--recipe", recipe, *asked)
    refused = {"training.lr was 0.003 and is 0.03": other_recipe, "model.fingerprint was": other_model, "corpus was": other_rows}
    for named, answer in refused.items():
        assert answer.code == 3
        assert "another experiment" in answer.err
        assert named in answer.err
    assert contents(tmp_path / "bank") == before
    (tmp_path / "bank" / "experiment.json").write_text(json.dumps([1]))
    assert "Remove the folder to begin anew" in cli("truth", run, "--base", world.model, "--recipe", recipe, *asked).err
