"""Writes one shard: a deterministic USTAR tar and, after it, the sample index whose presence marks it complete.

The tar is staged as a hidden ``.NAME.<pid>.part`` file beside its place (in a temporary folder when the destination is
remote), forced to disk and moved in. The header code is our own because Python's ``tarfile`` takes as long for the
headers of a sample as everything else here together.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msldata.format import MAX_KEY_BYTES, TARGET_SUFFIX, ShardInfo, encode_index, index_name
from msldata.hashedfile import HashedFile
from msldata.storage import PART_SUFFIX, Storage, clear_local_errors

_BLOCK = 512
_NAME_BYTES = MAX_KEY_BYTES + len(TARGET_SUFFIX)
_MAX_MEMBER_BYTES = 0o77777777777
_OWNERS = b"".join((b"0000644\0", b"0000000\0", b"0000000\0"))  # mode, uid, gid
_TIME = b"".join((b"\0", b"00000000000\0"))  # end of the size field, time stamp
_KIND = b"".join((b"0", bytes(100), b"ustar\0", b"00", bytes(247)))  # regular file, no link, no owner's name
_CONSTANT_SUM = sum(_OWNERS + _TIME + _KIND) + 8 * ord(" ")  # the checksum counts its own field as spaces
_PADDING = [bytes(-size % _BLOCK) for size in range(_BLOCK)]
TAR_END_BYTES = 2 * _BLOCK
_END = bytes(TAR_END_BYTES)


def tar_header(name: str, num_bytes: int) -> bytes:
    """The 512-byte USTAR header of a regular file: mode 0644, owners and time stamp zero.

    Only the name, the size and the checksum differ from member to member.

    Raises:
        ValueError: the name is longer than 100 bytes or the member larger than 8 GiB, which USTAR cannot express.
    """
    encoded = name.encode()
    if len(encoded) > _NAME_BYTES or num_bytes > _MAX_MEMBER_BYTES:
        raise ValueError(f"{name}: {num_bytes} bytes under a name of {len(encoded)} bytes do not fit a USTAR header")
    size = b"%011o" % num_bytes
    checksum = _CONSTANT_SUM + sum(encoded) + sum(size)
    return b"".join((encoded.ljust(_NAME_BYTES, b"\0"), _OWNERS, size, _TIME, b"%06o\0 " % checksum, _KIND))


def tar_member_bytes(num_bytes: int) -> int:
    """What a member of ``num_bytes`` takes in a tar: its header, itself, and the padding to whole blocks."""
    return _BLOCK + -(-num_bytes // _BLOCK) * _BLOCK


class ShardWriter:
    """One shard being written; leaving the ``with`` block without ``publish`` leaves nothing behind.

    Args:
        out: the dataset folder, local or remote.
        name: file name of the tar.
        kind: ``format.IMAGES`` or ``format.KEEP_MASKS``; decides the columns of the sample index.
        plan: digest of the build plan, stored in the index.
    """

    def __init__(self, out: Storage, name: str, *, kind: str, plan: str):
        self.out = out
        self.name = name
        self.kind = kind
        self.plan = plan
        self._rows: list[dict[str, Any]] = []
        self._temporary: str | None = None
        with clear_local_errors(
            out.where(name) if out.path() else f"{tempfile.gettempdir()} (TMPDIR, staging for {name})"
        ):
            place = out.path(name)
            if place is None:
                self._temporary = tempfile.mkdtemp(prefix="msl-shard-")
                place = Path(self._temporary, name)
            place.parent.mkdir(parents=True, exist_ok=True)
            # Parts of an array job on several machines may write one shard twice, and have one process id.
            self._staged = place.with_name(f".{name}.{os.getpid()}-{secrets.token_hex(4)}{PART_SUFFIX}")
            self._file = HashedFile(self._staged)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._staged.unlink(missing_ok=True)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def num_samples(self) -> int:
        """Samples added so far."""
        return len(self._rows)

    def add(self, key: str, members: Sequence[tuple[str, bytes]], row: Mapping[str, Any]) -> None:
        """Append one sample; its members stay adjacent, in the order given.

        Args:
            key: the sample's key, checked by the plan with ``format.check_key``.
            members: pairs of suffix and bytes. The first is the image or keep mask that the index points at.
            row: the index columns besides ``key``, ``offset``, ``length`` and ``crc32``.
        """
        suffix, data = members[0]
        position = {
            "key": key,
            "offset": self._file.num_bytes + _BLOCK,
            "length": len(data),
            "crc32": zlib.crc32(data),
        }
        self._rows.append({**position, **row})
        # The image is written where it lies; everything after it is joined into one piece.
        rest = [_PADDING[len(data) % _BLOCK]]
        for other, content in members[1:]:
            rest += (tar_header(key + other, len(content)), content, _PADDING[len(content) % _BLOCK])
        try:
            self._file.add((tar_header(key + suffix, len(data)), data, b"".join(rest)))
        except OSError:
            with clear_local_errors(str(self._staged)):
                raise

    def publish(self, report: Mapping[str, Any] | None = None) -> ShardInfo:
        """Finish the tar, move it in, then write its sample index. Raises StorageError (disk full, denied …).

        Args:
            report: what a resumed build must know of this shard without reading it again; JSON-able.
        """
        with clear_local_errors(str(self._staged)):
            self._file.add((_END,))
            digest = self._file.finish()
        info = ShardInfo(
            name=self.name,
            num_samples=self.num_samples,
            num_bytes=self._file.num_bytes,
            sha256=digest,
        )
        index = encode_index(self.kind, self._rows, info, self.plan, report)
        # An older index must not vouch for the new tar. One for these very bytes stays: it is true, and another build
        # of the same plan may be publishing its manifest at this moment.
        if not self._is_published(index):
            self.out.delete(index_name(self.name))
        self.out.put(self.name, self._staged)
        self.out.put(index_name(self.name), index)
        return info

    def _is_published(self, index: bytes) -> bool:
        try:
            return self.out.read(index_name(self.name)) == index
        except FileNotFoundError:
            return False
