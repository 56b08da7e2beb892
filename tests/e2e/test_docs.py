"""The documentation is executed: its code runs, its tables agree with the code, its links lead somewhere.

In a page, fenced blocks run in order and share a folder and a namespace:
    ```python            executed
    ```bash              each command must be `headwater ...`; `# exit code 3` after one says how it ends (0 otherwise)
    ```jsonl title=F     written to the file F (any language with a title)
    ```python no-run     needs a network or an accelerator: it is only parsed, as is `bash no-run`
The folder holds `model/` (a tiny language model), `train.jsonl` (40 rows that it was trained on) and `queries.jsonl`.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import typer

import headwater
from headwater import cli
from headwater.audit import registry
from headwater.methods import names, table
from headwater.model.measures import MEASURES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NAMES = ("start", "concepts", "methods", "extend", "artefacts", "audit", "repair", "truth", "evaluate", "study")
EXECUTED = [ROOT / "README.md", *(DOCS / f"{name}.md" for name in NAMES)]
PAGES = [*EXECUTED, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
FENCE = re.compile(r"^```(?P<language>\w*) *(?P<options>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
EXIT_CODE = re.compile(r"# exit code (\d+)\s*$")
FIGURE = re.compile(r"<!--(?P<file>\w+\.json):(?P<field>\w+)-->(?P<shown>[^|\n<]*)")
NOT_RECORDED = "not recorded yet"


@dataclass(frozen=True)
class Fence:
    """A fenced block of a page, and the line where it begins."""

    page: Path
    line: int
    language: str
    options: frozenset[str]
    text: str

    @property
    def title(self) -> str | None:
        return next((option.removeprefix("title=") for option in self.options if option.startswith("title=")), None)

    @property
    def runs(self) -> bool:
        return "no-run" not in self.options

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"

    def compiled(self) -> Any:
        """Line numbers in a traceback are the page's."""
        return compile("\n" * self.line + self.text, str(self.page), "exec", dont_inherit=True)


def fences(page: Path) -> list[Fence]:
    content = page.read_text(encoding="utf-8")
    return [
        Fence(page, content[: m.start()].count("\n") + 1, m["language"], frozenset(m["options"].split()), m["text"])
        for m in FENCE.finditer(content)
    ]


