"""Parquet files from elsewhere, read within limits: a few megabytes can unpack to many gigabytes."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

_ROWS_AT_A_TIME = 512
_ALLOWED_BYTES = 1 << 28
_ALLOWED_RATIO = 100
"""A table may take 256 MB of memory or 100 times its file size: tables of labels compress well, but no better than
that."""


class UnreadableParquet(ValueError):
    """Not a parquet file, a damaged one, or one that unpacks to more than a table of its size can hold."""


def read_parquet(data: bytes, columns: Sequence[str] | None = None, *, num_rows: int | None = None) -> pa.Table:
    """The table in ``data``.

    Args:
        data: the file.
        columns: only these, as far as the file has them; default: all.
        num_rows: what the file must hold.

    Raises:
        UnreadableParquet: see that class; also for an unexpected number of rows.
    """
    limit = _ALLOWED_BYTES + _ALLOWED_RATIO * len(data)
    too_large = f"it unpacks to more than {limit // 10**6:,} MB, which no table of {len(data):,} bytes is"
    try:
        # Not pq.read_table: its dataset machinery and threads take three times as long for a file of some kilobytes.
        file = pq.ParquetFile(pa.BufferReader(data))
        said = file.metadata
        if num_rows is not None and said.num_rows != num_rows:
            raise UnreadableParquet(f"{said.num_rows:,} rows instead of {num_rows:,}")
        groups = [said.row_group(number) for number in range(said.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        if (
            max(sum(chunk.total_uncompressed_size for chunk in chunks), sum(chunk.num_values for chunk in chunks))
            > limit
        ):
            raise UnreadableParquet(too_large)
        wanted = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        # What a row takes is only known once it is unpacked: repeated values are stored once.
        batches, size = [], 0
        for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=wanted, use_threads=False):
            size += batch.nbytes
            if size > limit:
                raise UnreadableParquet(too_large)
            batches.append(batch)
        schema = file.schema_arrow if wanted is None else pa.schema([file.schema_arrow.field(name) for name in wanted])
        return pa.Table.from_batches(batches, schema.with_metadata(file.schema_arrow.metadata))
    except (pa.ArrowException, OSError, MemoryError, OverflowError) as error:
        raise UnreadableParquet(str(error).split("\n")[0] or type(error).__name__) from None
