"""A file is whole or absent, whatever the disk does."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headwater import atomic
from headwater.atomic import left_overs, read_json, remove_left_overs, write_atomically, write_json
from headwater.types import HeadwaterError, IntegrityError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(code: int, *, after: int = 0) -> Callable:
    """An os call that fails with this error, the first `after` calls excepted."""
    calls = []

    def call(*_args, **_options):
        calls.append(1)
        if len(calls) > after:
            raise OSError(code, os.strerror(code))

    return call


def test_bytes_and_writers_both_make_the_file_and_its_folder(tmp_path: Path):
    write_atomically(tmp_path / "new" / "a", b"one")
    write_atomically(tmp_path / "new" / "b", lambda file: [file.write(b"t"), file.write(b"wo")])
    assert (tmp_path / "new/a").read_bytes() == b"one"
    assert (tmp_path / "new/b").read_bytes() == b"two"
    assert names(tmp_path / "new") == ["a", "b"]


def test_equal_values_are_equal_bytes(tmp_path: Path):
    write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    write_json(tmp_path / "b.json", {"a": "é", "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_json(tmp_path / "a.json", way_out="") == {"a": "é", "b": 1}


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EIO, "what the system says")]
)
def test_whatever_the_system_refuses_nothing_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, words: str):
    target = tmp_path / "a.json"
    target.write_bytes(b"before")
    monkeypatch.setattr(atomic.os, call, refuse(code))
    with pytest.raises(IntegrityError, match=rf"could not write .*a\.json .*Nothing that was there has changed.*{words}"):
        write_atomically(target, b"after")
    monkeypatch.undo()
    assert target.read_bytes() == b"before"
    assert names(tmp_path) == ["a.json"]


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path):
    def fail(file):
        file.write(b"half")
        raise RuntimeError("in the middle")

    (tmp_path / "a").write_bytes(b"before")
    with pytest.raises(RuntimeError, match="in the middle"):
        write_atomically(tmp_path / "a", fail)
    assert (tmp_path / "a").read_bytes() == b"before"
    assert names(tmp_path) == ["a"]


def test_a_real_file_size_limit_is_explained(tmp_path: Path):
    """A disk that takes some of the bytes and then no more, without mocking: the limit of a child process."""
    code = (
        "import resource, sys; from pathlib import Path; from headwater.atomic import write_atomically\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "try: write_atomically(Path(sys.argv[1]), b'x' * 5000)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    (tmp_path / "a").write_bytes(b"before")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("IntegrityError could not write")
    assert "ulimit -f" in done.stdout
    assert (tmp_path / "a").read_bytes() == b"before"
    assert names(tmp_path) == ["a"]


def test_a_file_where_a_folder_should_be_is_explained(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HeadwaterError, match="could not write"):
        write_atomically(tmp_path / "file" / "a", b"")


def test_left_overs_are_those_of_writers_that_are_gone(tmp_path: Path):
    (tmp_path / ".a.json.99-ab.tmp").write_bytes(b"left by a killed writer")
    (tmp_path / "kept.tmp").write_bytes(b"")

    def look(file):
        file.write(b"x")
        file.flush()
        assert len(list(tmp_path.glob(".*.tmp"))) == 2  # the left-over, and the living writer's own
        assert [path.name for path in left_overs(tmp_path)] == [".a.json.99-ab.tmp"]

    write_atomically(tmp_path / "b", look)
    remove_left_overs(tmp_path)
    assert names(tmp_path) == ["b", "kept.tmp"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]"])
def test_json_that_is_no_object_is_named_with_the_way_out(tmp_path: Path, content: bytes):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"a\.json.*Take this road\."):
        read_json(tmp_path / "a.json", way_out="Take this road.")
