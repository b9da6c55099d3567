"""One indexed tar of another program under examination: its rows are made again and held against its sample index."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from msldata.errors import BadInputError
from msldata.foreign import local_tar, open_tar, scan
from msldata.format import IMAGES, FormatError, ShardInfo, decode_index, decode_shard_metadata
from msldata.index_shards import IndexTask
from msldata.verifyshard import Finding, ShardReport, content_digest, decoded_size

_COLUMNS = ("offset", "length", "crc32", "width", "height", "positives", "ignored")


def examine_foreign(job: tuple[IndexTask, ShardInfo]) -> ShardReport:
    """Compare a tar with its index, and decode every image; runs in a worker.

    Raises:
        StorageError: a file cannot be read. A missing one is a finding.
    """
    task, info = job
    findings: list[Finding] = []

    def compare(key: str, what: str, expected: object, found: object, file: str = info.name) -> None:
        if expected != found:
            findings.append(Finding(file, key, what, str(expected), str(found)))

    try:
        data = task.out.read(info.index_name)
        where = task.out.where(info.index_name)
        compare("", "shard and plan", (info, task.plan), decode_shard_metadata(data, where), info.index_name)
        indexed = {row["key"]: row for row in decode_index(IMAGES, data, where).to_pylist()}
    except (FileNotFoundError, FormatError) as error:
        finding = Finding(info.index_name, "", "the sample index", "a readable one", str(error))
        return ShardReport(info, (finding,))
    digests: dict[str, bytes] = {}
    if task.tars.exists(info.name):
        try:
            with local_tar(task.tars, info.name, info.num_bytes) as path:
                compare("", "size", f"{info.num_bytes} bytes", f"{path.stat().st_size} bytes")
                with open(path, "rb") as file:
                    compare("", "sha256", info.sha256, hashlib.file_digest(file, "sha256").hexdigest())
                found = scan(path, task.tars.where(info.name), task.rule, task.classes, skip=True)
                rows = {row["key"]: row for row in found.rows}
                compare("", "keys of the samples", list(rows), list(indexed), info.index_name)
                with open_tar(path) as tar:
                    for key in rows.keys() & indexed.keys():
                        _compare_rows(compare, rows[key], indexed[key], info)
                    for key, row in rows.items():
                        image = tar[row["offset"] : row["offset"] + row["length"]]
                        digests[key] = content_digest(image)
                        try:
                            decoded_size(image)
                        except Exception as error:  # damaged files make decoders raise almost anything
                            findings.append(Finding(info.name, key, "decoding the image", "a whole image", str(error)))
        except BadInputError as error:
            findings.append(Finding(info.name, "", "the tar", "a whole one with labelled samples", error.reason))
    else:
        findings.append(Finding(info.name, "", "the shard", f"{info.num_bytes} bytes", "no such file"))
    columns = [[number for row in indexed.values() for number in row[name]] for name in ("positives", "ignored")]
    positive, ignored = (tuple(map(numbers.count, range(len(task.classes)))) for numbers in columns)
    num_objects = sum(len(row["objects"]) for row in indexed.values())
    return ShardReport(info, tuple(findings), tuple(digests), tuple(digests.values()), positive, ignored, num_objects)


def _compare_rows(compare: Any, row: Mapping[str, Any], indexed: Mapping[str, Any], info: ShardInfo) -> None:
    for column in _COLUMNS:
        compare(row["key"], f"{column} in the index", row[column], indexed[column], info.index_name)
    compare(row["key"], "objects in the index", len(row["objects"]), len(indexed["objects"]), info.index_name)
