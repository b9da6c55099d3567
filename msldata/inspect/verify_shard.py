"""One shard under examination: its tar, its sample index and each of its samples, compared with each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from zlib_ng.zlib_ng import crc32

from msldata.contract import keepmask
from msldata.contract.format import (
    IMAGE_SUFFIX,
    INDEX_SCHEMAS,
    KEEP_MASK_SUFFIX,
    META_SUFFIX,
    TARGET_SUFFIX,
    check_key,
    check_rows,
    decode_array,
    decode_index,
    decode_shard_metadata,
)
from msldata.contract.manifest import IMAGES, FormatError, ShardInfo
from msldata.contract.pixels import JPEG_START, check_whole, jpeg_header
from msldata.contract.tar import DamagedTar, TarMember, walk_tar
from msldata.errors import BadInputError
from msldata.storage import Storage

_MEMBERS = {IMAGES: (IMAGE_SUFFIX, META_SUFFIX, TARGET_SUFFIX)}
_KEEP_MASK_MEMBERS = (KEEP_MASK_SUFFIX, META_SUFFIX)
_OBJECT_FLAGS = ("difficult", "truncated", "occluded", "crowd")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a dataset."""

    file: str
    """The shard, index or other file, relative to the dataset folder."""
    key: str
    """The sample's key; empty when it concerns the file as a whole."""
    what: str
    """What was compared, as in "crc32 of the image"."""
    expected: str
    found: str

    def __str__(self) -> str:
        sample = f", sample {self.key}" if self.key else ""
        return f"{self.file}{sample}: {self.what}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True, slots=True)
