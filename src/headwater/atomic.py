"""Files that are either whole or absent: a temporary name in the same folder, fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from headwater.types import IntegrityError

Content = bytes | Callable[[BinaryIO], None]

# What the system says, and what a person can do about it. EFBIG is a file size limit (ulimit -f).
_WAYS_OUT = {
    errno.ENOSPC: "the disk is full: free some space, or choose another folder, and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space, or choose another folder, and run the same command again",
    errno.EFBIG: "the file would exceed a size limit (ulimit -f): raise it and run the same command again",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "the folder cannot be written by this user: change its permissions or choose another folder",
    errno.EPERM: "the folder cannot be written by this user: change its permissions or choose another folder",
    errno.ENOENT: "the folder is gone, or another process cleaned it up: see that it exists and that one process alone writes this file",
    errno.ENOTDIR: "a file stands where a folder should be: choose another folder",
}


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Give `path` this content, or leave what was there untouched; never anything between.

    `content` is the bytes, or a function that writes them to the file it is given. The file and its folder are on the disk
    when this returns. Raises IntegrityError where the system refuses (full disk, read-only folder, ...): nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_and_sync(temporary, content)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise IntegrityError(_explain(path, error)) from error
    finally:
        with contextlib.suppress(OSError):  # gone already after the rename; a folder that refused the file has none to remove
            os.unlink(temporary)


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON with sorted keys, so that equal values are equal bytes."""
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_json(path: Path, *, way_out: str) -> dict[str, Any]:
    """The JSON object in `path`. Raises IntegrityError, ending in `way_out`, where it is missing, unreadable or no object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path} cannot be read as JSON ({error}). {way_out}") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{path} holds a JSON {type(value).__name__}, expected an object. {way_out}")
    return value


def sync_folder(folder: Path) -> None:
    """Put the folder's own entries on the disk: without this a rename can be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def left_overs(folder: Path) -> Iterator[Path]:
    """Temporary files of writers that are gone: a living writer holds a lock on its own until the rename."""
    for path in sorted(folder.glob(".*.tmp")):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield path


def remove_left_overs(folder: Path) -> None:
    """Delete the temporary files that killed writers left in `folder`."""
    for path in left_overs(folder):
        path.unlink(missing_ok=True)


def _write_and_sync(path: Path, content: Content) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with open(descriptor, "wb") as file:
        with contextlib.suppress(OSError):  # some network file systems know no locks; then nothing there is taken for a left-over
            fcntl.flock(file, fcntl.LOCK_EX)
        if callable(content):
            content(file)
        else:
            file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _explain(path: Path, error: OSError) -> str:
    way_out = _WAYS_OUT.get(error.errno or 0, "see what the system says about this folder, and run the same command again")
    return f"could not write {path} ({error.strerror or error}). Nothing that was there has changed. Likely: {way_out}."
