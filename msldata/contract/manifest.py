"""``dataset.json``, the manifest of one split: what it holds, how it is read and written.

It is written last: no manifest, no dataset. ``shards/README.md`` states the same contract for people."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import chain, starmap
from typing import Any, overload

from msldata.errors import UserError, neighbour
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


class Shards(Sequence[ShardInfo]):
    """The tars of a dataset in order, held as columns, in a third of the memory that objects would take.

    A ``ShardInfo`` is made anew for each that is asked for; whoever needs one value of all takes its column. Equal to
    any sequence of the same shards.

    Attributes:
        name, num_samples, num_bytes: a value per shard.
    """

    __slots__ = ("_digests", "name", "num_bytes", "num_samples")

    def __init__(self, infos: Iterable[ShardInfo] = ()):
        self.name: list[str] = []
        self.num_samples, self.num_bytes = array("q"), array("q")
        self._digests = {name: _Digests() for name in _DIGESTS}
        if infos := list(infos):
            self._add({name: [getattr(info, name) for info in infos] for name in _SHARD_FIELDS})

    @classmethod
    def parse(cls, parts: Iterable[list[Any]]) -> Shards:
        """From what a manifest's JSON says, some shards at a time.

        Raises:
            FormatError, TypeError: as ``ShardInfo`` does.
        """
        shards = cls()
        for rows in parts:
            if (columns := _sound_columns(rows)) is None:  # then one of them says what is wrong
                infos = [ShardInfo(**row) for row in rows]
                columns = {name: [getattr(info, name) for info in infos] for name in _SHARD_FIELDS}
            shards._add(columns)
        return shards

    def _add(self, columns: Mapping[str, list[Any]]) -> None:
        self.name.extend(columns["name"])
        self.num_samples.extend(columns["num_samples"])
        self.num_bytes.extend(columns["num_bytes"])
        for name, digests in self._digests.items():
            digests.add(columns[name])

    def columns(self) -> Iterator[tuple[str, int, int, str, str, str]]:
        """The values of each shard in the order of ``ShardInfo``, without making one."""
        digests = (chain.from_iterable(self.digests(name)) for name in _DIGESTS)
        return zip(self.name, self.num_samples, self.num_bytes, *digests)

    def digests(self, name: str) -> Iterator[list[str]]:
        """One of the digests (``sha256`` …) of every shard, a few thousand at a time."""
        return self._digests[name].parts()

    def __len__(self) -> int:
        return len(self.name)

    @overload
    def __getitem__(self, number: int) -> ShardInfo: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[ShardInfo, ...]: ...
    def __getitem__(self, number: int | slice) -> ShardInfo | tuple[ShardInfo, ...]:
        chosen = range(len(self))[number]
        if isinstance(chosen, range):
            return tuple(self[one] for one in chosen)
        return ShardInfo(
            name=self.name[chosen],
            num_samples=self.num_samples[chosen],
            num_bytes=self.num_bytes[chosen],
            **{name: digests[chosen] for name, digests in self._digests.items()},
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Shards({list(self)!r})"


class _Digests:
    """A column of SHA-256 digests, or of empty texts where there is none; 33 bytes for each."""

    __slots__ = ("_is_given", "_packed")

    def __init__(self) -> None:
        self._packed, self._is_given = bytearray(), bytearray()

    def add(self, texts: list[str]) -> None:
        self._packed += bytes.fromhex("".join([text or _NO_DIGEST for text in texts]))
        self._is_given += bytes(map(bool, texts))

    def __getitem__(self, number: int) -> str:
        return self._packed[32 * number : 32 * number + 32].hex() if self._is_given[number] else ""

    def parts(self) -> Iterator[list[str]]:
        for start in range(0, len(self._is_given), _TOGETHER):
            is_given = self._is_given[start : start + _TOGETHER]
            text = self._packed[32 * start : 32 * (start + _TOGETHER)].hex()
            yield [text[64 * n : 64 * n + 64] if given else "" for n, given in enumerate(is_given)]


_SHARD_FIELDS = tuple(one.name for one in fields(ShardInfo))
_DIGESTS = _SHARD_FIELDS[3:]
_NO_DIGEST = "0" * 64
_TOGETHER = 1 << 13
"""About how many shards of a manifest are looked at together."""


def _sound_columns(rows: list[Any]) -> dict[str, list[Any]] | None:
    """The columns of rows that would pass the checks of ``ShardInfo``; None where that is not sure.

    A manifest may name millions of shards, so nothing here is asked of each by itself.
    """
    if set(map(type, rows)) != {dict} or len(named := set(map(tuple, rows))) > 1:
        return None
    if not set(_SHARD_FIELDS[:4]) <= (found := set(named.pop())) <= set(_SHARD_FIELDS):
        return None
    columns: dict[str, list[Any]] = {
        name: [row[name] for row in rows] if name in found else [""] * len(rows) for name in _SHARD_FIELDS
    }
    kinds = {name: set(map(type, column)) for name, column in columns.items()}
    if any(kind - {int if name.startswith("num_") else str} for name, kind in kinds.items()):
        return None
    for name in ("num_samples", "num_bytes"):
        if min(columns[name]) < 1 or max(columns[name]) > _MAX_COUNT:
            return None
    names = "".join(columns["name"])
    if not names.isascii() or _NOT_PLAIN.search(names) or max(map(len, columns["name"])) > 255:
        return None
    if {name[-4:] for name in columns["name"]} != {".tar"}:
        return None
    for name in _DIGESTS:
        if not set(map(len, columns[name])) <= ({64} if name == "sha256" else {0, 64}):
            return None
        text = "".join(columns[name])
        try:
            is_hex = bytes.fromhex(text).hex() == text
        except ValueError:
            is_hex = False
        if not is_hex:
            return None
    return columns


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
    shards: Shards = field(default_factory=Shards)
    """Any other sequence of ``ShardInfo`` becomes one."""
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
        return sum(self.shards.num_samples)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what training reads: two datasets with equal fingerprints hold the same samples and labels.

        For images it covers the shards' bytes, the split, the classes in order, and each sample's positive and ignored
        classes; for keep masks, and in datasets of schema version 1, only the shards' bytes.
        """
        digest = hashlib.sha256()
        if self.kind == KEEP_MASKS or self.schema_version == 1:
            digest.update("\n".join(chain.from_iterable(self.shards.digests("sha256"))).encode())
            return digest.hexdigest()
        # That of the JSON of [split, classes, shards' digests, labels' digests], some of them at a time.
        digest.update(json.dumps([self.split, self.classes])[:-1].encode())
        for name in ("sha256", "labels_sha256"):
            for number, some in enumerate(self.shards.digests(name)):
                digest.update(b", " if number else b", [")
                digest.update(json.dumps(some)[1:-1].encode())
            digest.update(b"]" if self.shards else b", []")
        digest.update(b"]")
        return digest.hexdigest()

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
                ",".join(starmap(_shard_json, self.shards.columns())).encode(),
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
            content, shards = _parsed(data)
            fingerprint, num_samples = content.pop("fingerprint"), content.pop("num_samples")
            version = content["schema_version"]
            if not _is_count(version) or not OLDEST_VERSION <= version <= SCHEMA_VERSION:
                raise FormatError(
                    f"schema version {version}, this program reads {OLDEST_VERSION} to {SCHEMA_VERSION}; "
                    "build the shards again from their source, or read them with a newer program"
                )
            content["shards"] = Shards.parse(shards)
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
        if not isinstance(self.shards, Shards):
            object.__setattr__(self, "shards", Shards(self.shards))
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
        names = self.shards.name
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