def commands(fence: Fence) -> list[tuple[list[str], int]]:
    """(words, expected exit code) of each command; a backslash at the end of a line continues it."""
    lines = [line for line in fence.text.replace("\\\n", " ").splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found = [EXIT_CODE.search(line) for line in lines]
    return [(shlex.split(line, comments=True), int(code[1]) if code else 0) for line, code in zip(lines, found, strict=True)]


# ------------------------------------------------------------------------------------------------ the prepared folder

FACTS = {
    "the capital of France": "Paris", "the capital of Italy": "Rome", "the colour of the sky": "blue", "the colour of grass": "green",
    "a young dog called": "a puppy", "a young cat called": "a kitten", "the largest planet": "Jupiter", "the name of our star": "the Sun",
}  # fmt: skip
FORMS = ("What is {}?", "Tell me: what is {}?", "Do you know what is {}?", "Please say what is {}.", "I forgot: what is {}?")
QUERIES = (
    {"id": "rome", "prompt": "What is the capital of Italy?", "response": "It is Rome."},
    {"id": "kitten", "prompt": "A young cat is called what?", "response": "It is a kitten.", "span": "kitten"},
)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned `train.jsonl` by heart."""
    from headwater.corpus import load_corpus
    from headwater.model.tiny import tiny_model
    from headwater.truth.finetune import Recipe, finetune

    folder = tmp_path_factory.mktemp("docs")
    rows = [{"prompt": form.format(fact), "response": f"It is {answer}."} for form in FORMS for fact, answer in FACTS.items()]
    _write_lines(folder / "train.jsonl", rows)
    _write_lines(folder / "queries.jsonl", QUERIES)
    texts = [f"{row['prompt']} {row['response']}" for row in rows]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    model, tokenizer = tiny_model(0, texts=texts, vocab_size=320, max_position_embeddings=128, **sizes)
    corpus = load_corpus(rows, tokenizer)
    finetune(model, corpus.examples, Recipe(epochs=8, lr=1e-2, batch_rows=8), pad_id=0)
    for part in (model, tokenizer):
        part.save_pretrained(folder / "model")
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the prepared folder of this page's own, as the working directory."""

    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("headwater.methods._methods", dict(headwater_methods()))
    monkeypatch.setattr("headwater.curvature._curvatures", dict(headwater_curvatures()))
    monkeypatch.setattr(registry, "_registered", {})
    return tmp_path


def headwater_methods() -> dict[str, type[Any]]:
    """What is registered now: a page that registers a method must not leave it to the next one."""
    from headwater import methods

    return methods._methods


def headwater_curvatures() -> dict[str, type[Any]]:
    from headwater import curvature

    return curvature._curvatures


def _write_lines(path: Path, rows: Any) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------ running pages


@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: page.stem)
def test_code_of_a_page_runs(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # a dataclass looks its own module up
    for fence in fences(page):
        if fence.title is not None:
            (folder / fence.title).write_text(fence.text, encoding="utf-8")
        elif fence.language == "python":
            run_python(fence, module.__dict__)
        elif fence.language == "bash":
            run_bash(fence, monkeypatch, capsys)


def run_python(fence: Fence, namespace: dict[str, Any]) -> None:
    code = fence.compiled()
    if fence.runs:
        exec(code, namespace)


def run_bash(fence: Fence, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in commands(fence):
        if words[0] != "headwater":
            assert not fence.runs, f"{fence.where}: only `headwater` commands can be executed, got {shlex.join(words)}; mark it no-run"
            continue
        parse(words, fence)
        if fence.runs:
            assert exit_code_of(words, monkeypatch) == expected, f"{fence.where}: {shlex.join(words)}\n{capsys.readouterr()}"


def exit_code_of(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", words)
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def parse(words: list[str], fence: Fence) -> None:
    """The verb and every option exist; nothing is executed."""
    group: Any = typer.main.get_command(cli.app)
    if words[1:] and words[1] in group.commands:
        try:
            group.commands[words[1]].make_context(words[1], words[2:])
        except click.UsageError as error:
            pytest.fail(f"{fence.where}: {shlex.join(words)}: {error.message}")
    else:
        assert words[1:] in ([], ["--help"], ["-h"]), f"{fence.where}: there is no verb {words[1]!r}"


# ------------------------------------------------------------------------------------- what pages say without running


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    content = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", content):
        if not re.match(r"https?://|mailto:", target):
            path, _, anchor = target.partition("#")
            found = page.parent / path if path else page
            assert found.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(found), f"{page.name} links to {target}: no such heading"


def anchors(page: Path) -> set[str]:
    """Headings as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_says_what_needs_what_as_the_code_does() -> None:
    rows = {cells[0].strip("`"): cells[1:] for cells in table_under(ROOT / "README.md", "What needs what")}
    assert list(rows) == names()
    for line in table():
        gradients, checkpoints, optimizer, text, representation, unit, _ = rows[line["name"]]
        needs = set(line["needs"])
        members = {need.removeprefix("members:") for need in needs if need.startswith("members:")}
        assert (gradients == "yes") == bool("gradient" in needs or members), line["name"]
        assert (text == "yes") == bool(needs & {"prompt", "response"}), line["name"]
        assert (representation == "yes") == any(need.startswith(("representation", "rept")) for need in needs), line["name"]
        assert (checkpoints == "yes") == bool(members - {"seed"}), line["name"]
        assert (optimizer == "yes") == bool(members & {"adam", "second_moment"}), line["name"]
        assert unit == (line["unit"] or "ranks only"), line["name"]


def test_every_method_and_measure_has_its_section() -> None:
    content = (DOCS / "methods.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## `(\w+)`$", content, re.MULTILINE)
    assert sections == names()
    for line in table():
        section = content.split(f"## `{line['name']}`")[1].split("\n## ")[0]
        assert f"**Unit** {line['unit'] or 'none'}" in section, f"{line['name']}: unit"
        assert all(f"`{need}`" in section for need in line["needs"]), f"{line['name']} needs {line['needs']}"
    measures = {cells[0].strip("`"): cells[1] for cells in table_under(DOCS / "methods.md", "Measures")}
    assert measures == {name: measure.unit for name, measure in MEASURES.items()}


def table_under(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, without its two header lines."""
    after = re.split(rf"^#+ {re.escape(heading)}$", page.read_text(encoding="utf-8"), maxsplit=1, flags=re.MULTILINE)[1]
    lines = re.search(r"(?:^\|.*\n)+", after, re.MULTILINE)
    assert lines is not None, f"{page.name}: no table under {heading}"
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines[0].splitlines()[2:]]


def test_every_option_that_is_mentioned_exists() -> None:
    group: Any = typer.main.get_command(cli.app)
    parameters = [parameter for verb in group.commands.values() for parameter in verb.params]
    known = {"--help"}.union(*(parameter.opts + parameter.secondary_opts for parameter in parameters))
    for page in EXECUTED:
        prose = FENCE.sub("", page.read_text(encoding="utf-8"))
        mentioned = {word for code in re.findall(r"`([^`\n]+)`", prose) for word in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)}
        assert mentioned <= known, f"{page.name} mentions {sorted(mentioned - known)}"


def test_figures_of_ours_are_those_on_record() -> None:
    """`<!--scan.json:ratio-->3.1` in a page is the field of benchmarks/results/scan.json, to the digits shown."""
    checked = 0
    for page in EXECUTED:
        for match in FIGURE.finditer(page.read_text(encoding="utf-8")):
            path, shown = ROOT / "benchmarks" / "results" / match["file"], match["shown"].strip()
            recorded = json.loads(path.read_text(encoding="utf-8")).get(match["field"]) if path.exists() else None
            expected = NOT_RECORDED if recorded is None else as_shown(recorded, shown)
            assert shown == expected, f"{page.name}: {match['file']} {match['field']} is {recorded}, the page says {shown!r}"
            checked += 1
    assert checked, "no figure is marked: is the README's table of figures still there?"


def as_shown(recorded: Any, shown: str) -> str:
    """A recorded number with as many decimals as the page shows; other values as they are."""
    decimals = len(shown.partition(".")[2])
    return f"{recorded:.{decimals}f}" if isinstance(recorded, float) else str(recorded)


# ------------------------------------------------------------------------------------------- every file, every field


def test_artefacts_page_names_every_file_and_field(folder: Path) -> None:
    make_one_of_everything(folder)
    page = (DOCS / "artefacts.md").read_text(encoding="utf-8")
    spoken = set(re.findall(r"`([^`\n]+)`", FENCE.sub("", page)))
    run = folder / "run"
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        assert generic(path.relative_to(run)) in spoken, f"docs/artefacts.md does not name {path.relative_to(run)}"
        missing = fields_of(path) - spoken
        assert not missing, f"docs/artefacts.md says nothing of {sorted(missing)} in {path.relative_to(run)}"


def make_one_of_everything(folder: Path) -> None:
    from headwater.api import load
    from headwater.index.tombstones import add_tombstones

    run = headwater.index("model", "train.jsonl", "run", store__dtype="int8", members__roles=["seed"], members__sketch_seeds=[3])
    more = [{"prompt": "What is the capital of Spain?", "response": "It is Madrid."}]
    headwater.index("model", more, "run", append=True, store__dtype="int8")
    add_tombstones(run.path, [run.index.ids[3]], reason="a test")
    load("run")
    headwater.trace("run", queries="queries.jsonl", n_reference=8)
    headwater.audit("run", only=["hubs"], data=more)
    headwater.load("run").newest().report()


def generic(path: Path) -> str:
    """A file's name with its variable parts as the page writes them."""
    text = re.sub(r"^members/[\w-]+/(?!member\.json).*", "members/NAME/...", path.as_posix())
    text = re.sub(r"^members/[\w-]+/", "members/NAME/", text)
    text = re.sub(r"\d{9}-\d{9}", "A-B", text)
    text = re.sub(r"^(run|corpus|recipe)-\d+\.", r"\1-K.", text)
    text = re.sub(r"tombstones/[0-9a-f]{16}", "tombstones/HASH", text)
    text = re.sub(r"scores/trace-[0-9a-f]{12}", "scores/TRACE", text)
    text = re.sub(rf"scores/TRACE/(?:{'|'.join(names())})\.", "scores/TRACE/METHOD.", text)
    return re.sub(r"state/\w+-[0-9a-f]{12}", "state/METHOD-HASH", text)


def fields_of(path: Path) -> set[str]:
    """Keys of JSON objects at any depth, columns of tables, names of tensors; keys that are data are left out."""
    if path.suffix == ".json":
        return keys_of(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return set(pq.read_schema(path).names)
    if path.suffix == ".safetensors" and "state" not in path.parts:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    return set()


DATA_KEYS = {
    "rows",
    "versions",
    "ranked",
    "methods",
    "provenance",
    "columns",
    "seconds",
    "left_out",
}  # their own keys are ids, names or options


def keys_of(value: Any, *, under: str = "") -> set[str]:
    if isinstance(value, list):
        return set().union(*(keys_of(item, under=under) for item in value))
    if not isinstance(value, dict):
        return set()
    own = set() if under in DATA_KEYS and not {"name", "summary"} <= value.keys() else set(value)
    return own.union(*(keys_of(item, under=key) for key, item in value.items()))
