"""Whatever is wrong with what is given: one clear error that says what to do, exit code 2 or 3, and nothing that was there is changed."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from headwater.index.read import StoredIndex
from tests.e2e.conftest import QUERY, ROWS, Answer, World, contents, lora, tiny, write_rows

Cli = Callable[..., Answer]


def refused(answer: Answer, code: int, *words: str) -> None:
    """One error, no traceback, and these words in it."""
    assert answer.code == code, answer
    assert "Traceback" not in answer.err + answer.out
    assert sum(line.startswith("error: ") for line in answer.err.splitlines()) == 1, answer.err
    missing = [word for word in words if word not in answer.err]
    assert not missing, f"{missing} not in: {answer.err}"


@pytest.fixture
def new(tmp_path: Path) -> Iterator[Path]:
    """A run folder that nothing must appear in."""
    yield tmp_path / "new"
    assert not (tmp_path / "new").exists()


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    before = contents(folder)
    yield
    assert contents(folder) == before


# ----------------------------------------------------------------------------------------------------- the corpus


def test_a_missing_column(world: World, cli: Cli, new: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"question": "a", "reply": "b"}])
    refused(cli("index", world.model, data, "-o", new), 2, "question", "reply", "--columns")
    refused(cli("index", world.model, data, "-o", new, "--columns", "prompt=question,response=nope"), 3, "nope", "question", "reply")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", b"\x89PNG\r\n\x1a\n\0\0"),
        ("rows.parquet", b"prompt,response\na,b\n"),
        ("rows.csv", b"PAR1\0\0\0"),
        ("rows.jsonl", b"prompt,response\na,b\n"),
        ("rows.jsonl", b""),
    ],
)
def test_a_file_of_the_wrong_kind(name: str, content: bytes, world: World, cli: Cli, new: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    refused(cli("index", world.model, tmp_path / name, "-o", new), 3, name)


def test_a_file_that_is_not_there_or_has_no_known_kind(world: World, cli: Cli, new: Path, tmp_path: Path) -> None:
    refused(cli("index", world.model, tmp_path / "none.jsonl", "-o", new), 2, "none.jsonl", "check the path")
    (tmp_path / "rows.docx").write_bytes(b"x")
    refused(cli("index", world.model, tmp_path / "rows.docx", "-o", new), 2, ".docx", ".jsonl")


def test_no_response_token_after_truncation(world: World, cli: Cli, new: Path, tmp_path: Path) -> None:
    answer = cli("index", world.model, world.data, "-o", new, "--max-length", 4)
    refused(answer, 3, "no_response_token", "max-length")
    rows = [{"prompt": "long " * 60, "response": "x"}, *ROWS[:2]]
    kept = cli("index", world.model, write_rows(tmp_path / "rows.jsonl", rows), "-o", tmp_path / "kept", "--max-length", 60)
    assert kept.code == 0, kept.err
    assert "no_response_token: 1" in kept.err
    report = json.loads((tmp_path / "kept" / "corpus.json").read_text())
    assert report["counts"]["no_response_token"] == 1
    assert report["listed"]["no_response_token"][0]["row"] == 0


# ------------------------------------------------------------------------------------------------------ the model


def test_a_classifier_without_a_padding_token(cli: Cli, new: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    from headwater.model.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer([], 300)
    tokenizer.save_pretrained(tmp_path / "model")
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "model")
    data = write_rows(tmp_path / "rows.jsonl", [{"text": row["prompt"], "label": i % 2} for i, row in enumerate(ROWS)])
    refused(cli("index", tmp_path / "model", data, "-o", new), 2, "no padding token", "pad_token_id")


def test_a_model_that_is_not_there(world: World, cli: Cli, new: Path, tmp_path: Path) -> None:
    refused(cli("index", tmp_path / "none", world.data, "-o", new), 2, "does not exist")
    (tmp_path / "empty").mkdir()
    refused(cli("index", tmp_path / "empty", world.data, "-o", new), 3, "config.json")
    refused(cli("index", "no-such-model", world.data, "-o", new), 3, "no-such-model", "no folder here")


def test_damaged_weights(world: World, cli: Cli, new: Path, tmp_path: Path) -> None:
    model = shutil.copytree(world.model, tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(cli("index", model, world.data, "-o", new), 3, "cannot load the weights", "incomplete")


def test_weights_that_are_missing_would_be_random(world: World, cli: Cli, new: Path, tmp_path: Path) -> None:
    model = shutil.copytree(world.model, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    refused(cli("index", model, world.data, "-o", new), 3, "model.layers.1.mlp.up_proj.weight", "random")
    refused(cli("index", world.model, world.data, "--task", "sequence-classification", "-o", new), 3, "score.weight", "--task")


def test_an_adapter_of_other_shapes(world: World, cli: Cli, new: Path, tmp_path: Path) -> None:
    other = tiny(tmp_path / "other", hidden_size=32)
    adapter = lora(other, tmp_path / "adapter")
    refused(cli("index", world.model, world.data, "--adapter", adapter, "-o", new), 3, "does not fit", str(other))


def test_an_adapter_of_a_deeper_model_and_of_a_shallower_one(world: World, cli: Cli, new: Path, tmp_path: Path) -> None:
    """PEFT says nothing of the first, and only warns of the second."""
    for layers, what in ((3, "4 of its own have no place"), (1, "4 of the model's adapter weights are not in it")):
        base = tiny(tmp_path / f"base-{layers}", num_hidden_layers=layers)
        adapter = lora(base, tmp_path / f"adapter-{layers}")
        refused(cli("index", world.model, world.data, "--adapter", adapter, "-o", new), 3, "does not fit", what)


def test_an_adapter_for_other_modules_and_one_that_is_damaged(world: World, cli: Cli, new: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(world.adapter, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["c_attn"]}))
    refused(cli("index", world.model, world.data, "--adapter", adapter, "-o", new), 3, "does not fit", "c_attn")
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    refused(cli("index", world.model, world.data, "--adapter", adapter, "-o", new), 3, "damaged")
    (tmp_path / "empty").mkdir()
    refused(cli("index", world.model, world.data, "--adapter", tmp_path / "empty", "-o", new), 3, "no PEFT adapter")


def test_weights_that_are_all_nan(world: World, cli: Cli, new: Path, tmp_path: Path) -> None:
    model = _with_nan(world.model, tmp_path / "model", "model.norm.weight", slice(None))
    refused(cli("index", model, world.data, "-o", new), 3, "finite", "float32")


# ------------------------------------------------------------------------------------------------- a NaN gradient


def test_rows_with_a_nan_gradient_are_stored_as_bad_counted_shown_and_never_ranked(world: World, cli: Cli, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    rows = [*ROWS, {"prompt": "What is § here?", "response": "A sign."}, {"prompt": "And this?", "response": "It is § again."}]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    token = AutoTokenizer.from_pretrained(world.model)("§", add_special_tokens=False)["input_ids"][-1]
    model = _with_nan(world.model, tmp_path / "model", "model.embed_tokens.weight", token)
    run, healthy = tmp_path / "run", tmp_path / "healthy"
    made = cli("index", model, data, "-o", run, "--shard-rows", 8)
    assert made.code == 0, made.err
    assert "2 of them bad" in made.out

    assert cli("index", world.model, data, "-o", healthy, "--shard-rows", 8, "-q").code == 0
    index, reference = StoredIndex.open(run), StoredIndex.open(healthy)
    assert np.flatnonzero(index.column("bad")).tolist() == [len(ROWS), len(ROWS) + 1]
    assert index.take("gradient", [len(ROWS), len(ROWS) + 1]).isnan().any(1).all()
    good = range(len(ROWS))
    torch.testing.assert_close(index.take("gradient", good), reference.take("gradient", good), rtol=0, atol=0)
    assert index.layout == reference.layout  # two bad rows put nothing out of scope

    traced = cli("trace", run, *QUERY)
    assert traced.code == 0, traced.err
    assert "2 of 26 rows are bad" in traced.out
    assert "2 could not be scored" in (run / "report.html").read_text(encoding="utf-8")
    bad = set(np.array(index.ids)[len(ROWS) :])
    top = cli("trace", run, *QUERY, "-k", 30, "--json").json["queries"][0]["top"]
    for name in ("grad_cos", "grad_dot"):
        assert len(top[name]) <= len(ROWS)
        assert not bad & {row["id"] for row in top[name]}
    verified = cli("verify", run, "--json")
    assert verified.code == 0
    assert {f["name"]: f["status"] for f in verified.json["findings"]}["bad rows"] == "warn"


def test_a_query_without_a_finite_gradient(world: World, cli: Cli, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    token = AutoTokenizer.from_pretrained(world.model)("§", add_special_tokens=False)["input_ids"][-1]
    model = _with_nan(world.model, tmp_path / "model", "model.embed_tokens.weight", token)
    assert cli("index", model, world.data, "-o", tmp_path / "run", "-q").code == 0
    with unchanged(tmp_path / "run"):
        refused(cli("trace", tmp_path / "run", "--prompt", "What is §?", "--response", "A sign."), 3, "finite", "float32")


def _with_nan(model: Path, folder: Path, name: str, rows: Any) -> Path:
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    weights[name][rows] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# ------------------------------------------------------------------------------------------------- the run folder


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--sketch-rank", 4), "layout"),
        (("--exclude", "*mlp*"), "layout"),
        (("--sketch-seed", 1), "layout"),
        (("--store", "int8"), "dtype"),
        (("--dtype", "bfloat16"), "model"),
        (("--shard-rows", 4), "shard_rows"),
        (("--loss-on", "all"), "--append"),
        (("--limit", 5), "--append"),
    ],
)
def test_an_index_made_with_other_options(options: tuple[Any, ...], word: str, world: World, cli: Cli, run: Path) -> None:
    with unchanged(run):
        refused(cli("index", world.model, world.data, "-o", run, "--shard-rows", 8, *options), 3, word, "another folder (-o)")


def test_the_same_rows_appended_again(world: World, cli: Cli, run: Path) -> None:
    with unchanged(run):
        refused(cli("index", world.model, world.data, "-o", run, "--shard-rows", 8, "--append"), 3, "already")


def test_weights_of_another_checkpoint(world: World, cli: Cli, tmp_path: Path) -> None:
    model = shutil.copytree(world.model, tmp_path / "model")
    run = tmp_path / "run"
    assert cli("index", model, world.data, "-o", run, "-q").code == 0
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] += 0.5
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with unchanged(run):
        refused(cli("trace", run, *QUERY), 3, "other weights", "Index again")
        refused(cli("index", model, world.data, "-o", run), 3, "facts.model", "another folder (-o)")
        refused(cli("replay", run, "-o", tmp_path / "again"), 3, "other weights")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("kind", ["safetensors", "parquet"])
def test_a_truncated_shard(kind: str, world: World, cli: Cli, run: Path) -> None:
    whole = contents(run / "index")
    shard = sorted((run / "index" / "shards").glob(f"*.{kind}"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with unchanged(run):
        refused(cli("trace", run, *QUERY), 3, shard.name, "verify --repair")
        found = cli("verify", run)
        assert found.code == 3
        assert shard.name in found.out
        assert "Traceback" not in found.out + found.err
    assert cli("index", world.model, world.data, "-o", run, "--shard-rows", 8, "-q").code == 0
    assert contents(run / "index") == whole


def test_a_shard_with_a_flipped_bit_is_found_and_repaired(world: World, cli: Cli, run: Path) -> None:
    whole = contents(run / "index")
    shard = sorted((run / "index" / "shards").glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1] + bytes([shard.read_bytes()[-1] ^ 1]))
    assert cli("verify", run).code == 3
    assert cli("verify", run, "--repair").code == 3
    assert cli("index", world.model, world.data, "-o", run, "--shard-rows", 8, "-q").code == 0
    assert contents(run / "index") == whole
    assert cli("verify", run).code == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"rows": [0, 8]}'])
def test_a_corrupt_commit(content: bytes, world: World, cli: Cli, run: Path) -> None:
    whole = contents(run / "index")
    commit = min((run / "index" / "commits").iterdir())
    commit.write_bytes(content)
    with unchanged(run):
        refused(cli("trace", run, *QUERY), 3, commit.name, "verify --repair")
    assert cli("index", world.model, world.data, "-o", run, "--shard-rows", 8, "-q").code == 0
    assert contents(run / "index") == whole


@pytest.mark.parametrize("name", ["index/index.json", "index/parts/000000000-000000024.json", "run.json"])
def test_a_damaged_record(name: str, world: World, cli: Cli, run: Path) -> None:
    (run / name).write_bytes(b'{"format"')
    with unchanged(run):
        refused(cli("trace", run, *QUERY), 3, Path(name).name)


def test_a_damaged_trace(world: World, cli: Cli, run: Path) -> None:
    (trace,) = (run / "scores").iterdir()
    scores = trace / "grad_dot.safetensors"
    scores.write_bytes(scores.read_bytes()[:-5])
    with unchanged(run):
        refused(cli("export", run), 3, "Trace again")
    (trace / "trace.json").write_bytes(b"{")
    with unchanged(run):
        refused(cli("report", run), 3, "trace.json")
        refused(cli("export", run), 3, "Trace again")


def test_an_unfinished_index(world: World, cli: Cli, run: Path) -> None:
    max((run / "index" / "commits").iterdir()).unlink()
    with unchanged(run):
        refused(cli("trace", run, *QUERY), 3, "8 rows are not indexed yet", "goes on where it stopped")


def test_a_run_that_does_not_exist(cli: Cli, new: Path) -> None:
    refused(cli("trace", new, *QUERY), 3, "no index in", "headwater index")
    refused(cli("replay", new), 3, "no run.json")
    refused(cli("export", new), 3, "no index in")
    refused(cli("report", new), 3, "headwater trace")
    answer = cli("verify", new)
    assert answer.code == 3
    assert "no index in" in answer.out


# ----------------------------------------------------------------------------------------------------------- disk


def test_an_output_path_that_is_a_file(world: World, cli: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(cli("index", world.model, world.data, "-o", tmp_path / "file"), 3, "a file stands where a folder should be")
    assert (tmp_path / "file").read_text() == "mine"
    refused(cli("export", run, "-o", run / "scores"), 3, "could not write")
    assert not list(run.glob(".*.tmp"))


def test_a_folder_that_cannot_be_written(world: World, cli: Cli) -> None:
    with tempfile.TemporaryDirectory() as folder, _read_only(Path(folder)):
        refused(cli("index", world.model, world.data, "-o", Path(folder) / "run"), 3, "cannot be written by this user")
        assert not list(Path(folder).iterdir())


@contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    """Without the right to write in it; root, who may write anywhere, gives up that right meanwhile."""
    root = os.geteuid() == 0
    if root and not _write_anywhere(False):
        pytest.skip("root may write anywhere, and its right to do so cannot be dropped here")
    folder.chmod(0o555)
    try:
        yield
    finally:
        folder.chmod(0o755)
        if root:
            _write_anywhere(True)


def _write_anywhere(allowed: bool) -> bool:
    """Drop or take back CAP_DAC_OVERRIDE of this thread; whether that was possible."""
    import ctypes

    libc = ctypes.CDLL(None)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, data):
        return False
    data[0] = data[0] | 0b10 if allowed else data[0] & ~0b10
    return libc.capset(header, data) == 0


def test_a_full_disk_in_the_middle(world: World, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third shard's tensors do not fit: what was committed stays, and the same command goes on when there is room."""
    from headwater import atomic

    written, write = [], atomic._write_and_sync

    def full(path: Path, content: Any) -> None:
        written.append(path.name)
        if sum(".safetensors." in name for name in written) == 3:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    run = tmp_path / "run"
    monkeypatch.setattr(atomic, "_write_and_sync", full)
    refused(cli("index", world.model, world.data, "-o", run, "--shard-rows", 8), 3, "the disk is full", "same command again")
    monkeypatch.undo()
    assert len(list((run / "index" / "commits").iterdir())) == 2
    assert not list(run.rglob(".*.tmp"))
    assert contents(run / "index").items() <= contents(world.run / "index").items()
    monkeypatch.setattr("sys.argv", [])
    assert cli("index", world.model, world.data, "-o", run, "--shard-rows", 8, "-q").code == 0
    assert contents(run / "index") == contents(world.run / "index")


