"""`headwater study` as a user runs it: a list, a small study that is gone on with, nonsense."""

import json

import pytest
from typer.testing import CliRunner

from headwater import cli

SIZES = {
    "share": 0.2, "queries": 4, "checkpoints": 2, "halves": 4, "removals": 1, "epochs": 0.1, "layers": 1, "hidden": 16, "vocabulary": 300,
    "pretraining_texts": 60,
}  # fmt: skip
SMALL = ["--processes", "1", *(part for name, value in SIZES.items() for part in ("--set", f"{name}={value}"))]


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADWATER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli.app, ["study", *arguments])


def test_the_list_names_tasks_models_parts_and_sizes(run):
    found = json.loads(run("--list", "--json").stdout)
    assert {line["name"] for line in found["tasks"]} >= {"harmful-S", "emotion", "grammars", "math", "backdoor-5", "planted-effect"}
    assert {line["name"] for line in found["models"]} == {"tiny", "minilm", "llama-2-7b-chat", "mistral-7b-instruct"}
    assert [line["name"] for line in found["parts"]][:2] == ["lint", "tables"]
    assert found["quick"]["halves"] < found["size"]["halves"]
    assert "harmful-S" in run("--list").stdout


def test_every_part_of_a_small_study(run, tmp_path):
    made = run("--out", "out", "--tasks", "harmful-S,grammars", "--quiet", "--json", *SMALL)
    assert made.exit_code == 0, made.output
    record = json.loads(made.stdout.splitlines()[-1])
    reasons = {cell["because"] for cell in record["cells"] if cell["part"] and not cell["method"]}
    assert not [reason for reason in reasons if "failed" in reason or "could not" in reason]
    assert {cell["part"] for cell in record["cells"]} == {
        "lint", "tables", "ablation", "solver", "epochs", "anti", "truth", "gaps", "behaviour"
    }  # fmt: skip
    listed = {part["name"]: {"", *part["metrics"]} for part in json.loads(run("--list", "--json").stdout)["parts"]}
    assert not {(cell["part"], cell["metric"]) for cell in record["cells"] if cell["metric"] not in listed[cell["part"]]}
    assert {claim["verdict"] for claim in record["claims"]} <= {"reproduced", "not reproduced", "undetermined", "cannot be tested"}
    assert [answer["task"] for answer in record["answers"]] == ["harmful-S", "grammars"]
    assert (tmp_path / "out" / "report.html").stat().st_size > 50_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "where to"),
        (["--out", "x", "--tasks", "grammar"], "did you mean grammars"),
        (["--out", "x", "--set", "halves"], "name=number"),
        (["--out", "x", "--set", "halves=many"], "name=number"),
        (["--out", "x", "--set", "halvs=3"], "no size"),
        (["--out", "x", "--parts", "table"], "no part"),
        (["--out", "x", "--model", "nowhere"], "no preset"),
        (["--out", "x", "--data", "nowhere"], "nowhere"),
    ],
)
def test_nonsense_is_refused(run, tmp_path, arguments, said):
    refused = run(*arguments)
    assert said in str(refused.exception)
    assert not (tmp_path / "x" / "worlds").exists()
