"""THE CONTRACT: member names, sample index, manifest. The only code that reads or writes a dataset folder's metadata.

A dataset folder holds WebDataset tars, one parquet sample index per tar, and ``dataset.json``, the manifest, which is
written last: no manifest, no dataset. ``shards/README.md`` states the same contract for people.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from json.encoder import encode_basestring
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from msldata.contract.manifest import IMAGES, KEEP_MASKS, FormatError, Manifest, ShardInfo
from msldata.contract.parquet import UnreadableParquet, read_parquet
from msldata.contract.pixels import MAX_PIXELS
from msldata.storage import Storage

IMAGE_SUFFIX = ".jpg"
META_SUFFIX = ".json"
TARGET_SUFFIX = ".target.npy"
KEEP_MASK_SUFFIX = ".png"
MAX_KEY_BYTES = 100 - len(TARGET_SUFFIX)
"""A USTAR name field holds 100 bytes; longer keys would need PAX headers, which not every reader follows."""


INDEX_VERSION = 1
"""Version of what tars and indexes hold. Plans count it in, so another one makes every build start over; what only the
manifest says has a version of its own."""
_MAX_PIXELS = max(178_956_970, MAX_PIXELS)
"""The most pixels of one image: Pillow refuses anything larger as a decompression bomb, unless ``MSL_MAX_PIXELS`` lets
builds and readers take it."""
_MAX_SIDE = 65_535
"""The longest side of a JPEG."""

_SHARD_METADATA = b"msl.shard"
_IN_METADATA = ("name", "num_samples", "num_bytes", "sha256")
"""Fields of a shard that its index repeats; an index cannot hold its own digest."""

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
OCCLUSION_TYPE = pa.struct(
    [
        pa.field("covered", pa.float32()),  # share of its outline that other objects take; null: it has no segment
        pa.field("separated", pa.bool_()),  # whether its segment is in several parts
    ]
)
OCCLUSION = pa.field("occlusion", pa.list_(OCCLUSION_TYPE), nullable=False)
"""A column that a sample index may have: what the segments say about each of ``objects``, in the same order."""
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
    if key.isascii() and key.isalnum() and len(key) <= MAX_KEY_BYTES:
        return  # nearly all of the many
    if not key or "." in key or "/" in key or not key.isprintable() or " " in key:
        raise FormatError(f"sample key {key!r}: must be printable text without dots, slashes or spaces")
    if len(key.encode()) > MAX_KEY_BYTES:
        raise FormatError(f"sample key {key!r}: {len(key.encode())} bytes, at most {MAX_KEY_BYTES} fit a USTAR name")


def make_key(name: str) -> str:
    """The key of a sample, from the path of its file without the extension; for most files it is the path itself.

    Slashes, dots, spaces and unprintable characters become ``_``. A key longer than ``MAX_KEY_BYTES`` ends in a hash of
    the whole name instead of its last letters.

    Raises:
        FormatError: the name is empty or holds a NUL, which no file name can.
    """
    if name.isascii() and name.isalnum() and len(name) <= MAX_KEY_BYTES:
        return name  # nearly all of the many
    if not name or "\0" in name:
        raise FormatError(f"{name!r} is not a file name")
    key = "".join("_" if letter in "./ " or not letter.isprintable() else letter for letter in name)
    if len(key.encode()) <= MAX_KEY_BYTES:
        return key
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"{key.encode()[: MAX_KEY_BYTES - 17].decode(errors='ignore')}-{digest}"


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


def decode_array(data: bytes) -> Any:
    """What ``numpy.load`` makes of a ``.npy`` file without pickled objects, in a fraction of the time.

    The headers of a dataset's targets are all the same, and numpy takes as long for one as for the check of an image.

    Raises:
        Exception: any, as numpy does for a damaged file.
    """
    end = 10 + int.from_bytes(data[8:10], "little")
    try:
        shape, is_transposed, dtype = _array_header(data[:end])
        values = np.frombuffer(data, dtype, math.prod(shape), end)
        return values.reshape(shape, order="F" if is_transposed else "C")
    except Exception:  # another version of the format, or damaged: numpy knows
        return np.load(io.BytesIO(data), allow_pickle=False)


@lru_cache(64)
def _array_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    buffer = io.BytesIO(header)
    if np.lib.format.read_magic(buffer) != (1, 0):
        raise ValueError("another version")
    return np.lib.format.read_array_header_1_0(buffer)


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
    facts = {name: getattr(shard, name) for name in _IN_METADATA}
    content = {**facts, "plan": plan, "report": report or {}, "schema_version": INDEX_VERSION}
    schema = INDEX_SCHEMAS[kind]
    if rows and OCCLUSION.name in rows[0]:
        schema = schema.append(OCCLUSION)
    table = pa.Table.from_pylist(list(rows), schema=schema)
    table = table.replace_schema_metadata({_SHARD_METADATA: encode_json(content)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def labels_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of the labels of a shard: key, positive and ignored classes of each sample, in order."""
    digest = hashlib.sha256()
    for row in rows:  # written out: an encoder is made anew for every call
        positives, ignored = (",".join(map(str, row[column])) for column in ("positives", "ignored"))
        digest.update(f"[{encode_basestring(row['key'])},[{positives}],[{ignored}]]".encode())
    return digest.hexdigest()


