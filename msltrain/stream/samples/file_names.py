"""The file that a sample was made of, as people know it: a key has ``_`` for what a key cannot hold."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

from msldata.contract.format import META_SUFFIX
from msldata.contract.manifest import ShardInfo
from msldata.contract.tar import BLOCK_BYTES, plain_member, tar_member_bytes
from msldata.errors import UserError
from msldata.storage import Storage

_MOST_BYTES = 1 << 20


def file_name(storage: Storage, shard: ShardInfo, key: str, offset: int, length: int) -> str:
    """The name of a sample's file as its source lists it; of one that lies elsewhere, by an address or from the root,
    the last part of it. Its key where nothing tells, as in tars of other programs.

    Args:
        storage, shard: where the sample is.
        key: its key.
        offset, length: of its image in the tar; in our tars the member with the name comes next.
    """
    start = offset + tar_member_bytes(length) - BLOCK_BYTES
    if start + BLOCK_BYTES > shard.num_bytes:
        return key
    try:
        [header] = storage.read_ranges(shard.name, [start], [BLOCK_BYTES])
        name, size = plain_member(header) or ("", 0)
        if name != key + META_SUFFIX or size > min(_MOST_BYTES, shard.num_bytes - start - BLOCK_BYTES):
            return key
        [data] = storage.read_ranges(shard.name, [start + BLOCK_BYTES], [size])
        file = json.loads(data)["file"]
    except (UserError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return key
    if not isinstance(file, str) or not file:
        return key
    return PurePosixPath(file).name or key if file.startswith("/") or "://" in file else file
