"""`headwater evaluate`, as it is typed: the paper's released scores to the last digit, our own runs, and bad input."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

import headwater
from headwater.evaluate.read import as_scores
from headwater.types import DataError, UsageError
from tests.e2e.conftest import Answer, World
from tests.e2e.test_bad_input import refused
from tests.unit.test_evaluate_lds import world as known_world

Cli = Callable[..., Answer]
PAPER = Path(__file__).parents[3] / "shared" / "data" / "paper"
RELEASED = [
    ("grammars_10_inf", "grammars", None, 39.0, 24.4),
    ("grammars_10_gmatch", "grammars", None, 14.0, 12.6),
    ("math_10_inf", "math", None, 100.0, 82.5),
    ("math_10_gmatch", "math", None, 100.0, 84.5),
    ("mixedS_50_inf", "mixedS", 20, 90.0, 61.4),
    ("mixedS_50_gmatch", "mixedS", 20, 17.5, 54.8),
]


def label_file(task: str, side: str) -> Path:
    return PAPER / "labels" / f"{task}-{side}.csv" if task == "mixedS" else PAPER / f"{task}-{side}.parquet"


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's released scores are not beside this checkout")
@pytest.mark.parametrize(("name", "task", "k", "accuracy", "cover"), RELEASED, ids=[line[0] for line in RELEASED])
def test_the_papers_released_scores(name: str, task: str, k: int | None, accuracy: float, cover: float, cli: Cli) -> None:
    scores = PAPER / "scores" / "llama-2-7b-chat" / f"{name}.csv"
    labels = ("--train-labels", label_file(task, "train"), "--query-labels", label_file(task, "test"), "--label-column", "variation")
    places = () if k is None else ("--k", k)
    answer = cli("evaluate", scores, *labels, "--sign", "negative", *places, "--json")
    assert answer.code == 0, answer
    got = answer.json
    assert (round(100 * got["accuracy"], 1), round(100 * got["cover"] + 1e-9, 1)) == (accuracy, cover)
    for figure in ("accuracy", "cover", "auroc", "average_precision", "hub_share"):
        low, high = got[f"{figure}_interval"]
        assert low <= got[figure] <= high
        assert high > low
    corrected = cli("evaluate", scores, *labels, "--sign", "negative", *places, "--hub-correct", "--json").json
    assert corrected["hub_correct"]
    assert corrected["uncorrected"]["accuracy"] == got["accuracy"]
    if task == "grammars":
        assert corrected["accuracy"] > got["accuracy"]
        assert corrected["hub_share"] < got["hub_share"]


def write_table(path: Path, values: Any, column: str = "variation") -> Path:
    frame = pd.DataFrame({column: values})
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    return path


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Path]:
    """The paper's form: 6 queries, 15 rows of 3 classes, negative for proponents."""
    rng = np.random.default_rng(0)
    train, query = np.repeat(list("abc"), 5), np.array(list("abcabc"))
    values = -(rng.standard_normal((6, 15)) + 3 * (query[:, None] == train[None]))
    frame = pd.DataFrame(values)
    frame.to_csv(tmp_path / "s.csv", header=True)
    np.save(tmp_path / "s.npy", values)
    paths = {f"train{kind}": write_table(tmp_path / f"train.{kind}", train) for kind in ("csv", "parquet", "jsonl")}
    paths |= {f"query{kind}": write_table(tmp_path / f"query.{kind}", query) for kind in ("csv", "parquet", "jsonl")}
    return {"s": tmp_path / "s.csv", "npy": tmp_path / "s.npy", **paths}


def flags(train: Path, query: Path) -> tuple[object, ...]:
    return ("--train-labels", train, "--query-labels", query, "--label-column", "variation", "--sign", "negative")


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_labels_of_every_kind(kind: str, made: dict[str, Path], cli: Cli) -> None:
    got = cli("evaluate", made["s"], *flags(made[f"train{kind}"], made[f"query{kind}"]), "--json").json
    assert got["k"] == 5
    assert got["accuracy"] == 1
    assert got["sign"] == "negative"
    assert {finding["name"] for finding in got["findings"]} >= {"ties", "sign", "row order", "label leak", "missing scores"}


