"""The command line as a person uses it: every verb, on tiny models, with each kind of data, scope and store."""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headwater.index.read import StoredIndex
from headwater.index.tombstones import add_tombstones
from tests.conform.encoder import save_tiny_encoder
from tests.e2e.conftest import QUERY, ROWS, Answer, World, command, contents, tiny, write_rows

Cli = Callable[..., Answer]

# ------------------------------------------------------------------------------------------------------- --help


def test_help_imports_no_torch_and_is_quick() -> None:
    """Half a second is the promise on an idle machine; processor time is what a loaded one can still judge."""
    script = "import sys, headwater.cli, headwater; print([m for m in ('torch', 'numpy', 'transformers', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    seconds = []
    for _ in range(3):
        before = _children_s()
        shown = subprocess.run([sys.executable, "-m", "headwater", "--help"], capture_output=True, text=True, check=True).stdout
        seconds.append(_children_s() - before)
        assert "index" in shown
        assert "trace" in shown
    assert statistics.median(seconds) < 0.5


def _children_s() -> float:
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_wrong_flag_is_a_usage_error(cli: Cli) -> None:
    assert cli("index", "model", "data").code == 2  # no -o
    assert cli("trace", "run", "--nonsense").code == 2


# --------------------------------------------------------------------------------------------------- the main job


