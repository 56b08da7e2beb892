"""From a Trainer's output folder to a trace by methods that need checkpoints, on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from headwater import HeadwaterCallback
from tests.e2e.conftest import QUERY, ROWS, Answer, contents, write_rows
from tests.trainer import make_trainer, train

Cli = Callable[..., Answer]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the output of a training, out/, and its data, train.jsonl."""
    root = tmp_path_factory.mktemp("from_run")
    train(make_trainer(root / "out", callback=HeadwaterCallback(), lora=True))
    write_rows(root / "train.jsonl", ROWS)
    return root


def test_plan_index_verify_trace_replay(trained: Path, cli: Cli, tmp_path: Path) -> None:
    run, members = tmp_path / "run", ("--members", "checkpoint,adam", "--members", "base")
    planned = cli("plan", "--from-run", trained / "out", trained / "train.jsonl", *members, "--json")
    assert planned.code == 0, planned.err
    names = ["checkpoint-3", "checkpoint-6", "checkpoint-8", "adam-3", "adam-6", "adam-8", "base"]
    assert [member["name"] for member in planned.json["members"]] == names
    assert planned.json["disk_bytes_with_members"] == 8 * planned.json["disk_bytes"]
    assert "7; with them" in cli("plan", "--from-run", trained / "out", trained / "train.jsonl", *members, "-q").out

    made = cli("index", "--from-run", trained / "out", trained / "train.jsonl", "-o", run, *members, "--json")
    assert made.code == 0, made.err
    by_name = {member["name"]: member for member in made.json["members"]}
    assert by_name.keys() == set(names)
    assert [name for name, member in by_name.items() if member["is_main"]] == ["checkpoint-8"]
    assert by_name["adam-6"]["learning_rate"] == pytest.approx(0.00375)
    assert "member 5 of 7: adam-6 (learning rate 0.00375, recorded by HeadwaterCallback)" not in made.out
    assert "adam-6 (learning rate 0.00375, recorded by HeadwaterCallback)" in made.err

    before = contents(run)
    again = cli("index", "--from-run", trained / "out", trained / "train.jsonl", "-o", run, *members)
    assert again.code == 0, again.err
    assert "adam-6 (adam): learning rate 0.00375, recorded by HeadwaterCallback" in again.out
    assert contents(run) == before
    assert cli("index", "--config", run / "recipe.yaml", "-o", run).code == 0
    assert cli("index", "--config", run / "members" / "adam-6" / "recipe.yaml", "-o", run / "members" / "adam-6").code == 0
    assert contents(run) == before

    assert "member checkpoint-6: whole, as written" in cli("verify", run).out
    traced = cli("trace", run, *QUERY, "--method", "tracin", "--method", "less", "--method", "dda", "--reference", 4, "--json")
    assert traced.code == 0, traced.err
    assert set(traced.json["queries"][0]["top"]) == {"tracin", "less", "dda"}
    replayed = cli("replay", run, "-o", tmp_path / "again", "--json")
    assert replayed.code == 0, replayed.err
    assert replayed.json["compared"] == 7 * 2 + 3


def test_a_method_without_its_members_says_how_to_build_them(trained: Path, cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli("index", "--from-run", trained / "out", trained / "train.jsonl", "-o", run, "-q").code == 0  # checkpoints by default
    assert cli("trace", run, *QUERY, "--method", "tracin", "--reference", 0, "-q").code == 0
    refused = cli("trace", run, *QUERY, "--method", "less", "-q")
    assert refused.code == 2
    assert "headwater index --from-run OUTPUT_DIR DATA -o RUN --members adam" in refused.err
    assert cli("index", "--from-run", trained / "out", trained / "train.jsonl", "-o", run, "--members", "adam", "-q").code == 0
    assert cli("trace", run, *QUERY, "--method", "less", "--reference", 0, "-q").code == 0


def test_seeds_need_no_training(trained: Path, cli: Cli, tmp_path: Path) -> None:
    seeds = ("--members", "seed", "--sketch-seeds", "3,4", "--set", "sketch.whole_below=20")
    made = cli("index", trained / "out", trained / "train.jsonl", "-o", tmp_path / "run", *seeds, "--json", "-q")
    assert made.code == 0, made.err
    assert [member["name"] for member in made.json["members"]] == ["seed-3", "seed-4"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--from-run", "nowhere", "train.jsonl"), "no output folder of a finished Trainer"),
        (("model", "train.jsonl", "--members", "adam"), "made from the output folder of a Trainer"),
        (("--from-run", "out", "train.jsonl", "--members", "checkpoints"), "members.roles"),
        (("--from-run", "out"), "data is not given"),
    ],
)
def test_what_is_asked_wrongly_is_a_usage_error(
    trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(trained)
    answer = cli("index", *arguments, "-o", "wrong")
    assert answer.code == 2
    assert said in answer.err
    assert not (trained / "wrong").exists()
