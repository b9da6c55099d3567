"""``dataset.json``, the manifest of one split: what it holds, how it is read and written.

It is written last: no manifest, no dataset. ``shards/README.md`` states the same contract for people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from msldata.errors import UserError
from msldata.storage import Storage

SCHEMA_VERSION = 1


MANIFEST_NAME = "dataset.json"


IMAGES = "images"


KEEP_MASKS = "keep-masks"


class FormatError(UserError):
    """A folder or file that does not keep the shard contract."""


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One tar: file name, samples, bytes, and the SHA-256 of the whole file in hex."""

    name: str
    num_samples: int
    num_bytes: int
    sha256: str

    @property
    def index_name(self) -> str:
        """File name of the sample index beside the tar."""
        return index_name(self.name)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What ``dataset.json`` says of one split."""

    kind: str
    """``images`` or ``keep-masks``."""
    dataset: str
    split: str
    classes: tuple[str, ...] = ()
    """Class names in target order; empty for keep masks."""
    shards: tuple[ShardInfo, ...]
    label_histogram: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Per class: ``positive`` and ``ignored`` image counts."""
    hole_fraction_histogram: Mapping[str, int] = field(default_factory=dict)
    """Keep masks per ten-percent bin of the hole fraction, as ``"0.1-0.2": 120``; each bin excludes its lower edge."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What happened on the way, by name: dropped, transcoded, quarantined …"""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The build options that shaped the bytes."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    plan: str = ""
    """Digest of the build plan; equal plans give equal bytes."""
    schema_version: int = SCHEMA_VERSION

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the shard digests in order: two datasets with equal fingerprints hold the same bytes."""
        return hashlib.sha256("\n".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def to_json(self) -> bytes:
        content = asdict(self)
        content["num_samples"] = self.num_samples
        content["fingerprint"] = self.fingerprint
        return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Manifest:
        """Parse and check a manifest.

        Raises:
            FormatError: not JSON, another schema version, a missing field, or a fingerprint that does not match.
        """
        try:
            content = json.loads(data)
            fingerprint = content.pop("fingerprint")
            content.pop("num_samples")
            version = content["schema_version"]
            if version != SCHEMA_VERSION:
                raise FormatError(
                    f"{where}: schema version {version}, this program reads {SCHEMA_VERSION}; "
                    "build the shards again from their source"
                )
            content["shards"] = tuple(ShardInfo(**shard) for shard in content["shards"])
            content["classes"] = tuple(content["classes"])
            manifest = cls(**content)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(
                f"{where}: not a manifest of this program ({error}); build the dataset again from its source"
            ) from None
        if manifest.fingerprint != fingerprint:
            raise FormatError(
                f"{where}: the fingerprint does not match the shard digests; the file was edited or damaged"
            )
        return manifest


def shard_name(dataset: str, split: str, index: int) -> str:
    """File name of shard ``index``: ``voc2007-test-000003.tar``."""
    return f"{dataset}-{split}-{index:06d}.tar"


def index_name(shard: str) -> str:
    """File name of the sample index that belongs to the tar ``shard``."""
    return shard.removesuffix(".tar") + ".parquet"


def read_manifest(storage: Storage) -> Manifest:
    """Read the manifest of the dataset folder ``storage``.

    Raises:
        FormatError: there is none (the message names datasets found below, if any), or it is not valid.
    """
    try:
        data = storage.read(MANIFEST_NAME)
    except FileNotFoundError as error:
        if "no such bucket" in str(error):  # a mistake in the name; building anything would not mend it
            raise
        below = (
            [info.name for info in storage.list_files() if info.name.endswith(f"/{MANIFEST_NAME}")]
            if storage.path()
            else []
        )
        hint = (
            f"; did you mean {', '.join(storage.where(name.removesuffix(f'/{MANIFEST_NAME}')) for name in below[:6])}?"
            if below
            else "; build it with `msl build-shards` or `msl build-masks`, or wait until the build has finished"
        )
        raise FormatError(f"{storage.url}: no finished dataset here (no {MANIFEST_NAME}){hint}") from None
    return Manifest.from_json(data, storage.where(MANIFEST_NAME))
