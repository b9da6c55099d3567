"""THE CONTRACT: member names, sample index, manifest. The only code that reads or writes a dataset folder's metadata.

A dataset folder holds WebDataset tars, one parquet sample index per tar, and ``dataset.json``, the manifest, which is
written last: no manifest, no dataset. ``shards/README.md`` states the same contract for people.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from msldata.contract.manifest import IMAGES, KEEP_MASKS, SCHEMA_VERSION, FormatError, ShardInfo

IMAGE_SUFFIX = ".jpg"
META_SUFFIX = ".json"
TARGET_SUFFIX = ".target.npy"
KEEP_MASK_SUFFIX = ".png"
MAX_KEY_BYTES = 100 - len(TARGET_SUFFIX)
"""A USTAR name field holds 100 bytes; longer keys would need PAX headers, which not every reader follows."""


_SHARD_METADATA = b"msl.shard"

OBJECT_TYPE = pa.struct(
    [
        pa.field("class_index", pa.int16(), nullable=False),
        pa.field("box", pa.list_(pa.float32(), 4), nullable=False),  # x, y, width, height in pixels of the stored image
        pa.field("area", pa.float32(), nullable=False),  # square pixels of the stored image
        pa.field("difficult", pa.bool_(), nullable=False),
        pa.field("truncated", pa.bool_()),  # null: the source does not say
        pa.field("occluded", pa.bool_()),
        pa.field("crowd", pa.bool_(), nullable=False),
    ]
)
_BYTES_FIELDS = [
    pa.field("key", pa.string(), nullable=False),
    pa.field("offset", pa.int64(), nullable=False),  # of the image's (keep mask's) first byte in the tar
    pa.field("length", pa.int64(), nullable=False),
    pa.field("crc32", pa.uint32(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
]
IMAGE_INDEX_SCHEMA = pa.schema(
    [
        *_BYTES_FIELDS,
        pa.field("positives", pa.list_(pa.int16()), nullable=False),
        pa.field("ignored", pa.list_(pa.int16()), nullable=False),
        pa.field("objects", pa.list_(OBJECT_TYPE), nullable=False),
    ]
)
KEEP_MASK_INDEX_SCHEMA = pa.schema(
    [
        *_BYTES_FIELDS,
        pa.field("hole_fraction", pa.float64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
    ]
)
INDEX_SCHEMAS = {IMAGES: IMAGE_INDEX_SCHEMA, KEEP_MASKS: KEEP_MASK_INDEX_SCHEMA}


def check_key(key: str) -> None:
    """Raise FormatError unless ``key`` can name a sample: a dot would split it, a slash or space would break tools."""
    if not key or "." in key or "/" in key or not key.isprintable() or " " in key:
        raise FormatError(f"sample key {key!r}: must be printable text without dots, slashes or spaces")
    if len(key.encode()) > MAX_KEY_BYTES:
        raise FormatError(f"sample key {key!r}: {len(key.encode())} bytes, at most {MAX_KEY_BYTES} fit a USTAR name")


_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def encode_json(content: Mapping[str, Any]) -> bytes:
    """The one JSON encoding used inside shards: UTF-8, sorted keys, no spaces: equal content, equal bytes."""
    return _JSON.encode(content).encode()


def encode_target(positives: Sequence[int], num_classes: int) -> bytes:
    """``KEY.target.npy``: uint8 multi-hot vector of shape (K,)."""
    target = bytearray(num_classes)
    for index in positives:
        target[index] = 1
    return _target_header(num_classes) + target


@cache
def _target_header(num_classes: int) -> bytes:
    """The .npy header of every target with this many classes: built once, it costs more than the vector."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.zeros(num_classes, dtype=np.uint8), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()[:-num_classes]


def encode_index(
    kind: str,
    rows: Sequence[Mapping[str, Any]],
    shard: ShardInfo,
    plan: str,
    report: Mapping[str, Any] | None = None,
) -> bytes:
    """The parquet bytes of one sample index; the shard's digest, the plan's and the report travel in its metadata.

    ``report`` is what writing the shard found out (transcoded images, label counts …): a resumed build takes it from
    here, so that its manifest equals an undisturbed build's.
    """
    content = {**asdict(shard), "plan": plan, "report": report or {}, "schema_version": SCHEMA_VERSION}
    table = pa.Table.from_pylist(list(rows), schema=INDEX_SCHEMAS[kind])
    table = table.replace_schema_metadata({_SHARD_METADATA: encode_json(content)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def decode_index(kind: str, data: bytes, where: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Parse a sample index and check its columns. Raises FormatError."""
    try:
        # Not pq.read_table: its dataset machinery and threads take three times as long for a file of some kilobytes.
        table = pq.ParquetFile(pa.BufferReader(data)).read(
            columns=list(columns) if columns else None, use_threads=False
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise FormatError(f"{where}: not a sample index ({error})") from None
    wanted = columns or INDEX_SCHEMAS[kind].names
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise FormatError(f"{where}: the sample index lacks the columns {', '.join(missing)}")
    return table


def decode_shard_metadata(data: bytes, where: str) -> tuple[ShardInfo, str]:
    """The shard and the plan digest that a sample index was written for. Raises FormatError."""
    content = _shard_metadata(data, where)
    try:
        return ShardInfo(**{name: content[name] for name in ShardInfo.__dataclass_fields__}), content["plan"]
    except KeyError as error:
        raise FormatError(f"{where}: the sample index lacks {error} in its metadata") from None


def decode_shard_report(data: bytes, where: str) -> dict[str, Any]:
    """The report that was given to ``encode_index``. Raises FormatError."""
    return _shard_metadata(data, where).get("report", {})


def _shard_metadata(data: bytes, where: str) -> dict[str, Any]:
    try:
        return json.loads(pq.read_metadata(pa.BufferReader(data)).metadata[_SHARD_METADATA])
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise FormatError(f"{where}: not a sample index of this program ({error})") from None