def with_digests(shard: ShardInfo, index: bytes, rows: Sequence[Mapping[str, Any]]) -> ShardInfo:
    """The shard with the digest of its sample index and, for images, the digest of the labels in its rows."""
    has_labels = not rows or "positives" in rows[0]
    return replace(
        shard,
        index_sha256=hashlib.sha256(index).hexdigest(),
        labels_sha256=labels_digest(rows) if has_labels else "",
    )


def read_index(
    storage: Storage, manifest: Manifest, shard: ShardInfo, columns: Sequence[str] | None = None
) -> pa.Table:
    """The sample index of one shard, checked before anything uses it: its digest, places in the tar, class numbers.

    Args:
        storage: the dataset folder.
        manifest: its manifest.
        shard: one of its shards.
        columns: only these.

    Raises:
        FormatError: missing, damaged, of another build, or with a value that no build writes.
    """
    where = storage.where(shard.index_name)
    try:
        data = storage.read(shard.index_name)
    except FileNotFoundError:
        raise FormatError(f"{where}: the sample index is missing; copy or build the dataset again") from None
    if shard.index_sha256 and (found := hashlib.sha256(data).hexdigest()) != shard.index_sha256:
        raise FormatError(
            f"{where}: the sample index is damaged or of another build than the manifest (sha256 {found[:12]}…, the "
            f"manifest says {shard.index_sha256[:12]}…); copy the whole folder again, or build it again"
        )
    if not shard.index_sha256 and _shard_of(_shard_metadata(data, where), where) != shard:
        raise FormatError(
            f"{where}: written for another build than the manifest; copy the whole folder again, or build it again"
        )
    table = decode_index(manifest.kind, data, where, columns, num_rows=shard.num_samples)
    check_rows(table, manifest.kind, len(manifest.classes), shard, where)
    return table


def decode_index(
    kind: str, data: bytes, where: str, columns: Sequence[str] | None = None, *, num_rows: int | None = None
) -> pa.Table:
    """Parse a sample index and check its columns. Raises FormatError."""
    try:
        table = read_parquet(data, columns, num_rows=num_rows)
    except UnreadableParquet as error:
        raise FormatError(f"{where}: not a sample index of this dataset ({error}); copy or build it again") from None
    wanted = columns or INDEX_SCHEMAS[kind].names
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise FormatError(f"{where}: the sample index lacks the columns {', '.join(missing)}")
    return table


def decode_shard_metadata(data: bytes, where: str) -> tuple[ShardInfo, str]:
    """The shard, with its digests, and the plan digest that a sample index was written for. Raises FormatError."""
    content = _shard_metadata(data, where)
    shard, plan = _shard_of(content, where), content.get("plan")
    if not isinstance(plan, str):
        raise FormatError(f"{where}: the sample index lacks 'plan' in its metadata")
    digest = hashlib.sha256(data).hexdigest()
    try:
        rows = read_parquet(data, ("key", "positives", "ignored"))
    except UnreadableParquet as error:
        raise FormatError(f"{where}: not a sample index of this program ({error})") from None
    if "positives" not in rows.column_names:
        return replace(shard, index_sha256=digest), plan
    return with_digests(shard, data, rows.to_pylist()), plan


def decode_shard_report(data: bytes, where: str) -> dict[str, Any]:
    """The report that was given to ``encode_index``. Raises FormatError."""
    return _shard_metadata(data, where).get("report", {})


def _shard_of(content: Mapping[str, Any], where: str) -> ShardInfo:
    try:
        return ShardInfo(**{name: content[name] for name in _IN_METADATA})
    except KeyError as error:
        raise FormatError(f"{where}: the sample index lacks {error} in its metadata") from None
    except FormatError as error:
        raise FormatError(f"{where}: in the metadata of the sample index: {error}") from None


