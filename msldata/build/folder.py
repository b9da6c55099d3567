"""The folder that one build fills: who owns it, what is finished in it, and what it must not mix with."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from msldata.contract.format import decode_shard_metadata, decode_shard_report, encode_json
from msldata.contract.manifest import MANIFEST_NAME, FormatError, Manifest, ShardInfo, index_name, read_manifest
from msldata.contract.publish import write_manifest
from msldata.errors import OptionsNeeded, UserError
from msldata.storage import PART_SUFFIX, FileInfo, Location, Storage, clear_local_errors, open_storage
from msldata.storage.lock import Claim, own_folder

QUARANTINE_NAME = "quarantine.jsonl"
_READERS = frozenset({"_info.json", "sizes.json", "croissant.json"})
_UNUSABLE_SUFFIX = ".unusable"
_SHARD_FILE = re.compile(r"[^/]+-\d{6}\.(tar|parquet)")


@dataclass(frozen=True, slots=True)
class FinishedShard:
    """A shard that is complete in the folder, and the report that its index keeps."""

    info: ShardInfo | None
    """None: no sample was usable, so there are no files."""
    report: Mapping[str, Any]


class BuildFolder:
    """One dataset folder during one build.

    Args:
        out: the dataset folder.
        shard_names: the tars that the plan writes.
        plan: the plan's digest.
        can_start_over: whether the running command takes ``--overwrite``.
    """

    def __init__(self, out: Location | Storage, shard_names: Sequence[str], plan: str, *, can_start_over: bool = True):
        self.out = open_storage(out)
        self.shard_names = tuple(shard_names)
        self.plan = plan
        self._can_start_over = can_start_over
        self._claim: Claim | None = None

    @contextmanager
    def claim(self, *, shared: bool = False) -> Iterator[None]:
        """Own the folder while the block runs, and clear away what dead builds left half-written.

        Args:
            shared: own it together with others that also ask for that, the parts of one array job: they write other
                shards, or the same bytes. Unfinished files are then left alone, for they may be another's.

        Raises:
            UserError: another build owns the folder. StorageError: the folder cannot be made.
        """
        with own_folder(self.out, "build", shared=shared) as self._claim:
            alone = self._claim.is_alone and self.out.path() is not None
            try:
                if alone:
                    self._remove_parts()
                yield
            finally:
                if alone:
                    self._remove_parts()

    def finished_manifest(self) -> Manifest | None:
        """The manifest, when this exact plan is finished here and no shard is missing or has another size.

        Raises:
            UserError: the folder holds a dataset that was built from something else.
        """
        if not self.out.exists(MANIFEST_NAME):
            return None
        manifest = read_manifest(self.out)
        if manifest.plan != self.plan:
            raise self._refusal(
                f"a dataset that was built from other files, labels or options ({manifest.dataset}, {manifest.split})"
            )
        sizes = {info.name: info.size for info in self._list_files()}
        for shard in manifest.shards:
            if sizes.get(shard.name) != shard.num_bytes or shard.index_name not in sizes:
                return None
        return manifest

    def finished_shards(self, names: Sequence[str] | None = None) -> dict[str, FinishedShard]:
        """The shards of this plan that are complete here, by the name of their tar.

        Args:
            names: look only for these.

        Raises:
            UserError: the folder holds shards of another build, or files that no build makes.
        """
        files = {info.name: info.size for info in _visible(self._list_files())}
        expected = {*self.shard_names, *map(index_name, self.shard_names), *_READERS, MANIFEST_NAME, QUARANTINE_NAME}
        foreign = sorted(files.keys() - expected)
        if foreign:
            if not any(_SHARD_FILE.fullmatch(name) for name in foreign):
                raise self._foreign(foreign)
            raise self._refusal(f"shards of a build from other files, labels or options ({_some(foreign)})")
        finished = {}
        for name in self.shard_names if names is None else names:
            if index_name(name) not in files:
                continue
            where = self.out.where(index_name(name))
            data = self.out.read(index_name(name))
            try:
                info, plan = decode_shard_metadata(data, where)
            except FormatError:
                continue  # a damaged index is written again
            if plan != self.plan:
                raise self._refusal(f"shards of a build from other files, labels or options ({index_name(name)})")
            if files.get(name) == info.num_bytes:
                finished[name] = FinishedShard(info, decode_shard_report(data, where))
        return finished

    def note_unusable(self, name: str, report: Mapping[str, Any]) -> None:
        """Record a shard none of whose samples was usable: it leaves no other trace for ``finish`` to find."""
        self.out.put(_unusable_name(name), encode_json({"plan": self.plan, "report": report}))

    def unusable_shards(self) -> dict[str, FinishedShard]:
        """The shards recorded by ``note_unusable``."""
        noted = {}
        for name in {info.name for info in self._list_files()} & set(map(_unusable_name, self.shard_names)):
            note = json.loads(self.out.read(name))
            if note["plan"] == self.plan:
                noted[_noted_name(name)] = FinishedShard(None, note["report"])
        return noted

    def withdraw(self) -> None:
        """Turn a dataset back into a plain folder before any of its shards is written: the opposite of ``publish``."""
        self.out.delete(MANIFEST_NAME)
        self.out.delete(QUARANTINE_NAME)

    def publish(self, manifest: Manifest, quarantined: Sequence[Mapping[str, str]] = ()) -> None:
        """Make the folder a dataset, once all its shards are there: every build ends this way.

        The ledger of what was left out comes first, the manifest last.

        Args:
            quarantined: ``file`` and ``reason`` of everything that the build left out.

        Raises:
            UserError: another build has taken the folder over. StorageError: it cannot be written.
        """
        self.list_quarantined(quarantined)
        self._settle()
        if self._claim is not None:
            self._claim.check()
        write_manifest(self.out, manifest)

    def list_quarantined(self, quarantined: Sequence[Mapping[str, str]]) -> None:
        """Write the ledger of what was left out, if anything was."""
        if quarantined:
            self.out.put(QUARANTINE_NAME, b"".join(encode_json(entry) + b"\n" for entry in quarantined))

    def _settle(self) -> None:
        """Force the names of the shards to disk, so that after a power failure no manifest exists without them.

        The records of unusable shards are deleted.
        """
        for info in self._list_files():
            if _noted_name(info.name) in self.shard_names:
                self.out.delete(info.name)
        folder = self.out.path()
        if folder is not None:
            with clear_local_errors(str(folder)), suppress(PermissionError):  # not every system syncs folders
                descriptor = os.open(folder, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def clear(self) -> None:
        """Delete what earlier builds wrote, the manifest first, so that the folder is never an invalid dataset.

        Raises:
            UserError: there are other files as well; nothing is deleted then.
        """
        names = [info.name for info in _visible(self._list_files())]
        ours = {*_READERS, QUARANTINE_NAME, MANIFEST_NAME}
        foreign = [name for name in names if name not in ours and not _SHARD_FILE.fullmatch(name)]
        if foreign:
            raise self._foreign(foreign)
        for name in sorted(names, key=lambda name: (name != MANIFEST_NAME, not name.endswith(".parquet"), name)):
            self.out.delete(name)

    def _list_files(self) -> list[FileInfo]:
        return self.out.list_files() if self._claim is None else self._claim.list_files()

    def _remove_parts(self) -> None:
        folder = self.out.path()
        assert folder is not None
        with clear_local_errors(str(folder)):
            for path in folder.glob(f".*{PART_SUFFIX}"):
                path.unlink(missing_ok=True)

    def _refusal(self, found: str) -> UserError:
        reason = f"{self.out.url}: this folder holds {found}"
        if not self._can_start_over:
            return UserError(f"{reason}; choose another --out, or delete the folder first")
        return OptionsNeeded(f"{reason}; build this one elsewhere, or", ["--overwrite"], "to start over")

    def _foreign(self, names: Sequence[str]) -> UserError:
        return UserError(
            f"{self.out.url}: this folder holds files that no build makes ({_some(names)}); choose another --out, or "
            "move them away"
        )


def _unusable_name(shard: str) -> str:
    """A hidden file: the dataset does not contain it, and other tools do not see it."""
    return f".{shard}{_UNUSABLE_SUFFIX}"


def _noted_name(name: str) -> str:
    return name.removeprefix(".").removesuffix(_UNUSABLE_SUFFIX) if name.endswith(_UNUSABLE_SUFFIX) else ""


def _visible(files: Sequence[FileInfo]) -> list[FileInfo]:
    """Without hidden files (``.gitignore``, ``.DS_Store``), which belong to other tools."""
    return [info for info in files if not any(part.startswith(".") for part in info.name.split("/"))]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