def test_a_table_for_people(made: dict[str, Path], cli: Cli) -> None:
    answer = cli("evaluate", made["s"], *flags(made["traincsv"], made["querycsv"]), "--against", made["npy"], "--hub-correct")
    assert answer.code == 0, answer
    for word in ("accuracy", "average_precision", "top_k_overlap", "uncorrected", "difference", "intervals over queries"):
        assert word in answer.out


def test_the_wrong_sign_is_said(made: dict[str, Path], cli: Cli) -> None:
    got = cli("evaluate", made["s"], *flags(made["traincsv"], made["querycsv"])[:-1], "positive", "--json").json
    assert got["accuracy"] == 0
    assert next(finding for finding in got["findings"] if finding["name"] == "sign")["status"] == "warn"


def test_mislabelled_rows(tmp_path: Path, cli: Cli) -> None:
    wrong = np.arange(40) < 8
    np.save(tmp_path / "self.npy", np.random.default_rng(0).standard_normal((1, 40)) + 3 * wrong)
    train = write_table(tmp_path / "train.csv", wrong, "wrong")
    got = cli("evaluate", tmp_path / "self.npy", "--train-labels", train, "--mislabelled", "wrong", "--json").json
    assert got["mislabel_auc"] > 0.9
    assert got["mislabel_auc_interval"][0] > 0.5
    assert got["mislabel_found_at_20"] >= 0.75
    refused(cli("evaluate", tmp_path / "self.npy", "--mislabelled", "wrong"), 2, "no file of training labels")


def test_a_run_of_ours(run: Path, tmp_path: Path, cli: Cli) -> None:
    train = write_table(tmp_path / "train.csv", ["x", "y"] * 12)
    query = write_table(tmp_path / "query.csv", ["x"])
    labels = ("--train-labels", train, "--query-labels", query, "--label-column", "variation")
    got = cli("evaluate", run, *labels, "--json").json
    assert got["method"] == "grad_cos"
    assert (got["n_queries"], got["n_train"], got["k"]) == (1, 24, 12)
    assert got["auroc_interval"] is None  # one query has no spread
    assert cli("evaluate", run, *labels, "--method", "lexical", "--json").json["method"] == "lexical"
    refused(cli("evaluate", run, *labels, "--method", "nope"), 2, "nope", "grad_cos")
    refused(cli("evaluate", run, *labels, "--sign", "negative"), 2, "leave the sign")
    mirrored = -as_scores(run).values_QN
    np.save(tmp_path / "mirrored.npy", mirrored)  # another tool's: the sign is its, not the run's
    beside = cli("evaluate", run, *labels, "--against", tmp_path / "mirrored.npy", "--sign", "negative", "--json").json
    assert beside["differences"]["top_k_overlap"] == 1


def bank(monkeypatch: pytest.MonkeyPatch, truth: Any) -> None:
    """A bank file is read by `headwater.truth.bank`; here it is one in memory."""
    module = ModuleType("headwater.truth.bank")
    module.read_bank = lambda path: truth  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "headwater.truth.bank", module)