def test_index_trace_report_export_verify_replay(world: World, cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    made = cli("index", world.model, world.data, "-o", run, "--shard-rows", 8, "--json")
    assert made.code == 0, made.err
    assert made.json["rows"] == len(ROWS)
    assert made.json["bad"] == 0
    assert made.json["bytes"] == sum(path.stat().st_size for path in (run / "index" / "shards").iterdir())
    assert f"{len(ROWS)} of {len(ROWS)} rows kept" in made.err

    traced = cli("trace", run, *QUERY, "--json")
    assert traced.code == 0, traced.err
    assert Path(traced.json["report"]).stat().st_size > 10_000
    (query,) = traced.json["queries"]
    assert set(query["top"]) == {"grad_cos", "grad_dot", "repsim", "repsim_response", "lexical", "length", "loss", "random"}
    best = query["top"]["grad_dot"][0]

    said = cli("trace", run, *QUERY)
    assert "grad_cos" in said.out
    assert "report:" in said.out

    assert cli("export", run, "--format", "csv", "--method", "grad_dot").code == 0
    table = pd.read_csv(run / "scores.csv")
    assert len(table) == len(ROWS)
    first = table.sort_values("score", ascending=False).iloc[0]
    assert first["id"] == best["id"]
    assert first["score"] == pytest.approx(best["score"])
    assert ROWS[int(first["row"])]["prompt"].startswith("What colour")

    page = tmp_path / "page.html"
    assert cli("report", run, "-o", page).code == 0
    assert page.read_text(encoding="utf-8").count("<html") == 1

    checked = cli("verify", run, "--json")
    assert checked.code == 0
    assert {finding["status"] for finding in checked.json["findings"]} == {"ok"}

    again = cli("replay", run, "-o", tmp_path / "again", "--json")
    assert again.code == 0, again.err
    assert again.json["identical"]
    assert again.json["compared"] == 2 * 3 + 8  # two files a shard, one a method
    assert contents(run / "index") == contents(tmp_path / "again" / "index")


def test_the_index_command_with_nothing_left_to_do_changes_nothing(world: World, cli: Cli, tmp_path: Path) -> None:
    run = shutil.copytree(world.run, tmp_path / "run")
    before = contents(run)
    assert cli("index", world.model, world.data, "-o", run, "--shard-rows", 8).code == 0
    assert contents(run) == before


def test_replay_says_what_differs(world: World, cli: Cli, tmp_path: Path) -> None:
    run = shutil.copytree(world.run, tmp_path / "run")
    scores = next(run.glob("scores/*/grad_dot.safetensors"))
    scores.write_bytes(scores.read_bytes()[:-4] + b"\0\0\0\0")
    answer = cli("replay", run, "-o", tmp_path / "again", "--json")
    assert answer.code == 3
    assert answer.json["different"] == [str(scores.relative_to(run))]
    assert cli("replay", run, "-o", run).code == 2


def test_replay_repeats_appended_rows_and_removed_ones_and_names_what_it_cannot(world: World, cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    halves = [write_rows(tmp_path / f"{i}.jsonl", ROWS[i * 12 : (i + 1) * 12]) for i in range(2)]
    assert cli("index", world.model, halves[0], "-o", run, "-q").code == 0
    before = cli("trace", run, *QUERY, "--method", "loss", "--json").json["trace"]
    assert cli("index", world.model, halves[1], "-o", run, "--append", "-q").code == 0
    add_tombstones(run, [StoredIndex.open(run).ids[3]], reason="a test")
    assert cli("trace", run, *QUERY, "--method", "grad_cos", "-q").code == 0
    answer = cli("replay", run, "-o", tmp_path / "again", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["skipped"] == {Path(before).name: "rows were appended or removed since"}
    assert answer.json["compared"] == 2 * 2 + 1
    assert len(StoredIndex.open(tmp_path / "again")) == len(ROWS) - 1


def test_plan_counts_what_the_index_then_holds_and_writes_nothing(world: World, cli: Cli, tmp_path: Path) -> None:
    for store in ("float32", "bfloat16", "int8"):
        plan = cli("plan", world.model, world.data, "--store", store, "--json").json
        made = cli("index", world.model, world.data, "-o", tmp_path / store, "--store", store, "--json", "-q").json
        tensors = sum(path.stat().st_size for path in (tmp_path / store / "index" / "shards").glob("*.safetensors"))
        texts = sum(len(row["prompt"]) + len(row["response"]) for row in ROWS)
        assert plan["rows"] == made["rows"] == len(ROWS)
        assert plan["numbers_per_row"] == made["numbers_per_row"]
        assert plan["disk_bytes"] - texts == pytest.approx(tensors, rel=0.02)  # the rest is the file's header
    assert plan["parameters_in_scope"] == plan["parameters"]
    assert plan["seconds"] > 0
    assert "in scope" in cli("plan", world.model, world.data).out
    assert not (tmp_path / "run").exists()


def test_methods_says_what_each_needs(cli: Cli) -> None:
    table = {line["name"]: line for line in cli("methods", "--json").json["methods"]}
    assert table["grad_dot"]["needs"] == ["gradient"]
    assert table["grad_dot"]["unit"] == "nats"
    assert "grad_dot" in cli("methods").out


# ------------------------------------------------------------------------------------------------- kinds of input


def _as_csv(path: Path) -> Path:
    pd.DataFrame(ROWS).to_csv(path / "rows.csv", index=False)
    return path / "rows.csv"


def _as_parquet(path: Path) -> Path:
    pd.DataFrame(ROWS).to_parquet(path / "rows.parquet")
    return path / "rows.parquet"


def _as_saved(path: Path) -> Path:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(path / "saved")
    return path / "saved"


@pytest.mark.parametrize("write", [_as_csv, _as_parquet, _as_saved])
def test_the_same_rows_give_the_same_index_from_any_kind_of_file(
    write: Callable[[Path], Path], world: World, cli: Cli, tmp_path: Path
) -> None:
    assert cli("index", world.model, write(tmp_path), "-o", tmp_path / "run", "--shard-rows", 8, "-q").code == 0
    one, other = StoredIndex.open(world.run), StoredIndex.open(tmp_path / "run")
    assert one.ids == other.ids
    assert contents(world.run / "index" / "shards").keys() == contents(tmp_path / "run" / "index" / "shards").keys()
    np.testing.assert_array_equal(one.take("gradient", range(len(ROWS))), other.take("gradient", range(len(ROWS))))


def test_conversations_and_columns_by_another_name(world: World, cli: Cli, tmp_path: Path) -> None:
    """A one-turn conversation is the same text as prompt and response: the same ids."""
    turns = [{"talk": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]} for row in ROWS]
    named = [{"q": row["prompt"], "a": row["response"]} for row in ROWS]
    for name, rows, columns in (("talk", turns, "messages=talk"), ("named", named, "prompt=q,response=a")):
        data = write_rows(tmp_path / f"{name}.jsonl", rows)
        assert cli("index", world.model, data, "-o", tmp_path / name, "--columns", columns, "-q").code == 0
        assert StoredIndex.open(tmp_path / name).ids == StoredIndex.open(world.run).ids


def test_plain_text_and_loss_on_all(world: World, cli: Cli, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "text.jsonl", [{"text": row["prompt"]} for row in ROWS])
    assert cli("index", world.model, data, "-o", tmp_path / "text", "-q").code == 0
    index = StoredIndex.open(tmp_path / "text")
    assert (index.column("n_loss_tokens") == index.column("n_tokens") - 1).all()
    assert cli("index", world.model, world.data, "-o", tmp_path / "all", "--loss-on", "all", "-q").code == 0
    assert (StoredIndex.open(tmp_path / "all").column("n_loss_tokens") > StoredIndex.open(world.run).column("n_loss_tokens")).all()


def test_an_encoder_adds_the_embedding_method(world: World, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named from another folder, it is found again by the replay."""
    save_tiny_encoder(tmp_path / "encoder")
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(world.run, tmp_path / "run")
    answer = cli("trace", run, *QUERY, "--encoder", "encoder", "--json")
    assert answer.code == 0, answer.err
    assert len(answer.json["queries"][0]["top"]) == 9
    assert answer.json["queries"][0]["top"]["embedding"][0]["score"] <= 1.001
    monkeypatch.chdir("/")
    again = cli("replay", run, "-o", tmp_path / "again", "--json")
    assert again.code == 0, again.err
    assert again.json["identical"]


def test_queries_from_a_file_with_spans_and_ids(run: Path, cli: Cli, tmp_path: Path) -> None:
    queries = [
        {"id": "whole", "prompt": QUERY[1], "response": QUERY[3]},
        {"id": "part", "prompt": QUERY[1], "response": QUERY[3], "span": "red"},
    ]
    path = write_rows(tmp_path / "queries.jsonl", queries)
    answer = cli("trace", run, "--queries", path, "--method", "grad_dot", "--json", "--no-report")
    assert answer.code == 0, answer.err
    assert answer.json["report"] is None
    values = {query["id"]: query["measure_value"] for query in answer.json["queries"]}
    assert values["whole"] < values["part"] < 0  # a part of the sum of negative terms
    record = json.loads((Path(answer.json["trace"]) / "trace.json").read_text())
    whole, part = record["queries"]
    assert sum(token["target"] for token in part["tokens"]) < sum(token["target"] for token in whole["tokens"])
    assert sum(token["log_prob"] or 0 for token in whole["tokens"]) == pytest.approx(values["whole"], rel=1e-5)


def test_a_contrast_is_the_difference_of_two_responses(run: Path, cli: Cli) -> None:
    def measured(*more: str) -> float:
        return cli("trace", run, "--method", "grad_dot", "--json", "--no-report", *more).json["queries"][0]["measure_value"]

    one, other = measured(*QUERY), measured(*QUERY[:2], "--response", "It is a very blue one.")
    contrast = cli("trace", run, *QUERY, "--alternative", "It is a very blue one.", "--method", "grad_dot", "--json", "--no-report")
    assert contrast.json["measure"]["name"] == "contrast"
    assert contrast.json["queries"][0]["measure_value"] == pytest.approx(one - other, rel=1e-4)


def test_a_recipe_file_and_overrides_stand_in_for_flags(world: World, cli: Cli, tmp_path: Path) -> None:
    index = tmp_path / "index.yaml"
    index.write_text(f"model: {{path: {world.model}}}\ndata: {{source: {world.data}, limit: 9}}\nsketch: {{rank: 4}}\n")
    run = tmp_path / "run"
    assert cli("index", "--config", index, "-o", run, "--limit", 7, "--set", "sketch.whole_below=0", "--set", "store.dtype=int8").code == 0
    written = (run / "recipe.yaml").read_text()
    assert "limit: 7" in written
    assert "rank: 4" in written
    assert "whole_below: 0" in written
    assert len(StoredIndex.open(run)) == 7
    # what a run wrote repeats it
    assert cli("index", "--config", run / "recipe.yaml", "-o", tmp_path / "again", "-q").code == 0
    assert contents(run / "index") == contents(tmp_path / "again" / "index")

    trace = tmp_path / "trace.yaml"
    trace.write_text("methods:\n  lexical:\n    text: prompt\n  random:\nk: 2\n")
    answer = cli("trace", run, *QUERY, "--config", trace, "--set", "methods.random.seed=5", "--json")
    assert answer.code == 0, answer.err
    record = json.loads((Path(answer.json["trace"]) / "trace.json").read_text())
    assert record["recipe"]["methods"] == {"lexical": {"text": "prompt"}, "random": {"seed": 5}}
    assert record["primary"] == "lexical"
    assert len(record["queries"][0]["ranked"]["random"]["proponents"]) == 2


# ----------------------------------------------------------------------------------------------- kinds of model


@pytest.mark.parametrize(("dtype", "store"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("float32", "int8")])
def test_dtypes_of_model_and_store(dtype: str, store: str, world: World, cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli("index", world.model, world.data, "-o", run, "--dtype", dtype, "--store", store, "-q").code == 0
    index, reference = StoredIndex.open(run), StoredIndex.open(world.run)
    assert index.spec.dtype == store
    a, b = (one.take("gradient", range(len(ROWS))).double() for one in (index, reference))
    cosine = (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)
    assert cosine.min() > (0.97 if dtype == "bfloat16" else 0.999)
    assert cli("trace", run, *QUERY, "--json").code == 0


def test_an_adapter_alone_on_top_and_merged(world: World, cli: Cli, tmp_path: Path) -> None:
    runs = {name: tmp_path / name for name in ("alone", "on_top", "merged")}
    assert cli("index", world.adapter, world.data, "-o", runs["alone"], "-q").code == 0
    assert cli("index", world.model, world.data, "--adapter", world.adapter, "-o", runs["on_top"], "-q").code == 0
    assert cli("index", world.model, world.data, "--adapter", world.adapter, "--merge", "-o", runs["merged"], "-q").code == 0
    indexes = {name: StoredIndex.open(run) for name, run in runs.items()}
    assert all("lora" in block.name for block in indexes["alone"].layout.blocks)
    assert contents(runs["alone"] / "index") == contents(runs["on_top"] / "index")
    assert not any("lora" in block.name for block in indexes["merged"].layout.blocks)
    np.testing.assert_allclose(indexes["merged"].column("loss"), indexes["alone"].column("loss"), rtol=1e-4)
    assert cli("trace", runs["alone"], *QUERY, "--json").code == 0


def test_a_classifier_with_named_labels(cli: Cli, tmp_path: Path) -> None:
    model = _classifier(tmp_path / "model")
    rows = [{"text": row["prompt"], "label": ("yes", "no", "maybe")[i % 3]} for i, row in enumerate(ROWS)]
    made = cli("index", model, write_rows(tmp_path / "rows.jsonl", rows), "-o", tmp_path / "run", "--json")
    assert made.code == 0, made.err
    answer = cli("trace", tmp_path / "run", "--prompt", ROWS[0]["prompt"], "--label", "maybe", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["measure"]["name"] == "class_logit_margin"
    assert StoredIndex.open(tmp_path / "run").column("label").tolist() == [0, 1, 2] * 8
    refused = cli("trace", tmp_path / "run", "--prompt", ROWS[0]["prompt"], "--label", "purple")
    assert refused.code == 3
    assert "purple" in refused.err
    assert "maybe" in refused.err


def _classifier(folder: Path) -> Path:
    from transformers import BertConfig, BertForSequenceClassification, set_seed

    from headwater.model.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer([row["prompt"] for row in ROWS], 300)
    tokenizer.save_pretrained(folder)
    set_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, id2label={0: "yes", 1: "no", 2: "maybe"}, label2id={"yes": 0, "no": 1, "maybe": 2},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_mixture_of_experts(world: World, cli: Cli, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM, set_seed

    tokenizer = AutoTokenizer.from_pretrained(world.model)
    tokenizer.save_pretrained(tmp_path / "model")
    set_seed(0)
    MixtralForCausalLM(
        MixtralConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=128,
        )
    ).save_pretrained(tmp_path / "model")  # fmt: skip
    made = cli("index", tmp_path / "model", world.data, "-o", tmp_path / "run", "--json")
    assert made.code == 0, made.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["scope"]["in_scope"] == record["scope"]["parameters"]
    assert any("experts" in block.name for block in StoredIndex.open(tmp_path / "run").layout.blocks)
    assert cli("trace", tmp_path / "run", *QUERY, "--json").code == 0


def test_a_scope_is_counted_and_named(world: World, cli: Cli, tmp_path: Path) -> None:
    answer = cli("index", world.model, world.data, "-o", tmp_path / "run", "--include", "*mlp*", "--exclude", "*layers.0*", "-q")
    assert answer.code == 0
    blocks = [block.name for block in StoredIndex.open(tmp_path / "run").layout.blocks]
    assert blocks
    assert all("mlp" in name and "layers.1" in name for name in blocks)
    scope = json.loads((tmp_path / "run" / "run.json").read_text())["scope"]
    assert {group["reason"] for group in scope["outside"]} == {"left out by include", "left out by exclude"}


def test_a_causal_model_without_a_padding_token_just_works(cli: Cli, world: World, tmp_path: Path) -> None:
    model = _without_padding(tiny(tmp_path / "model", pad_token_id=None))
    assert cli("index", model, world.data, "-o", tmp_path / "run", "--shard-rows", 8, "-q").code == 0
    one, other = StoredIndex.open(tmp_path / "run"), StoredIndex.open(world.run)
    assert one.ids == other.ids
    np.testing.assert_array_equal(one.take("gradient", range(len(ROWS))), other.take("gradient", range(len(ROWS))))


def _without_padding(model: Path) -> Path:
    path = model / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("pad_token")
    path.write_text(json.dumps(settings))
    return model


# ---------------------------------------------------------------------------- rows: copies, appended, removed


def test_copies_have_ids_of_their_own_also_in_what_is_appended(world: World, cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    twice = write_rows(tmp_path / "twice.jsonl", [ROWS[0], ROWS[1], ROWS[0]])
    assert cli("index", world.model, twice, "-o", run, "-q").code == 0
    more = write_rows(tmp_path / "more.jsonl", [ROWS[0], ROWS[2]])
    assert cli("index", world.model, more, "-o", run, "--append", "-q").code == 0
    first = StoredIndex.open(world.run).ids
    assert StoredIndex.open(run).ids == (first[0], first[1], f"{first[0]}~2", f"{first[0]}~3", first[2])
    assert (run / "run-2.json").exists()
    assert (run / "corpus-2.json").exists()
    record = cli("trace", run, *QUERY, "--json").json
    rows = json.loads((Path(record["trace"]) / "trace.json").read_text())["rows"]
    assert rows[first[0]]["copies"] == 3
    assert cli("verify", run).code == 0


def test_removed_rows_are_never_answered_with(world: World, cli: Cli, tmp_path: Path) -> None:
    run = shutil.copytree(world.run, tmp_path / "run")
    best = cli("trace", run, *QUERY, "--json").json["queries"][0]["top"]["grad_cos"][0]["id"]
    add_tombstones(run, [best], reason="a test")
    after = cli("trace", run, *QUERY, "--json").json
    for ranked in after["queries"][0]["top"].values():
        assert best not in [row["id"] for row in ranked]
    assert cli("export", run, "--format", "jsonl").code == 0
    assert best not in (run / "scores.jsonl").read_text()
    assert cli("index", world.model, world.data, "-o", run, "--shard-rows", 8, "--json", "-q").json["rows"] == len(ROWS) - 1


# -------------------------------------------------------------------------------------------------- interruption


def test_ctrl_c_leaves_a_run_that_goes_on_to_the_same_bytes(world: World, cli: Cli, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    rows = write_rows(tmp_path / "many.jsonl", [{**row, "prompt": f"{row['prompt']} {i}"} for i in range(20) for row in ROWS])
    arguments = ("index", world.model, rows, "--shard-rows", 2, "--token-budget", 64)
    process = command(*arguments, "-o", run)
    _wait_for_commits(process, run, 3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in err
    assert "Traceback" not in err
    n_done = len(list((run / "index" / "commits").iterdir()))
    assert 3 <= n_done < 240
    kept = contents(run / "index" / "shards")
    unfinished = cli("trace", run, *QUERY)
    assert unfinished.code == 3
    assert "goes on where it stopped" in unfinished.err
    assert cli(*arguments, "-o", run, "-q").code == 0
    assert cli(*arguments, "-o", whole, "-q").code == 0
    assert contents(run / "index") == contents(whole / "index")
    assert kept.items() <= contents(run / "index" / "shards").items()


def _wait_for_commits(process: subprocess.Popen[str], run: Path, n: int) -> None:
    deadline = time.monotonic() + 120
    while len(list((run / "index" / "commits").glob("[0-9]*.json"))) < n:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_runs_end_with_the_bytes_of_an_undisturbed_one() -> None:
    """The benchmark that kills fifty, with three."""
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.crash", "--kills", "3", "--subprocesses", "0"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result["identical"] == result["runs"] == 3
    assert result["kills"] >= 3
    assert result["different"] == []