def _parsed(data: bytes) -> tuple[dict[str, Any], Iterable[list[Any]]]:
    """A manifest's JSON without its shards, and these, some at a time: parsed, they take several times their text.

    That is where they are written as a build writes them: JSON has no line break within a text, so its lines say where
    a shard ends. Anything else is parsed as a whole.
    """
    begin = data.find(_BEFORE_SHARDS) + len(_BEFORE_SHARDS)
    end = data.find(_AFTER_SHARDS, begin)
    if begin < len(_BEFORE_SHARDS) or end < 0:
        content = json.loads(data)
        return content, [content["shards"]]

    def parts() -> Iterator[list[Any]]:
        start = begin
        while start < end:
            stop = data.find(_BETWEEN_SHARDS, min(start + _PART_BYTES, end), end)
            stop = end if stop < 0 else stop + _BETWEEN_SHARDS.index(b",")
            yield json.loads(b"[" + data[start:stop] + b"]")
            start = stop + 1

    return json.loads(data[:begin] + data[end:]), parts()


_BEFORE_SHARDS, _BETWEEN_SHARDS, _AFTER_SHARDS = b'\n  "shards": [\n', b"\n    },\n    {", b"\n  ],\n"
_PART_BYTES = 1 << 22


def _shard_json(name: str, num_samples: int, num_bytes: int, sha256: str, index_sha256: str, labels_sha256: str) -> str:
    """A shard's entry, its keys sorted; empty digests are left out."""
    optional = "".join(
        f'\n      "{key}": "{value}",'
        for key, value in (("index_sha256", index_sha256), ("labels_sha256", labels_sha256))
        if value
    )
    return (
        f'\n    {{{optional}\n      "name": {json.dumps(name)},\n      "num_bytes": {num_bytes},'
        f'\n      "num_samples": {num_samples},\n      "sha256": "{sha256}"\n    }}'
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


def datasets_below(location: Location | Storage) -> list[str]:
    """The finished datasets below a local folder, or below the one of this name in ``shards/``."""
    storage = open_storage(location)
    return [
        place.where(info.name.removesuffix(f"/{MANIFEST_NAME}"))
        for place in (storage, *([] if "/" in storage.url else [open_storage(f"shards/{storage.url}")]))
        if place.path()
        for info in place.list_files()
        if info.name.endswith(f"/{MANIFEST_NAME}")
    ]


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
        near, folder = datasets_below(storage), storage.path()
        hint = "; build it with `msl build-shards` or `msl build-masks`, or wait until the build has finished"
        if near:
            hint = f"; did you mean {', '.join(near[:6])}?"
        elif folder is not None and not folder.exists():
            hint = neighbour(folder) or hint
        raise FormatError(f"{storage.url}: no finished dataset here (no {MANIFEST_NAME}){hint}") from None
    return Manifest.from_json(data, storage.where(MANIFEST_NAME))