def test_a_limit_on_the_size_of_files(world: World, cli: Cli, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        answer = cli("index", world.model, world.data, "-o", tmp_path / "run", "--shard-rows", 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    refused(answer, 3, "size limit")
    assert cli("index", world.model, world.data, "-o", tmp_path / "run", "--shard-rows", 8, "-q").code == 0
    assert contents(tmp_path / "run" / "index") == contents(world.run / "index")


# -------------------------------------------------------------------------------------------------------- options


def test_unknown_names(world: World, cli: Cli, run: Path) -> None:
    with unchanged(run):
        refused(cli("trace", run, *QUERY, "--method", "grad_cosine"), 2, "did you mean grad_cos")
        refused(cli("trace", run, *QUERY, "--method", "embedding"), 2, "--encoder")
        refused(cli("trace", run, *QUERY, "--measure", "vibes"), 2, "vibes", "response_log_probability")
        refused(cli("trace", run, *QUERY, "--measure", "contrast"), 2, "alternative")
        refused(cli("trace", run, *QUERY, "--measure", "class_logit_margin"), 2, "label")
        refused(cli("trace", run, *QUERY, "--set", "primary=nope"), 2, "nope", "grad_cos")
        refused(cli("trace", run, *QUERY, "--set", "methods.random.sed=1"), 2, "sed", "seed=")
        refused(cli("export", run, "--method", "nope"), 2, "nope", "grad_cos")
        refused(cli("export", run, "--exclude", 3), 2, "--method")
        refused(cli("export", run, "--exclude", 0, "--method", "loss"), 2, "at least 1")
        refused(cli("export", run, "--format", "xlsx"), 2, "xlsx", "parquet")
        refused(cli("export", run, "--trace", "nope"), 2, "nope", "trace-")
        refused(cli("report", run, "--trace", "nope"), 3, "nope")


def test_one_query_or_a_file_of_them(world: World, cli: Cli, run: Path, tmp_path: Path) -> None:
    queries = write_rows(tmp_path / "queries.jsonl", [{"prompt": "a", "response": "b"}])
    with unchanged(run):
        refused(cli("trace", run, *QUERY, "--queries", queries), 2, "one of the two", "both")
        refused(cli("trace", run), 2, "--prompt", "neither")
        refused(cli("trace", run, "--prompt", "x"), 2, "--response")
        refused(cli("trace", run, "--queries", tmp_path / "none.jsonl"), 2, "none.jsonl")
        refused(cli("trace", run, "--queries", write_rows(tmp_path / "q.jsonl", [{"prompt": "a"}])), 2, "response")
        mixed = [{"prompt": "a", "response": "b", "alternative": "c"}, {"prompt": "a", "response": "b"}]
        refused(cli("trace", run, "--queries", write_rows(tmp_path / "mixed.jsonl", mixed)), 2, "1 of 2", "separately")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sketch.rnk=3", ("no option sketch.rnk", "sketch.rank")),
        ("sketch.rank", ("expected name=value",)),
        ("sketch.rank=0", ("sketch.rank is 0", "greater than or equal to 1")),
        ("sketch.rank=many", ("sketch.rank is 'many'", "integer")),
        ("store.dtype=float8", ("float8", "int8")),
        ("model.path.x=1", ("no group of options",)),
        ("data.limit=[1", ("not YAML",)),
        ("nonsense=1", ("no option nonsense", "model")),
    ],
)
def test_a_wrong_override(override: str, words: tuple[str, ...], world: World, cli: Cli, new: Path) -> None:
    refused(cli("index", world.model, world.data, "-o", new, "--set", override), 2, *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: [", ("not YAML", "recipe.yaml")),
        ("just words", ("mapping", "recipe.yaml")),
        ("sketch:\n  rnk: 1\n", ("sketch.rnk", "sketch.rank")),
        ("sketch: 3\n", ("sketch",)),
        ("sketch:\n  rank: 4\n", ("model is not given", "data is not given")),
    ],
)
def test_a_wrong_recipe_file(text: str, words: tuple[str, ...], world: World, cli: Cli, new: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    given = () if "not given" in words[0] else (world.model, world.data)
    refused(cli("index", *given, "-o", new, "--config", tmp_path / "recipe.yaml"), 2, *words)


def test_patterns_that_leave_nothing_in_scope(world: World, cli: Cli, new: Path) -> None:
    refused(cli("index", world.model, world.data, "-o", new, "--include", "*nothing*"), 2, "no parameter is in scope", "q_proj")
