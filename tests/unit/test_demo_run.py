import json
import math

import pytest

from headwater.demo.run import PRIMARY, Scale, greedy_answer, prepare, run_demo
from headwater.report.artefacts import read_findings
from headwater.types import UsageError

SMALL = Scale(texts=300, rows=120, planted=30, epochs=6)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, run_demo(out, seed=0, cache=tmp_path_factory.mktemp("cache"), scale=SMALL)


def test_the_result_says_what_was_asked_for(demo):
    out, result = demo
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert found["seconds"] > 0
    assert found["run"] == str(out / "run")
    assert [query["kind"] for query in found["queries"]] == ["planted", "ordinary", "control"]
    for query in found["queries"]:
        assert {"grad_cos", "repsim", "lexical", "length", "loss", "random"} <= query["precision_at_10"].keys()
        assert query["verdict"] in ("supported", "weak", "contradicted", "unknown")
        assert (query["probability"] is None) == (query["verdict"] == "unknown")
        assert all(0 <= share <= 1 for share in query["precision_at_10"].values())
        assert query["measure_nats"].keys() == {"before", "after_removal", "after_random_removal"}
        assert all(math.isfinite(nats) and nats < 0 for nats in query["measure_nats"].values())
    assert json.loads((out / "demo.json").read_bytes()) == found


def test_the_trace_has_the_experiment_and_the_planted_tags(demo):
    out, result = demo
    (path,) = (out / "run" / "scores").glob("*/trace.json")
    trace = json.loads(path.read_bytes())
    experiment = trace["experiment"]
    assert experiment["removed"] == result.removed
    assert experiment["method"] == PRIMARY
    for query, measured in zip(trace["queries"], experiment["queries"], strict=True):
        assert math.isclose(query["measure_value"], measured["before"], rel_tol=1e-4)
    planted = {row["prompt"] for row in trace["rows"].values() if row.get("tags") == ["planted"]}
    assert planted
    assert len(planted) < len(trace["rows"])


def test_the_page_is_written_with_the_experiment(demo):
    _, result = demo
    page = result.report.read_text(encoding="utf-8")
    assert "Removal and retraining" in page
    assert "Can this be believed?" in page
    findings = [json.loads(line)["name"] for line in (result.run / "findings.jsonl").read_text().splitlines()]
    assert "recovery: planted" in findings
    assert {"numerics: repeatability", "identity", "controls: lexical"} <= set(findings)


def test_the_audit_and_the_recovery_are_in_the_findings_and_on_the_page(demo):
    out, result = demo
    found = {finding.name: finding for finding in read_findings(out / "run" / "findings.jsonl")}
    audited = json.loads((out / "run" / "audit.json").read_bytes())
    assert found.keys() == {"recovery: planted", *(finding["name"] for finding in audited["findings"])}
    assert {"hubs", "identity", "coverage: loss positions"} <= found.keys()
    assert found["removal"].because.startswith("Not measured: left out")
    assert [query.verdict for query in result.queries] == [verdict["status"] for verdict in audited["verdicts"]]
    page = result.report.read_text(encoding="utf-8")
    for name in ("recovery", "Planted rows among each method", "loss positions"):
        assert name in page


def test_the_planted_rows_are_not_marked_in_the_data(demo):
    out, _ = demo
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert len(rows) == SMALL.rows
    assert all(row.keys() == {"prompt", "response"} for row in rows)


def test_the_response_to_explain_is_what_the_saved_model_says(demo):
    import headwater

    out, _ = demo
    query = json.loads((out / "queries.jsonl").read_text().splitlines()[0])
    assert greedy_answer(headwater.load_session(out / "model"), query["prompt"]) == query["response"]


def test_a_folder_with_something_else_in_it_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="another --out"):
        prepare(tmp_path, seed=0)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_earlier_demo_gives_way(tmp_path):
    prepare(tmp_path, seed=0)
    (tmp_path / "run").mkdir()
    (tmp_path / "train.jsonl").write_text("{}")
    prepare(tmp_path, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError):
        prepare(tmp_path, seed=1)


def test_a_folder_that_only_looks_like_a_demo_is_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text("mine")
    with pytest.raises(UsageError):
        prepare(tmp_path, seed=0)
    assert (tmp_path / "train.jsonl").read_text() == "mine"
