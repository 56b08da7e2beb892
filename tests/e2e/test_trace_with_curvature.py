"""Traces by influence: in the stored rows, in the model's own parameters, and with nothing sketched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import headwater
from headwater.types import IntegrityError
from tests.e2e.conftest import QUERY, Answer, World

Cli = Callable[..., Answer]


def test_ekfac_by_every_mode_on_one_index(run: Path, cli: Cli) -> None:
    """On an index that keeps everything whole, scanning it and recomputing the rows are the same answer."""
    found = {}
    for mode in ("stored", "model", "exact"):
        asked = ("--prompt", QUERY[1], "--response", QUERY[3], "--method", "ekfac", "--set", f"methods.ekfac.mode={mode}")
        answer = cli("trace", run, *asked, "--json", "-q")
        assert answer.code == 0, answer.err
        trace = headwater.load(run).newest()
        scores = trace.scores["ekfac"]
        assert scores.unit == "nats"
        provenance = trace.record["methods"][0]["provenance"]
        assert provenance["mode"] == mode
        assert provenance["damping"]["least"] > 0
        assert provenance["solve"]["status"] == "closed_form"
        found[mode] = scores.values_QN[0]
    assert np.corrcoef(found["model"], found["exact"])[0, 1] > 0.9, "the sketch of so small a model keeps most"
    assert not np.allclose(found["stored"], found["exact"])


def test_ekfac_cg_solves_what_ekfac_approximates(world: World, tmp_path: Path) -> None:
    """LoRA blocks are small enough to be kept whole: model and exact mode agree, and CG says how near it came."""
    run = headwater.index(world.model, world.data, tmp_path / "run", model__adapter=str(world.adapter), store__dtype="float32")
    options = {"damping": 0.5, "tolerance": 1e-3, "max_steps": 30}
    methods = {"ekfac": {"mode": "exact", "damping": 0.5}, "ekfac_cg": {"mode": "model", **options}, "cg": {"mode": "exact", **options}}
    trace = headwater.trace(run, prompt=QUERY[1], response=QUERY[3], methods=methods)
    solves = {one["name"]: one["provenance"]["solve"] for one in trace.record["methods"]}
    assert solves["cg"]["status"] == solves["ekfac_cg"]["status"] == "converged"
    assert solves["ekfac_cg"]["steps"] <= solves["cg"]["steps"]
    assert solves["ekfac_cg"]["residual_largest"] <= 1e-3
    assert solves["ekfac_cg"]["residual_of"] == "ggn"
    cg, ekfac_cg = trace.scores["cg"].values_QN, trace.scores["ekfac_cg"].values_QN
    np.testing.assert_allclose(ekfac_cg, cg, rtol=1e-2, atol=1e-2 * np.abs(cg).max())


def test_data_that_changed_is_noticed_before_any_number(world: World, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    lines = world.data.read_text().splitlines()
    data.write_text("\n".join(lines))
    run = headwater.index(world.model, data, tmp_path / "run")
    data.write_text("\n".join([*lines[:-1], json.dumps({"prompt": "other", "response": "words"})]))
    with pytest.raises(IntegrityError, match="not in its data any more"):
        headwater.trace(run, prompt=QUERY[1], response=QUERY[3], methods={"ekfac": {"mode": "exact"}})


def test_rows_that_are_bad_stay_out_of_the_curvature(world: World, tmp_path: Path) -> None:
    """A token whose embedding is NaN makes its rows bad: they score NaN, and nothing else notices."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    broken = tmp_path / "broken"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(world.model), AutoTokenizer.from_pretrained(world.model)
    rows = [json.loads(line) for line in world.data.read_text().splitlines()]
    rare = tokenizer("7 z").input_ids[-1]
    with torch.no_grad():
        model.get_input_embeddings().weight[rare] = torch.nan
    model.save_pretrained(broken)
    tokenizer.save_pretrained(broken)
    rows = [{**row, "response": row["response"].replace("z", "")} for row in rows]
    rows[3]["response"] += " z"
    run = headwater.index(broken, rows, tmp_path / "run", scope__include=["*q_proj*"])
    query = {"prompt": "A short one", "response": "to ask"}
    trace = headwater.trace(run, **query, methods={"ekfac": {"mode": "exact"}}, data=rows)
    values = trace.scores["ekfac"].values_QN[0]
    assert np.isnan(values[3])
    assert np.isfinite(np.delete(values, 3)).all()