class ShardCheck:
    """What a worker needs to examine one shard."""

    folder: Storage
    info: ShardInfo
    kind: str
    classes: tuple[str, ...]
    plan: str
    grey: bool = False
    """Whether keep masks may be grey."""
    decode: bool = True
    """Whether images and keep masks are decoded."""


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What one shard turned out to hold; the counts are from the index, as far as it could be read."""

    info: ShardInfo
    findings: tuple[Finding, ...]
    keys: tuple[str, ...] = ()
    image_digests: tuple[bytes, ...] = ()
    """A content hash per key, of the bytes of the image or keep mask."""
    positive: tuple[int, ...] = ()
    ignored: tuple[int, ...] = ()
    num_objects: int = 0
    hole_fractions: tuple[float, ...] = ()


def content_digest(data: bytes) -> bytes:
    """Hash that identifies equal images: 16 bytes, so that the hashes of millions of images fit into memory."""
    return hashlib.sha256(data).digest()[:16]  # which processors have instructions for


def examine_shard(task: ShardCheck) -> ShardReport:
    """Compare everything a shard says about itself; runs in a worker, which holds this one shard in memory.

    Raises:
        StorageError: the shard cannot be read. A missing file is a finding.
    """
    return _Examination(task).report()


def hash_shard(task: ShardCheck) -> list[tuple[str, bytes]]:
    """(key, content hash) of every image of a shard that is trusted; runs in a worker.

    Raises:
        FileNotFoundError: a file is missing. FormatError: the index cannot be read. StorageError: the tar is too short.
    """
    name = task.info.index_name
    where = task.folder.where(name)
    table = decode_index(task.kind, task.folder.read(name), where, ("key", "offset", "length"))
    check_rows(table, task.kind, len(task.classes), task.info, where)
    keys, offsets, lengths = (table[column].to_pylist() for column in ("key", "offset", "length"))
    images = task.folder.read_ranges(task.info.name, offsets, lengths)
    return [(key, content_digest(data)) for key, data in zip(keys, images, strict=True)]


class _Examination:
    """The comparisons of one shard, in an order in which one failure explains the next."""

    def __init__(self, task: ShardCheck):
        self.task = task
        self.findings: list[Finding] = []
        self.data = b""
        self.index_sha256 = ""
        self.samples: list[tuple[str, list[TarMember]]] = []

    def report(self) -> ShardReport:
        info = self.task.info
        rows = self._rows()
        try:
            self.data = self.task.folder.read(info.name)
        except FileNotFoundError:
            self._add("", "the shard", f"{info.num_bytes} bytes", "no such file")
            return self._finish(rows or [])
        self._compare("", "size", f"{info.num_bytes} bytes", f"{len(self.data)} bytes")
        self._compare("", "sha256", info.sha256, hashlib.sha256(self.data).hexdigest())
        self._read_samples()
        if rows is not None:
            self._compare_keys([row["key"] for row in rows])
        members = dict(reversed(self.samples))  # the first, if a key is there twice
        for row in rows or []:
            if row["key"] in members:
                self._examine_sample(row, members[row["key"]])
        return self._finish(rows or [])

    def _add(self, key: str, what: str, expected: object, found: object, file: str | None = None) -> None:
        self.findings.append(Finding(file or self.task.info.name, key, what, str(expected), str(found)))

    def _compare(self, key: str, what: str, expected: object, found: object, file: str | None = None) -> None:
        if expected != found:
            self._add(key, what, expected, found, file)

    def _rows(self) -> list[dict[str, Any]] | None:
        """The rows of the sample index; None when it cannot be read."""
        task, name = self.task, self.task.info.index_name
        where = task.folder.where(name)
        try:
            data = task.folder.read(name)
            table = decode_index(task.kind, data, where)
            info, plan = decode_shard_metadata(data, where)
        except FileNotFoundError:
            self._add("", "the sample index", "a parquet file", "no such file", name)
            return None
        except FormatError as error:
            self._add("", "the sample index", "a readable one", str(error).removeprefix(f"{where}: "), name)
            return None
        for field in INDEX_SCHEMAS[task.kind]:
            self._compare("", f"type of column {field.name}", field.type, table.schema.field(field.name).type, name)
        for field_name in ("name", "num_samples", "num_bytes", "sha256"):
            wanted, found = getattr(task.info, field_name), getattr(info, field_name)
            self._compare("", f"{field_name} in its metadata", wanted, found, name)
        self._compare("", "plan in its metadata", task.plan, plan, name)
        self._compare("", "rows", task.info.num_samples, table.num_rows, name)
        self.index_sha256 = info.index_sha256
        return table.to_pylist()

    def _read_samples(self) -> None:
        """Collect the samples of the tar in order: adjacent members of one key."""
        try:
            for member in walk_tar(self.data):
                key = member.name.partition(".")[0]
                if not self.samples or self.samples[-1][0] != key:
                    self.samples.append((key, []))
                self.samples[-1][1].append(member)
        except DamagedTar as error:
            self._add("", error.what, error.expected, error.found)

    def _content(self, member: TarMember) -> bytes:
        return self.data[member.offset : member.offset + member.length]

    def _compare_keys(self, indexed: Sequence[str]) -> None:
        stored = [key for key, _ in self.samples]
        if indexed == stored:
            return
        in_index, in_tar = set(indexed), set(stored)
        for key in indexed:
            if key not in in_tar:
                self._add(key, "members of the sample", "in the tar, as the index says", "none")
        for key in stored:
            if key not in in_index:
                self._add(key, "row of the index", "one, as the tar holds the sample", "none")
        if sorted(indexed) == sorted(stored):
            row = next(number for number, pair in enumerate(zip(indexed, stored)) if pair[0] != pair[1])
            self._add("", f"order of the samples, row {row}", f"{stored[row]} as in the tar", indexed[row])
        elif in_index == in_tar:
            self._add("", "samples in the tar", f"{len(indexed)}, each with its members adjacent", len(stored))

    def _examine_sample(self, row: Mapping[str, Any], members: Sequence[TarMember]) -> None:
        key = row["key"]
        try:
            check_key(key)
        except FormatError as error:
            self._add(key, "key", "one that every reader takes", error)
        wanted = _MEMBERS.get(self.task.kind, _KEEP_MASK_MEMBERS)
        content = {member.name.removeprefix(key): self._content(member) for member in members}
        self._compare(key, "members", ", ".join(wanted), ", ".join(content))
        first = members[0]
        self._compare(key, "offset in the index", first.offset, row["offset"], self.task.info.index_name)
        self._compare(key, "length in the index", first.length, row["length"], self.task.info.index_name)
        meta = self._meta(key, content.get(META_SUFFIX))
        for side in ("width", "height"):
            if meta is not None:
                self._compare(key, f"{side} in {key}{META_SUFFIX}", row[side], meta.get(side))
        if wanted[0] in content:
            self._compare(key, "crc32 of the image", row["crc32"], crc32(content[wanted[0]]))
        if self.task.kind == IMAGES:
            self._examine_image(row, content.get(IMAGE_SUFFIX))
            self._examine_labels(row, meta, content.get(TARGET_SUFFIX))
        else:
            self._examine_keep_mask(row, meta, content.get(KEEP_MASK_SUFFIX))

    def _meta(self, key: str, data: bytes | None) -> dict[str, Any] | None:
        if data is None:
            return None
        try:
            meta = json.loads(data)
            if isinstance(meta, dict):
                return meta
            reason = f"a {type(meta).__name__}"
        except ValueError as error:  # malformed, or not UTF-8
            reason = str(error)
        self._add(key, f"{key}{META_SUFFIX}", "a JSON object", reason)
        return None

    def _examine_image(self, row: Mapping[str, Any], data: bytes | None) -> None:
        if data is None:
            return
        try:
            if not data.startswith(JPEG_START):
                raise ValueError(f"not a JPEG: it starts with {data[:4]!r}")
            width, height = check_whole(data) if self.task.decode else jpeg_header(data).upright
        except ValueError as error:
            self._add(row["key"], "decoding the image", "a whole image", error)
            return
        self._compare(row["key"], "size of the image", f"{row['width']}×{row['height']}", f"{width}×{height}")

    def _examine_labels(self, row: Mapping[str, Any], meta: Mapping[str, Any] | None, target: bytes | None) -> None:
        key, classes = row["key"], self.task.classes
        for column in ("positives", "ignored"):
            indices = row[column]
            valid = indices == sorted(set(indices)) and all(0 <= index < len(classes) for index in indices)
            if not valid:
                wanted = f"ascending class indices below {len(classes)}"
                self._add(key, f"{column} in the index", wanted, indices, self.task.info.index_name)
                return
        both = sorted(set(row["positives"]) & set(row["ignored"]))
        self._compare(key, "classes both positive and ignored", [], both, self.task.info.index_name)
        if target is not None:
            self._examine_target(row, target)
        if meta is None:
            return
        for column, field in (("positives", "labels"), ("ignored", "ignored")):
            names = [classes[index] for index in row[column]]
            self._compare(key, f"{field} in {key}{META_SUFFIX}", names, meta.get(field))
        self._examine_objects(row, meta)

    def _examine_objects(self, row: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        key, what = row["key"], f"objects in {row['key']}{META_SUFFIX}"
        numbers = [item["class_index"] for item in row["objects"]]
        if not all(0 <= number < len(self.task.classes) for number in numbers):
            self._add(key, "classes of its objects", f"indices below {len(self.task.classes)}", numbers)
            return
        wanted = [_comparable(item, self.task.classes[item["class_index"]]) for item in row["objects"]]
        try:
            found = [_comparable(item, item.get("class")) for item in meta["objects"]]
        except (KeyError, TypeError, AttributeError) as error:
            self._add(key, what, "a list of objects", f"none ({error})")
            return
        self._compare(key, f"number of {what}", len(wanted), len(found))
        for number, (one, other) in enumerate(zip(wanted, found)):
            self._compare(key, f"{what}, number {number}", one, other)

    def _examine_target(self, row: Mapping[str, Any], data: bytes) -> None:
        key, shape = row["key"], (len(self.task.classes),)
        what = f"{key}{TARGET_SUFFIX}"
        try:
            target_K = decode_array(data)
        except Exception as error:  # numpy raises ValueError, EOFError, SyntaxError … for a damaged header
            self._add(key, what, "an array without pickled objects", error)
            return
        if not isinstance(target_K, np.ndarray) or target_K.shape != shape or target_K.dtype != np.uint8:
            found = f"{getattr(target_K, 'dtype', type(target_K))} {getattr(target_K, 'shape', '')}"
            self._add(key, what, f"uint8 {shape}", found)
            return
        wanted_K = np.zeros(shape, np.uint8)
        wanted_K[row["positives"]] = 1
        if not np.array_equal(target_K, wanted_K):
            values = {int(index): int(target_K[index]) for index in np.flatnonzero(target_K)}
            self._add(key, what, f"1 at {row['positives']} as in the index, else 0", f"values {values}")

    def _examine_keep_mask(self, row: Mapping[str, Any], meta: Mapping[str, Any] | None, data: bytes | None) -> None:
        key = row["key"]
        if meta is not None:
            for field in ("hole_fraction", "source"):
                self._compare(key, f"{field} in {key}{META_SUFFIX}", row[field], meta.get(field))
        if data is None or not self.task.decode:
            return
        try:
            level_HW = keepmask.decode_levels(data, key)
        except BadInputError as error:
            self._add(key, "decoding the keep mask", "a whole image", error.reason)
            return
        keep_mask_HW = keepmask.to_keep_mask(level_HW, keepmask.HOLE_BLACK)
        if not self.task.grey and not np.array_equal(level_HW, keep_mask_HW * np.uint8(255)):
            self._add(key, "pixels of the keep mask", "0 and 255", "grey; the build options say it was binarised")
        height, width = keep_mask_HW.shape
        self._compare(key, "size of the keep mask", f"{row['width']}×{row['height']}", f"{width}×{height}")
        self._compare(key, "hole fraction", row["hole_fraction"], keepmask.hole_fraction(keep_mask_HW))

    def _finish(self, rows: Sequence[Mapping[str, Any]]) -> ShardReport:
        info = self.task.info
        if info.index_sha256 and self.index_sha256 and not self.findings:
            # Whatever else is wrong says more.
            self._compare("", "sha256", info.index_sha256, self.index_sha256, info.index_name)
        findings = tuple(self.findings)
        keys = tuple(key for key, _ in self.samples)
        digests = tuple(content_digest(self._content(members[0])) for _, members in self.samples)
        if self.task.kind != IMAGES:
            fractions = tuple(row["hole_fraction"] for row in rows)
            return ShardReport(info, findings, keys, digests, hole_fractions=fractions)
        columns = [[index for row in rows for index in row[column]] for column in ("positives", "ignored")]
        positive, ignored = (tuple(map(indices.count, range(len(self.task.classes)))) for indices in columns)
        num_objects = sum(len(row["objects"]) for row in rows)
        return ShardReport(info, findings, keys, digests, positive, ignored, num_objects)


def _comparable(item: Mapping[str, Any], name: object) -> dict[str, Any]:
    """One object in the precision of the index, which stores 32-bit floats; damaged ones compare unequal."""
    numbers = [*(item.get("box") or ()), item.get("area")]
    exact = [float(np.float32(value)) if isinstance(value, int | float) else value for value in numbers]
    return {"class": name, "box and area": exact, **{flag: item.get(flag) for flag in _OBJECT_FLAGS}}
