"""``dataset.json``, the manifest of one split: what it holds, how it is read and written.

It is written last: no manifest, no dataset. ``shards/README.md`` states the same contract for people."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from msldata.errors import UserError
from msldata.storage import Location, Storage, open_storage

SCHEMA_VERSION = 2
"""Version 2 added digests of sample indexes and labels, and a fingerprint that covers the labels. Version 1 is still
read."""
OLDEST_VERSION = 1


MANIFEST_NAME = "dataset.json"


IMAGES = "images"


KEEP_MASKS = "keep-masks"


class FormatError(UserError):
    """A folder or file that does not keep the shard contract."""


_DIGEST = re.compile(r"[0-9a-f]{64}")
_NOT_PLAIN = re.compile(r"[\x00-\x1f\x7f-\x9f/\\]")
_MAX_COUNT = 2**53
"""Above this, not every program reads a JSON number exactly."""
_MAX_CLASSES = 2**15
"""The sample index holds class indices as 16-bit integers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """One tar: file name, samples, bytes, and the SHA-256 of the whole file in hex.

    Raises:
        FormatError: a name that leads elsewhere, a count below one, a malformed digest.
    """

    name: str
    num_samples: int
    num_bytes: int
    sha256: str
    index_sha256: str = field(default="", compare=False)
    """Digest of the sample index beside the tar; empty in older datasets, where nothing vouches for the index."""
    labels_sha256: str = field(default="", compare=False)
    """Digest of the labels, see `msldata.contract.format.labels_digest`; empty for keep masks and in older datasets."""

    def __post_init__(self) -> None:
        # A manifest may name millions of shards: each check is asked once, and the message is made where one fails.
        if not is_plain_name(self.name) or not self.name.endswith(".tar"):
            raise FormatError(f"shard name {self.name!r} is not the plain name of a .tar file")
        if not _is_count(self.num_samples, 1) or not _is_count(self.num_bytes, 1):
            name = "num_bytes" if _is_count(self.num_samples, 1) else "num_samples"
            raise FormatError(f"shard {self.name}: {name} is {getattr(self, name)!r}, not a number above 0")
        if not (
            is_digest(self.sha256)
            and (self.index_sha256 == "" or is_digest(self.index_sha256))
            and (self.labels_sha256 == "" or is_digest(self.labels_sha256))
        ):
            for name in ("sha256", "index_sha256", "labels_sha256"):
                value = getattr(self, name)
                if not is_digest(value) and (value != "" or name == "sha256"):
                    raise FormatError(f"shard {self.name}: {name} is {str(value)[:80]!r}, not 64 hex digits")

    @property
    def index_name(self) -> str:
        """File name of the sample index beside the tar."""
        return index_name(self.name)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What ``dataset.json`` says about one split.

    Raises:
        FormatError: names that lead elsewhere, a shard named twice, counts that are malformed or do not add up.
    """

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

    @cached_property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what training reads: two datasets with equal fingerprints hold the same samples and labels.

        For images it covers the shards' bytes, the split, the classes in order, and each sample's positive and ignored
        classes; for keep masks, and in datasets of schema version 1, only the shards' bytes.
        """
        shards = [shard.sha256 for shard in self.shards]
        if self.kind == KEEP_MASKS or self.schema_version == 1:
            return hashlib.sha256("\n".join(shards).encode()).hexdigest()
        labels = [shard.labels_sha256 for shard in self.shards]
        return hashlib.sha256(json.dumps([self.split, self.classes, shards, labels]).encode()).hexdigest()

    def to_json(self) -> bytes:
        """Indented JSON with sorted keys."""
        content: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "shards"}
        content |= {"num_samples": self.num_samples, "fingerprint": self.fingerprint}
        # The standard library's indented writer takes 40 µs a shard, which is long for millions of them.
        before, after = ({k: v for k, v in content.items() if (k < "shards") == first} for first in (True, False))
        return b"".join(
            (
                json.dumps(before, indent=2, sort_keys=True)[:-2].encode(),
                b',\n  "shards": [',
                ",".join(map(_shard_json, self.shards)).encode(),
                b"\n  ],\n" if self.shards else b"],\n",
                json.dumps(after, indent=2, sort_keys=True)[2:].encode(),
                b"\n",
            )
        )

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Manifest:
        """Parse and check a manifest.

        Raises:
            FormatError: not JSON, another schema version, a missing field, a value that no build writes, or a
                fingerprint that does not match.
        """
        try:
            content = json.loads(data)
            fingerprint, num_samples = content.pop("fingerprint"), content.pop("num_samples")
            version = content["schema_version"]
            if not _is_count(version) or not OLDEST_VERSION <= version <= SCHEMA_VERSION:
                raise FormatError(
                    f"schema version {version}, this program reads {OLDEST_VERSION} to {SCHEMA_VERSION}; "
                    "build the shards again from their source, or read them with a newer program"
                )
            content["shards"] = tuple(ShardInfo(**shard) for shard in content["shards"])
            content["classes"] = tuple(content["classes"])
            manifest = cls(**content)
        except FormatError as error:
            raise FormatError(f"{where}: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(
                f"{where}: not a manifest of this program ({error}); build the dataset again from its source"
            ) from None
        if manifest.fingerprint != fingerprint:
            raise FormatError(
                f"{where}: the fingerprint does not match the shard digests; the file was edited or damaged"
            )
        if not _is_count(num_samples) or manifest.num_samples != num_samples:
            raise FormatError(
                f"{where}: says {num_samples!r} samples, its shards hold {manifest.num_samples:,}; the file was edited "
                "or damaged"
            )
        return manifest

    def __post_init__(self) -> None:
        if self.kind not in (IMAGES, KEEP_MASKS):
            raise FormatError(f"kind is {self.kind!r}, not '{IMAGES}' or '{KEEP_MASKS}'")
        for name in ("dataset", "split"):
            if not is_plain_name(getattr(self, name)):
                raise FormatError(f"{name} is {getattr(self, name)!r}, not a plain name")
        if len(self.classes) > _MAX_CLASSES:
            raise FormatError(f"{len(self.classes):,} classes, {_MAX_CLASSES:,} is the most")
        if not all(isinstance(name, str) and name for name in self.classes):
            raise FormatError("a class has no name")
        if len(set(self.classes)) != len(self.classes):
            raise FormatError("a class is named twice")
        names = [shard.name for shard in self.shards]
        if len(set(names)) != len(names):
            raise FormatError(f"shard {next(name for name in names if names.count(name) > 1)} is named twice")
        for name in ("label_histogram", "hole_fraction_histogram", "counts", "options", "provenance"):
            if not isinstance(getattr(self, name), Mapping):
                raise FormatError(f"{name} is not a table of names and values")
        for name in ("licence", "plan"):
            if not isinstance(getattr(self, name), str):
                raise FormatError(f"{name} is not text")
        for holder, name, is_right, what in _RELIED_ON:
            if (given := getattr(self, holder).get(name)) is not None and not is_right(given):
                raise FormatError(f"{holder}.{name} is {str(given)[:80]!r}, not {what}")
        for name, counts in self.label_histogram.items():
            if not isinstance(counts, Mapping) or not all(_is_count(value) for value in counts.values()):
                raise FormatError(f"label_histogram of {name!r}: {str(counts)[:80]} are not counts")
            if sum(counts.values()) > self.num_samples > 0:
                raise FormatError(
                    f"label_histogram of {name!r}: {sum(counts.values()):,} labels of {self.num_samples:,} samples"
                )
        for table in (self.hole_fraction_histogram, self.counts):
            for name, value in table.items():
                if not _is_count(value):
                    raise FormatError(f"count {name!r} is {str(value)[:80]}, not a number of 0 or more")


