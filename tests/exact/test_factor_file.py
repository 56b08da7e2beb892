"""What a pass leaves in a file is what it computed, is used in place of further passes, and is never in the way."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from headwater.gradient import factor_file, team
from headwater.gradient.factor_file import FactorFile, file_bytes, together
from headwater.gradient.factors import dense_rows
from headwater.gradient.live import LiveSource
from headwater.types import Block, FactorBatch, Factors, Labels, Layout
from tests.exact.models import make_batch, make_session
from tests.exact.test_live_source import assert_rows_equal, counted_passes, examples_of, gathered, whole_layout

LENGTHS = (9, 5, 7, 9, 6, 8, 4)


def source_of(
    architecture: str, folder: Path | None, *, keep: tuple[Labels, ...] = ("true", "sampled"), dtype: torch.dtype = torch.float64
) -> LiveSource:
    session = make_session(architecture, dtype=dtype)
    examples = examples_of(make_batch(session, lengths=LENGTHS))
    return LiveSource(session, examples, whole_layout(session), token_budget=27, keep=keep, keep_bytes=0, folder=folder)


def passed(source: LiveSource, labels: Labels) -> list[torch.Tensor]:
    """[N, D] the rows by way of `over_factors`."""

    def term(so_far: dict[int, torch.Tensor], batch: FactorBatch) -> None:
        rows_BD = dense_rows(source.layout, batch.factors, len(batch.positions))
        so_far.update(zip(batch.positions, rows_BD, strict=True))

    found = {i: row for one in source.over_factors(labels, dict[int, torch.Tensor], term) for i, row in one.items()}
    return [found[i] for i in range(len(source))]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, ...]]:
    return counted_passes(monkeypatch)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "llama_lora", "bert"])
def test_one_pass_serves_all_labels_and_what_comes_back_is_the_same(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: Counter[tuple[str, ...]]
) -> None:
    monkeypatch.setattr(team, "WORKER_TOKENS", (9, 9))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        source = source_of(architecture, tmp_path)
        assert source.in_file("true") == []
        assert not source.keeps("true")
        drawn_again = passed(source, "resampled")
        assert passes == {("true", "sampled", "resampled"): len(LENGTHS)}
        kept: dict[Labels, list[torch.Tensor]] = {labels: passed(source, labels) for labels in ("true", "sampled")}
        by_rows = gathered(source, "sampled")
        assert passes.total() == len(LENGTHS), "no further pass"
    finally:
        torch.set_num_threads(threads)
    plain = source_of(architecture, None)
    kept["resampled"] = drawn_again
    for labels, rows in kept.items():
        assert_rows_equal(torch.stack(rows), gathered(plain, labels))
    assert_rows_equal(by_rows, gathered(plain, "sampled"))
    assert os.listdir(tmp_path) == [], "the file has no name"


def test_blocks_that_read_one_input_share_it_and_it_is_there_once(tmp_path: Path) -> None:
    source = source_of("llama", tmp_path)
    passed(source, "true")
    (batch, *_), (drawn, *_) = source.in_file("true"), source.in_file("sampled")
    loaded = batch.load()
    plain = next(one for one in source_of("llama", None).factors("true") if tuple(one.positions) == tuple(batch.positions))

    def shared(factors: dict[str, Factors]) -> list[tuple[str, ...]]:
        of: dict[int, list[str]] = {}
        for name, one in sorted(factors.items()):
            of.setdefault(id(one.a_BTI), []).append(name)
        return sorted(tuple(names) for names in of.values())

    assert shared(dict(loaded.factors)) == shared(dict(plain.factors))
    assert max(map(len, shared(dict(loaded.factors)))) == 3, "queries, keys and values"
    projections = [name for name in batch.places if name.endswith("_proj.weight")]
    assert [batch.places[name][0] for name in projections] == [drawn.places[name][0] for name in projections], "whatever the labels"
    embedding = next(name for name in batch.places if "embed" in name)
    assert batch.places[embedding][0] != drawn.places[embedding][0], "what a table of words is given is the gradient"
    assert loaded.used_BT.equal(plain.used_BT)
    for name, one in plain.factors.items():
        assert batch.block(name).a_BTI.equal(one.a_BTI)
        assert batch.block(name).g_BTO.equal(one.g_BTO)


def test_float32_is_kept_in_half_as_many_bytes(tmp_path: Path) -> None:
    kept, plain = source_of("llama", tmp_path, dtype=torch.float32), source_of("llama", None, dtype=torch.float32)
    passed(kept, "true")
    exact_ND = torch.stack(passed(plain, "true"))
    found_ND = torch.stack(passed(kept, "true"))
    off = (found_ND - exact_ND).norm(dim=1) / exact_ND.norm(dim=1)
    assert float(off.min()) > 1e-4
    assert float(off.max()) < 2**-8
    file = kept._file
    assert file is not None
    n_positions = sum(LENGTHS)
    padded = sum(batch.used_BT.numel() for batch in file.batches("true"))
    assert file_bytes(kept.layout, n_positions, 2, torch.float32) * 4 == file_bytes(kept.layout, n_positions, 2, torch.float64)
    assert os.fstat(file.tensors._file.fileno()).st_size <= file_bytes(kept.layout, padded, 2, torch.float32)


@pytest.mark.parametrize("why", ["too many bytes", "a full disk", "no such folder", "nothing to keep", "rows fit in memory"])
def test_without_room_everything_is_computed_anew(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: Counter[tuple[str, ...]]
) -> None:
    if why == "too many bytes":
        monkeypatch.setattr(factor_file, "FILE_BYTES", 1000)
    if why == "a full disk":
        monkeypatch.setattr(factor_file, "SHARE_OF_FREE", 0.0)
    source = source_of(
        "llama", tmp_path / "absent" if why == "no such folder" else tmp_path, keep=() if why == "nothing to keep" else ("true",)
    )
    if why == "rows fit in memory":
        source = LiveSource(source.session, source.examples, source.layout, keep=("true",), folder=tmp_path)
    first, again = passed(source, "sampled"), passed(source, "sampled")
    assert source.in_file("true") == []
    assert_rows_equal(torch.stack(first), torch.stack(again))
    assert passes[("true", "sampled")] == (len(LENGTHS) if why == "rows fit in memory" else 0)


def test_a_disk_that_fills_up_costs_what_was_kept_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: Counter[tuple[str, ...]]
) -> None:
    source, plain = source_of("llama", tmp_path), source_of("llama", None)
    write, written = os.pwrite, Counter[str]()

    def full(*args: object) -> int:
        written["calls"] += 1
        if written["calls"] > 40:
            raise OSError(28, "No space left on device")
        return write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "pwrite", full)
    rows = passed(source, "true")
    assert written["calls"] == 41, "and it is not tried again"
    assert_rows_equal(torch.stack(rows), gathered(plain, "true"))
    assert source.in_file("true") == []
    passes.clear()
    assert_rows_equal(torch.stack(passed(source, "true")), torch.stack(rows))
    assert passes.total() == len(LENGTHS), "a pass of its own"
    assert source._file is not None
    assert os.fstat(source._file.tensors._file.fileno()).st_size == 0


def test_a_pass_that_was_broken_off_leaves_nothing_and_can_be_run_again(tmp_path: Path) -> None:
    source = source_of("llama", tmp_path)
    done: list[FactorBatch] = []

    def term(so_far: None, batch: FactorBatch) -> None:
        done.append(batch)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source.over_factors("true", lambda: None, term)
    assert source.in_file("true") == []
    assert_rows_equal(torch.stack(passed(source, "true")), gathered(source_of("llama", None), "true"))
    assert_rows_equal(torch.stack(passed(source, "true")), gathered(source_of("llama", None), "true"))
    assert sorted(i for batch in source.in_file("true") for i in batch.positions) == list(range(len(LENGTHS)))


def test_reads_and_writes_go_on_until_all_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may move fewer bytes than it was asked to."""
    file = FactorFile(tmp_path, ("true",), torch.float64)
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, part, at: write(fd, part[:7], at))
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: read(fd, [parts[0][:5]], at))
    generator = torch.Generator().manual_seed(0)
    factors = Factors(*(torch.randn(2, 3, n, generator=generator, dtype=torch.float64) for n in (4, 5)))
    file.put("true", FactorBatch([4, 2], {"w": factors}, torch.ones(2, 3, dtype=torch.bool)))
    assert file.batches("true") == [], "not complete"
    file.complete = True
    (batch,) = file.batches("true")
    assert batch.block("w").a_BTI.equal(factors.a_BTI)
    assert batch.block("w").g_BTO.equal(factors.g_BTO)
    empty = Factors(torch.empty(1, 0, 4), torch.empty(1, 0, 5))
    file.put("true", FactorBatch([9], {"w": empty}, torch.ones(1, 0, dtype=torch.bool)))
    assert file.batches("true")[1].block("w").g_BTO.shape == (1, 0, 5)


def test_batches_are_put_together_until_there_are_as_many_rows(tmp_path: Path) -> None:
    file = FactorFile(tmp_path, ("true",), torch.float64)
    for first, n in ((9, 3), (0, 2), (4, 4), (20, 1)):
        factors = {"w": Factors(torch.zeros(n, 1, 1), torch.zeros(n, 1, 1))}
        file.put("true", FactorBatch(range(first, first + n), factors, torch.ones(n, 1, dtype=torch.bool)))
    file.complete = True
    assert [[batch.positions[0] for batch in group] for group in together(file.batches("true"), 5)] == [[0, 4], [9, 20]]
    assert together([], 5) == []
    assert len(together(file.batches("true"), 1)) == 4


def test_a_layout_says_how_many_bytes_its_factors_take() -> None:
    layout = Layout((Block("w", (5, 3), (5, 3)), Block("b", (5,), (5,))))
    assert file_bytes(layout, 10, 1, torch.float64) == 10 * 8 * ((3 + 1) + (5 + 5))
    assert file_bytes(layout, 10, 3, torch.float32) == 10 * 2 * ((3 + 1) + 3 * (5 + 5))
