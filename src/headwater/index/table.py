"""The row table of a shard: what is known of each row besides its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headwater.index.files import REDO
from headwater.types import DataError, IntegrityError

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("group", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("label", pa.int64()),
        ("loss", pa.float64()),
        ("n_tokens", pa.int64()),
        ("n_loss_tokens", pa.int64()),
        ("truncated", pa.bool_()),
        ("bad", pa.bool_()),
    ]
)


def import_pandas() -> None:
    """To be called before a pass: pyarrow does it when it first converts, for a third of a second with python's lock. Takes 40 MB."""
    import pandas  # noqa: F401


def table_bytes(columns: Mapping[str, Sequence[Any]]) -> bytes:
    """The parquet file of these columns. Equal columns give equal bytes: no time, no name of a machine is in it."""
    if set(columns) != set(SCHEMA.names):
        missing, unknown = sorted(set(SCHEMA.names) - set(columns)), sorted(set(columns) - set(SCHEMA.names))
        raise DataError(f"row table: missing columns {missing}, unknown columns {unknown}; expected {SCHEMA.names}")
    try:
        table = pa.table({name: pa.array(_plain(columns[name]), SCHEMA.field(name).type) for name in SCHEMA.names}, schema=SCHEMA)
    except (pa.ArrowException, UnicodeError) as error:
        raise DataError(f"row table: {error}. Expected the types {dict(zip(SCHEMA.names, map(str, SCHEMA.types), strict=True))}") from error
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def read_column(path: Path, name: str) -> np.ndarray:
    """One column of a shard's table. Numbers with a null among them come as float64 with NaN, text as objects."""
    try:
        column = pq.read_table(path, columns=[name], schema=SCHEMA).column(name)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise IntegrityError(f"{path} cannot be read as a row table ({error}). {REDO}") from error
    return column.to_numpy()


def _plain(values: Sequence[Any]) -> Sequence[Any]:
    """Lone surrogates (half of a character, as cut text has them) cannot be UTF-8: each becomes the replacement character."""
    return [v.encode("utf-8", "replace").decode() if isinstance(v, str) and not v.isascii() else v for v in values]