def test_a_bank(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, truth = known_world(noise=4.0)
    bank(monkeypatch, truth)
    frame = pd.DataFrame(scores.values_QN, index=list(scores.query_ids), columns=list(scores.train_ids))
    frame.to_csv(tmp_path / "s.csv")
    got = cli("evaluate", tmp_path / "s.csv", "--bank", tmp_path, "--json").json
    assert got["lds_interval"][0] < got["lds"] < got["lds_interval"][1]
    assert got["lds_subset_fraction"] == 0.5
    assert 0 < got["lds_ceiling"] <= 1
    assert got["intervals_over"]["lds"] == "subsets and queries (40 x 6)"
    assert got["truth"] == "cold"
    same = headwater.evaluate(tmp_path / "s.csv", bank=truth)
    assert same.to_json()["lds"] == got["lds"]
    frame.iloc[:, :-1].to_csv(tmp_path / "fewer.csv")
    refused(
        cli("evaluate", tmp_path / "fewer.csv", "--bank", tmp_path, "--json"), 3, "39 training rows and the bank of 40", "another corpus"
    )


# ------------------------------------------------------------------------------------------------------- bad input


def test_nothing_to_hold_scores_against(made: dict[str, Path], cli: Cli) -> None:
    refused(cli("evaluate", made["s"]), 2, "nothing to hold the scores against")
    refused(cli("evaluate", made["s"], "--train-labels", made["traincsv"]), 2, "give --query-labels too")
    refused(cli("evaluate", made["s"], "--query-labels", made["querycsv"]), 2, "give --train-labels too")
    refused(cli("evaluate", made["s"], *flags(made["traincsv"], made["querycsv"])[:-1], "up"), 2, "'up'", "positive or negative")
    refused(cli("evaluate", made["s"], *flags(made["traincsv"], made["querycsv"]), "--k", 16), 2, "k is 16", "1 to 15")


def test_labels_that_do_not_fit(made: dict[str, Path], tmp_path: Path, cli: Cli) -> None:
    more = write_table(tmp_path / "more.csv", list("abc") * 6)
    refused(cli("evaluate", made["s"], *flags(more, made["querycsv"])), 3, "more.csv", "18 labels", "15 training rows")
    refused(cli("evaluate", made["s"], *flags(made["traincsv"], more)), 3, "more.csv", "18 labels", "6 queries")
    other = write_table(tmp_path / "other.parquet", list("abcabc"), "label")
    refused(cli("evaluate", made["s"], *flags(made["traincsv"], other)), 2, "other.parquet", "variation", "label")
    strange = write_table(tmp_path / "strange.jsonl", list("uvwxyz"))
    refused(cli("evaluate", made["s"], *flags(made["traincsv"], strange)), 3, "no query's class")
    refused(cli("evaluate", made["s"], *flags(made["querycsv"], made["traincsv"])), 3, "query.csv")


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [("s.csv", b"", 3), ("s.csv", b"\x00\xff\xfe", 3), ("s.npy", b"junk", 3), ("s.parquet", b"PAR1", 3), ("s.pt", b"x", 2)],
)
def test_a_file_that_cannot_be_read(name: str, content: bytes, code: int, made: dict[str, Path], tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "bad" / name
    path.parent.mkdir()
    path.write_bytes(content)
    refused(cli("evaluate", path, *flags(made["traincsv"], made["querycsv"])), code, name)
    refused(cli("evaluate", tmp_path / "none.csv", *flags(made["traincsv"], made["querycsv"])), 2, "none.csv", "check the path")


# ---------------------------------------------------------------------------------------------------- from Python


def test_the_same_from_python(made: dict[str, Path]) -> None:
    labels = {"train_labels": np.repeat(list("abc"), 5), "query_labels": list("abcabc")}
    from_file = headwater.evaluate(made["s"], **labels, sign="negative")
    from_array = headwater.evaluate(np.load(made["npy"]), **labels, sign="negative", k=5)
    assert from_file.to_json() | {"scores": "", "method": ""} == from_array.to_json() | {"scores": "", "method": ""}
    json.dumps(from_file.to_json(), allow_nan=False)
    assert "accuracy" in str(from_file)
    with pytest.raises(UsageError, match="k is 0"):
        headwater.evaluate(made["s"], **labels, k=0)
    with pytest.raises(DataError, match="training rows"):
        headwater.evaluate(made["s"], train_labels=["a"], query_labels=list("abcabc"))


def test_the_package_is_also_the_verb(made: dict[str, Path], world: World) -> None:
    import headwater.evaluate.summary

    assert callable(headwater.evaluate)
    result = headwater.evaluate(made["s"], against=made["npy"], sign="negative")
    assert isinstance(result, headwater.evaluate.summary.Evaluation)
    assert result.differences["top_k_overlap"].value == 1