def _shard_metadata(data: bytes, where: str) -> dict[str, Any]:
    try:
        content = json.loads(pq.read_metadata(pa.BufferReader(data)).metadata[_SHARD_METADATA])
        if isinstance(content, dict) and isinstance(content.get("report", {}), dict):
            return content
        error: Exception = TypeError("its metadata is not a table of names and values")
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, RecursionError) as failure:
        error = failure
    raise FormatError(f"{where}: not a sample index of this program ({error})") from None


def check_rows(table: pa.Table, kind: str, num_classes: int, shard: ShardInfo, where: str) -> None:
    """Raise FormatError for a row that points outside its tar, or whose numbers make no sense."""

    def refuse(what: str) -> None:
        raise FormatError(f"{where}: {what}; copy or build the dataset again")

    schema = INDEX_SCHEMAS[kind].append(OCCLUSION) if kind == IMAGES else INDEX_SCHEMAS[kind]
    for name in table.column_names:
        if name in schema.names and table.schema.field(name).type != schema.field(name).type:
            refuse(f"column {name} is {table.schema.field(name).type}, not {schema.field(name).type}")
        if table[name].null_count:
            refuse(f"column {name} has empty rows")
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    numbers = {
        name: columns[name].to_numpy(zero_copy_only=False)
        for name in ("offset", "length", "width", "height", "hole_fraction")
        if name in columns
    }
    limits = {"width": (1, _MAX_SIDE), "height": (1, _MAX_SIDE), "hole_fraction": (0, 1)}
    limits |= {"offset": (0, shard.num_bytes), "length": (0, shard.num_bytes)}
    for name, values_N in numbers.items():
        low, high = limits[name]
        if len(values_N) and not low <= values_N.min() <= values_N.max() <= high:
            refuse(f"{name} from {values_N.min():g} to {values_N.max():g}, where {low} to {high:,} is possible")
    if {"offset", "length"} <= numbers.keys() and np.any(numbers["offset"] + numbers["length"] > shard.num_bytes):
        refuse(f"a sample ends beyond the {shard.num_bytes:,} bytes of its tar")
    if {"width", "height"} <= numbers.keys():
        pixels_N = numbers["width"].astype(np.int64) * numbers["height"]
        if np.any(pixels_N > _MAX_PIXELS):
            refuse(
                f"an image of {pixels_N.max():,} pixels, {_MAX_PIXELS:,} is the most unless MSL_MAX_PIXELS says more"
            )
    if "key" in columns and len(columns["key"].unique()) != len(columns["key"]):
        refuse("a key is there twice")
    classes = [(name, columns[name].flatten()) for name in ("positives", "ignored") if name in columns]
    if "objects" in columns:
        objects = columns["objects"].flatten()
        if objects.null_count or any(objects.field(name).null_count for name in ("class_index", "box", "area")):
            refuse("an object has no class, box or area")
        box_M4 = objects.field("box").flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
        area_M = objects.field("area").to_numpy(zero_copy_only=False)
        if not (np.isfinite(box_M4).all() and (box_M4[:, 2:] >= 0).all()):
            refuse("the box of an object is not four numbers, the last two of 0 or more")
        if not (np.isfinite(area_M).all() and (area_M >= 0).all()):
            refuse("the area of an object is not a number of 0 or more")
        classes.append(("class_index", objects.field("class_index")))
    if OCCLUSION.name in columns:
        covered_M = columns[OCCLUSION.name].flatten().field("covered").drop_null().to_numpy()
        if len(covered_M) and not 0 <= covered_M.min() <= covered_M.max() <= 1:
            refuse(f"covered shares from {covered_M.min():g} to {covered_M.max():g}, where 0 to 1 is possible")
        if "objects" in columns and columns["objects"].value_lengths() != columns[OCCLUSION.name].value_lengths():
            refuse(f"{OCCLUSION.name} speaks of other objects than there are")
    for name, values in classes:
        number_M = values.to_numpy(zero_copy_only=False)
        if values.null_count or (len(number_M) and not 0 <= number_M.min() <= number_M.max() < num_classes):
            refuse(f"a class number of {name} is not one of the {num_classes} classes")
    labels = [columns[name] for name in ("positives", "ignored") if name in columns]
    pairs = [
        np.repeat(np.arange(len(lists)) * num_classes, lists.value_lengths()) + lists.flatten().to_numpy()
        for lists in labels
    ]
    if pairs and len(np.unique(joined := np.concatenate(pairs))) != len(joined):
        refuse("a sample has a class twice, or as positive and ignored")
