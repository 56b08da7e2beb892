"""`headwater audit` and `headwater check`: what they print, write and exit with."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from headwater.audit import registry
from headwater.audit.check import Need, Report
from headwater.audit.subject import Subject
from headwater.cli import main
from headwater.types import Finding, FindingStatus
from tests.audit_world import QUERIES, AuditWorld

Cli = Callable[..., tuple[int, str, str]]


@dataclass(frozen=True)
class Rows:
    """A check of one's own: how many rows there are."""

    name: ClassVar[str] = "rows"
    summary: ClassVar[str] = "how many rows there are"
    reference: ClassVar[str] = "this test"
    needs: ClassVar[frozenset[Need]] = frozenset()

    status: FindingStatus = "ok"

    def passes(self, subject: Subject) -> float:
        return 0.0

    def __call__(self, subject: Subject) -> Report:
        n = len(subject.rows)
        return Report([Finding(self.name, self.status, f"There are {n} rows.", value=float(n), n=n, next_step="Count again.")])


class Failing(Rows):
    name = "failing"

    def __call__(self, subject: Subject) -> Report:
        return Report([Finding("failing", "fail", "This check always fails.", next_step="Nothing helps.")])


@pytest.fixture(autouse=True)
def checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {"rows": Rows, "failing": Failing})


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["headwater", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "160")
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as done:
            code = int(done.code or 0)
        said = capfd.readouterr()
        return code, str(said.out), str(said.err)

    return call


@pytest.fixture
def run(audit_world: AuditWorld, tmp_path: Path) -> Path:
    return shutil.copytree(audit_world.run, tmp_path / "run")


def last_json(out: str) -> dict[str, Any]:
    return json.loads(out.splitlines()[-1])


def test_an_audit_prints_and_writes_what_was_found_and_the_page_shows_it(cli: Cli, run: Path) -> None:
    code, out, err = cli("audit", run, "--only", "rows,hubs")
    assert code == 0, err
    assert "There are 48 rows." in out
    assert out.index("unknown") < out.index("There are 48 rows.")  # the verdicts come first
    assert {json.loads(line)["name"] for line in (run / "findings.jsonl").read_text().splitlines()} == {"rows", "hubs"}
    assert json.loads((run / "audit.json").read_text())["trace"] == next((run / "scores").iterdir()).name
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f"report: {run / 'report.html'}" in out
    assert "There are 48 rows." in page
    assert page.count('<li class="verdict-card') == len(QUERIES)


def test_a_check_that_fails_is_exit_code_1_and_everything_is_still_written(cli: Cli, run: Path) -> None:
    code, out, _ = cli("audit", run, "--only", "rows", "--only", "failing", "--json")
    assert code == 1
    told = last_json(out)
    assert [finding["name"] for finding in told["findings"]] == ["failing", "rows"]
    assert [verdict["query_id"] for verdict in told["verdicts"]] == [query["id"] for query in QUERIES]
    assert told["report"] == str(run / "report.html")
    assert "This check always fails." in (run / "report.html").read_text(encoding="utf-8")


def test_no_report_writes_none(cli: Cli, run: Path) -> None:
    (run / "report.html").unlink(missing_ok=True)
    code, out, _ = cli("audit", run, "--only", "rows", "--no-report", "--json")
    assert (code, last_json(out)["report"]) == (0, None)
    assert not (run / "report.html").exists()


def test_a_run_without_a_trace_is_audited_without_verdict_and_page(cli: Cli, run: Path) -> None:
    shutil.rmtree(run / "scores")
    code, out, err = cli("audit", run, "--only", "rows,hubs", "--json")
    assert code == 0, err
    told = last_json(out)
    assert (told["trace"], told["verdicts"], told["report"]) == (None, [], None)
    assert [finding["status"] for finding in told["findings"]] == ["unknown", "ok"]


def test_a_budget_of_nothing_leaves_costly_checks_out(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rows, "passes", lambda self, subject: 1e6)
    code, out, _ = cli("audit", run, "--only", "rows", "--budget", 0.01, "--json")
    told = last_json(out)
    assert code == 0
    assert told["findings"][0]["status"] == "unknown"
    assert "--budget" in told["findings"][0]["next_step"]
    assert "rows" in told["left_out"]


def test_the_list_names_every_check_and_survives_one_that_cannot_be_loaded(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._HOMES, "absent", "headwater.audit.absent:Absent")
    code, out, _ = cli("audit", "--list", "--json")
    listed = {line["name"]: line for line in last_json(out)["checks"]}
    assert code == 0
    assert list(listed) == registry.names()
    assert listed["hubs"] == {
        "name": "hubs",
        "needs": ["trace"],
        "summary": registry.get("hubs").summary,
        "reference": "Radovanovic et al. 2010",
    }
    assert "cannot be loaded" in listed["absent"]["summary"]
    code, out, _ = cli("audit", "--list")
    assert code == 0
    assert "how many rows there are" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "which run"), (["RUN", "--only", "hbus"], "did you mean hubs"), (["RUN", "--only", "rows", "--budget", "-1"], "--budget")],
)
def test_wrong_arguments_are_a_usage_error(cli: Cli, run: Path, arguments: list[str], said: str) -> None:
    code, _, err = cli("audit", *(run if word == "RUN" else word for word in arguments))
    assert code == 2
    assert said in re.sub(r"\x1b\[[0-9;]*m", "", err)


def test_a_run_or_a_trace_that_is_not_there_is_refused(cli: Cli, run: Path, tmp_path: Path) -> None:
    assert cli("audit", tmp_path / "nowhere")[0] == 3
    code, _, err = cli("audit", run, "--trace", "yesterday", "--only", "rows")
    assert code in (2, 3)
    assert "yesterday" in err


def test_check_looks_at_a_model_and_rows_and_writes_nothing(cli: Cli, audit_world: AuditWorld, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    rows = audit_world.folder / "rows.jsonl"
    code, out, err = cli("check", audit_world.model, rows, "--only", "rows", "--limit", 10)
    assert code == 0, err
    assert "There are 10 rows." in out
    code, out, _ = cli("check", audit_world.model, rows, "--only", "rows,hubs,failing", "--json")
    told = last_json(out)
    assert code == 1
    assert [(finding["name"], finding["status"]) for finding in told["findings"]] == [
        ("failing", "fail"),
        ("hubs", "unknown"),
        ("rows", "ok"),
    ]
    assert list(tmp_path.iterdir()) == []


def test_check_without_rows_is_a_usage_error(cli: Cli, audit_world: AuditWorld) -> None:
    assert cli("check", audit_world.model, "--only", "rows")[0] == 2


def test_a_run_told_in_a_notebook_has_its_verdict(cli: Cli, run: Path) -> None:
    from headwater.api import load

    assert cli("audit", run, "--only", "rows", "--no-report")[0] == 0
    assert "Verdict: unknown" in load(run).newest()._repr_html_()


def test_a_recipe_that_is_none_is_refused_before_anything_runs(cli: Cli, run: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: many\nlr: 0.1\n")
    code, _, error = cli("audit", run, "--only", "hubs", "--recipe", recipe)
    assert code == 2
    assert "epochs" in error
    assert "many" in error
    assert not (run / "findings.jsonl").exists()
