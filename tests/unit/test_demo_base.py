import numpy as np
import pytest
import torch

from headwater.demo import base as demo_base
from headwater.demo.base import cache_key, pretrain, pretrained
from headwater.demo.world import make_world
from headwater.model.tiny import tiny_tokenizer
from headwater.truth import pretrained as kept
from headwater.truth.pretrained import cache_folder, packed


@pytest.fixture(scope="module")
def world():
    return make_world(0, n_texts=120, n_rows=50, n_planted=10)


@pytest.fixture
def cached(world, tmp_path, monkeypatch):
    """(cache folder, the model that was put there, how often a model has been pretrained since)."""
    calls = []
    monkeypatch.setattr(demo_base, "pretrain", lambda world: calls.append(1) or pretrain(world))
    made = pretrained(world, cache=tmp_path)
    calls.clear()
    return tmp_path, made, calls


def same_weights(one, other):
    torch.testing.assert_close(one.model.state_dict(), other.model.state_dict(), rtol=0, atol=0)


def test_the_cache_gives_back_the_very_model(world, cached):
    folder, made, calls = cached
    found = pretrained(world, cache=folder)
    assert calls == []
    same_weights(found, made)
    assert found.tokenizer(world.texts[0])["input_ids"] == made.tokenizer(world.texts[0])["input_ids"]
    assert found.tokenizer.chat_template == made.tokenizer.chat_template
    assert not found.model.training


def test_another_world_is_another_entry(world, cached):
    folder, _, calls = cached
    pretrained(make_world(1, n_texts=120, n_rows=50, n_planted=10), cache=folder)
    assert calls == [1]
    assert len(list(folder.iterdir())) == 2


def test_a_damaged_entry_is_made_again(world, cached, capsys):
    folder, made, calls = cached
    weights = next(folder.glob("*/model.safetensors"))
    whole = weights.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[:1000], bytes(flipped)):
        calls.clear()
        weights.write_bytes(damaged)
        same_weights(pretrained(world, cache=folder), made)
        assert calls == [1]
        assert weights.read_bytes() == whole
    assert "damaged" in capsys.readouterr().err


def test_an_entry_without_its_checksums_is_made_again(world, cached):
    folder, _, calls = cached
    next(folder.glob("*/checksums.json")).unlink()
    pretrained(world, cache=folder)
    assert calls == [1]


def test_a_cache_that_cannot_be_written_costs_time_only(world, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert pretrained(world, cache=tmp_path / "file").model is not None
    assert "not cached" in capsys.readouterr().err


def test_a_failed_write_leaves_nothing(world, cached, monkeypatch):
    folder, made, _ = cached

    def full(path):
        raise OSError("No space left on device")

    monkeypatch.setattr(kept, "checksums", full)
    with pytest.raises(OSError, match="No space"):
        kept.write_cached(folder / "other", made)
    assert [path.name for path in folder.iterdir()] == [f"demo-{cache_key(world)}"]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADWATER_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("HEADWATER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "headwater"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "headwater"


def test_packing_keeps_every_token_in_order():
    tokenizer = tiny_tokenizer(())
    rows = packed(["ab", "<|user|>c<|assistant|>d</s>", "efg", "xy"], tokenizer, length=5)
    stream = np.concatenate([row.tokens for row in rows])
    assert tokenizer.decode(stream) == "<s>ab</s><s><|user|>c<|assistant|>d</s><s>efg</s>"
    assert all(row.loss_mask.tolist() == [False, True, True, True, True] for row in rows)
    assert len({row.id for row in rows}) == len(rows) == 3