def _shard_json(shard: ShardInfo) -> str:
    """A shard's entry, its keys sorted; empty digests are left out."""
    optional = "".join(
        f'\n      "{name}": "{value}",'
        for name, value in (("index_sha256", shard.index_sha256), ("labels_sha256", shard.labels_sha256))
        if value
    )
    return (
        f'\n    {{{optional}\n      "name": {json.dumps(shard.name)},\n      "num_bytes": {shard.num_bytes},'
        f'\n      "num_samples": {shard.num_samples},\n      "sha256": "{shard.sha256}"\n    }}'
    )


def _is_words(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(word, str) for word in value)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


_RELIED_ON = (
    ("provenance", "command", _is_words, "a list of words"),
    ("options", "labels_from", lambda value: isinstance(value, str), "text"),
    ("options", "reading", lambda value: isinstance(value, Mapping), "a table of names and values"),
    ("options", "threshold", _is_share, "a number from 0 to 1"),
    ("options", "hole_fraction_above", _is_share, "a number from 0 to 1"),
    ("options", "hole_fraction_up_to", _is_share, "a number from 0 to 1"),
)
"""What readers take from the tables that a build fills as it likes."""


def is_digest(value: object) -> bool:
    """Whether ``value`` is a SHA-256 in lower-case hex."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def is_plain_name(value: object) -> bool:
    """Whether ``value`` names a file or folder directly inside a folder, and nothing elsewhere."""
    return (
        isinstance(value, str)
        and bool(value)
        and value not in (".", "..")
        and not _NOT_PLAIN.search(value)
        and len(value.encode(errors="surrogatepass")) <= 255
    )


def _is_count(value: object, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _MAX_COUNT


def shard_name(dataset: str, split: str, index: int) -> str:
    """File name of shard ``index``: ``voc2007-test-000003.tar``."""
    return f"{dataset}-{split}-{index:06d}.tar"


def index_name(shard: str) -> str:
    """File name of the sample index that belongs to the tar ``shard``."""
    return shard.removesuffix(".tar") + ".parquet"


def read_manifest(location: Location | Storage) -> Manifest:
    """Read the manifest of a dataset folder.

    Raises:
        FormatError: there is none (the message names those below, or below ``shards/``, if any), or it is not valid.
    """
    storage = open_storage(location)
    try:
        data = storage.read(MANIFEST_NAME)
    except FileNotFoundError as error:
        if "no such bucket" in str(error):  # a mistake in the name; no build would fix it
            raise
        near = [
            place.where(info.name.removesuffix(f"/{MANIFEST_NAME}"))
            for place in (storage, *([] if "/" in storage.url else [open_storage(f"shards/{storage.url}")]))
            if place.path()
            for info in place.list_files()
            if info.name.endswith(f"/{MANIFEST_NAME}")
        ]
        hint = (
            f"; did you mean {', '.join(near[:6])}?"
            if near
            else "; build it with `msl build-shards` or `msl build-masks`, or wait until the build has finished"
        )
        raise FormatError(f"{storage.url}: no finished dataset here (no {MANIFEST_NAME}){hint}") from None
    return Manifest.from_json(data, storage.where(MANIFEST_NAME))
