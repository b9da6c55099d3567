"""Source → plan: which records go into which shard, checked before anything is written."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

from msldata.build.image import TRANSCODE_QUALITY, Resize
from msldata.contract.format import INDEX_VERSION, check_key, encode_json
from msldata.contract.manifest import IMAGES, Manifest, shard_name
from msldata.contract.records import LabelSpace, ObjectRecord, Occlusion, Record
from msldata.errors import BadInputError, UserError, counted, few_of
from msldata.sources.kinds import PUBLISHED, Source
from msldata.storage import Storage

SKIP_LIMIT = 0.1
"""The largest share of a dataset's images that a build may leave out."""
_ALWAYS_SKIPPED = 10
"""This many images may be left out of a dataset of any size."""
_SHOWN = 3
_TWINS_SHOWN = 10
_KINDS = {"VOC2007": "voc2007", "COCO-2014": "coco2014"}
"""Kinds of published datasets by the name in their provenance; a dataset with other classes has another name there."""

_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard to write: its tar's name and its records.

    The records are kept as JSON: a quarter of their size as objects, cheap to hand to a worker, and what the plan's
    digest is taken over.
    """

    name: str
    num_samples: int
    packed: bytes = field(repr=False)
    image_sizes: str = ""
    """``digest_sizes`` of its image files as they are now; empty where they are unknown: remote, or missing."""
    missing: tuple[str, ...] = ()
    """Those of its images that are not there now, as far as they would be on this machine."""

    def records(self) -> list[Record]:
        """The records in shard order."""
        return [_unpacked(*fields) for fields in json.loads(self.packed)]


@dataclass(frozen=True)
class BuildPlan:
    """Which records go into which shard, and everything else that shapes the bytes; nothing is written yet."""

    dataset: str
    split: str
    classes: tuple[str, ...]
    images: Storage
    shards: tuple[ShardTask, ...]
    options: Mapping[str, Any]
    counts: Mapping[str, int]
    """What the source left out, by reason."""
    provenance: Mapping[str, Any]
    licence: str
    digest: str
    """SHA-256 over dataset, split, classes, options and every record; equal plans give equal bytes."""
    resize: Resize | None = None
    """How images are made smaller; None: they keep their original bytes."""
    decode: bool = False
    """Whether every image is decoded to be sure that it is whole: all but those of a split that is as large as it was
    published, for its archives are checked when they are fetched."""
    quarantined: tuple[Mapping[str, str], ...] = ()
    """Records that were left out, with file and reason."""
    skip_limit: float = SKIP_LIMIT
    newest_image: tuple[int, str] = (0, "")
    """When an image last changed, in nanoseconds, and that image's name; local images only."""

    @property
    def image_sizes(self) -> str:
        """``digest_sizes`` of all shards together; empty where one is not known."""
        return join_sizes(shard.image_sizes for shard in self.shards)

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    def draft(self) -> Manifest:
        """The manifest of what will be built, except for the shards and the counts taken from them."""
        return Manifest(
            kind=IMAGES,
            dataset=self.dataset,
            split=self.split,
            classes=self.classes,
            counts=self.counts,
            options=self.options,
            provenance=self.provenance,
            licence=self.licence,
            plan=self.digest,
        )


def plan_build(
    source: Source,
    *,
    samples_per_shard: int = 1000,
    resize: Resize | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    skip_limit: float = SKIP_LIMIT,
) -> BuildPlan:
    """Read all records of a source and cut them into shards, in the source's order.

    Args:
        source: one split of a dataset.
        samples_per_shard: every shard but the last has this many.
        resize: make the images smaller; default: they keep their own bytes.
        on_error: ``fail`` stops at the first record that cannot be used, ``skip`` leaves it out and lists it.
        skip_limit: share of the images that may be left out, in [0, 1]; ten may be in any case.

    Raises:
        UserError: no images, two images of one key, a key that cannot name a sample, or ``samples_per_shard`` below 1.
        BadInputError: an annotation that cannot be understood, unless it is skipped.
    """
    _check_source(source)
    if samples_per_shard < 1:
        raise UserError(f"samples_per_shard is {samples_per_shard}; it must be 1 or more")
    options: dict[str, Any] = {"samples_per_shard": samples_per_shard, "transcode_quality": TRANSCODE_QUALITY}
    if resize is not None:  # without it nothing is added: the plans of earlier builds keep their digests
        options |= resize.options()
    classes = source.labels.classes
    digest = hashlib.sha256(
        encode_json(
            {
                "schema_version": INDEX_VERSION,
                "dataset": source.dataset,
                "split": source.split,
                "classes": classes,
                "options": options,
            }
        )
    )
    shards: list[ShardTask] = []
    ledger = Ledger(source.images, on_error)
    newest = (0, "")
    for chunk in _chunks(_checked(source, ledger), samples_per_shard):
        packed = _pack(chunk)
        sizes, changed, missing = _look_at(source.images, chunk)
        newest = max(newest, changed)
        digest.update(b"\n" + packed)
        shards.append(
            ShardTask(shard_name(source.dataset, source.split, len(shards)), len(chunk), packed, sizes, missing)
        )
    num_planned = sum(shard.num_samples for shard in shards)
    refuse_too_many(ledger.entries, num_planned + len(ledger.entries), skip_limit, source.images.url)
    if not shards:
        raise UserError(f"{source.images.url}: {source.dataset} {source.split} has no images to build from")
    published = PUBLISHED.get((_KINDS.get(source.provenance.get("source", ""), ""), source.split), 0)
    return BuildPlan(
        dataset=source.dataset,
        split=source.split,
        classes=classes,
        images=source.images,
        shards=tuple(shards),
        options=options,
        counts=dict(source.counts),
        provenance=dict(source.provenance),
        licence=source.licence,
        digest=digest.hexdigest(),
        resize=resize,
        decode=num_planned < published or not published,
        quarantined=tuple(ledger.entries),
        skip_limit=skip_limit,
        newest_image=newest,
    )


def _check_source(source: Source) -> None:
    """Raise UserError for a source of one's own that lacks what a build asks of it."""
    kind = type(source).__name__
    names = ("dataset", "split", "labels", "images", "licence", "provenance", "counts", "records")
    if missing := [name for name in names if not hasattr(source, name)]:
        raise UserError(f"the source, a {kind}, has no {', '.join(missing)}; a source has {', '.join(names)}")
    if not isinstance(source.labels, LabelSpace):
        raise UserError(f"the labels of {kind} are a {type(source.labels).__name__}; give LabelSpace(classes)")
    if not hasattr(source.images, "where"):
        raise UserError(f"the images of {kind} are a {type(source.images).__name__}; give open_storage(folder)")


class Ledger:
    """What a build leaves out: with ``on_error="fail"`` nothing, for the first such file ends it.

    Args:
        images: what the names of files are relative to, so that no path of this machine gets into the list.
    """

    def __init__(self, images: Storage, on_error: Literal["fail", "skip"]):
        self.entries: list[dict[str, str]] = []
        self._folder = images.where("")
        self._skip = on_error == "skip"

    def add(self, error: BadInputError) -> None:
        """Take note of a file that cannot be used, or raise the error."""
        if not self._skip:
            raise error
        self.entries.append({"file": error.file.removeprefix(self._folder).lstrip("/"), "reason": error.reason})


def refuse_too_many(entries: Sequence[Mapping[str, str]], num_planned: int, limit: float, where: str) -> None:
    """Raise UserError when more records are left out than ``skip_limit`` allows."""
    if len(entries) <= max(_ALWAYS_SKIPPED, limit * num_planned):
        return
    first = "".join(f"\n  {entry['file']}: {entry['reason']}" for entry in entries[:_SHOWN])
    raise UserError(
        f"{where}: {len(entries):,} of {counted(num_planned, 'image')} cannot be used, more than --skip-limit "
        f"{limit:g} allows:{first}\nmend them, or raise the limit"
    )


def _pack(records: Sequence[Record]) -> bytes:
    return _JSON.encode([_packed(record) for record in records]).encode()


def digest_sizes(sizes: Iterable[int]) -> str:
    """Shows whether images were replaced: SHA-256 over their sizes in bytes."""
    return hashlib.sha256(",".join(map(str, sizes)).encode()).hexdigest()


def join_sizes(digests: Iterable[str]) -> str:
    """One digest over the digests of all shards; empty where one is missing."""
    found = list(digests)
    return hashlib.sha256("".join(found).encode()).hexdigest() if all(found) else ""


def _look_at(images: Storage, records: Sequence[Record]) -> tuple[str, tuple[int, str], tuple[str, ...]]:
    """``digest_sizes`` of the images, the newest of them with its time, and those that are not there.

    Nothing is known about remote images without a request for each; a plan assumes that they have not changed.
    """
    sizes, newest, missing = [], (0, ""), []
    all_local, where = images.path() is not None, images.where
    for record in records:
        if not all_local and images.path(record.image) is None:
            continue
        try:
            facts = os.stat(where(record.image))  # noqa: PTH116  (pathlib takes as long as the system call)
        except FileNotFoundError:
            missing.append(record.image)
        except (OSError, ValueError):  # no name that a file can have
            pass
        else:
            sizes.append(facts.st_size)
            if facts.st_mtime_ns >= newest[0]:
                newest = max(newest, (facts.st_mtime_ns, record.image))
    return digest_sizes(sizes) if len(sizes) == len(records) else "", newest, tuple(missing)


def _problem(record: Record, num_classes: int) -> str:
    # The sum is finite when all are; a number at the end of what 64 bits hold is no length in pixels either.
    total = sum(record.crop or ())
    odd = [index for index in record.positives if not 0 <= index < num_classes]
    if record.ignored:
        odd += [index for index in record.ignored if not 0 <= index < num_classes]
    for item in record.objects:
        total += sum(item.box, item.area)
        if not 0 <= item.class_index < num_classes:
            odd.append(item.class_index)
    if not math.isfinite(total):
        return "a box, an area or a crop is not a finite number"
    if odd:
        return f"class index {odd[0]}; of {counted(num_classes, 'class')}, counted from 0"
    if record.ignored and not set(record.positives).isdisjoint(record.ignored):
        return f"class index {min({*record.positives} & {*record.ignored})} is both positive and ignored"
    return ""


def _packed(record: Record) -> list[Any]:
    """What ``_unpacked`` reads back, field by field."""
    packed: list[Any] = [record.key, record.image, record.positives, record.ignored, record.objects, record.image_id]
    packed += (record.crop, record.size, record.occlusion)
    # What is not there adds nothing: plans without it keep the digests of earlier builds.
    while packed[-1] is None:
        packed.pop()
    return packed


def _unpacked(
    key: str,
    image: str,
    positives: list[int],
    ignored: list[int],
    objects: list[Any],
    image_id: str,
    crop: Any = None,
    size: Any = None,
    occlusion: Any = None,
) -> Record:
    """What ``_packed`` made of a record."""
    return Record(
        key,
        image,
        tuple(positives),
        tuple(ignored),
        tuple(
            [
                ObjectRecord(index, tuple(box), area, difficult, truncated, occluded, crowd)
                for index, box, area, difficult, truncated, occluded, crowd in objects
            ]
        ),
        image_id,
        crop and tuple(crop),
        size and tuple(size),
        occlusion and tuple([Occlusion(*told) for told in occlusion]),
    )


def _checked(source: Source, ledger: Ledger) -> Iterator[Record]:
    """The source's records that can be used, each with a key that is valid and new."""
    seen: dict[str, str] = {}
    twins: list[tuple[str, str, str]] = []
    source.reject = ledger.add
    num_classes = len(source.labels)
    for record in source.records():
        if not isinstance(record, Record):
            raise UserError(f"{source.dataset}: records() gives a {type(record).__name__}; give msldata.Record")
        if problem := _problem(record, num_classes):
            ledger.add(BadInputError(source.images.where(record.image), problem, "mend the annotations"))
            continue
        if len(record.positives) > 1 or len(record.ignored) > 1:
            positives, ignored = tuple(sorted({*record.positives})), tuple(sorted({*record.ignored}))
            if (positives, ignored) != (record.positives, record.ignored):  # seldom, and a copy takes microseconds
                record = replace(record, positives=positives, ignored=ignored)
        check_key(record.key)
        if record.key in seen:
            twins.append((seen[record.key], record.image, record.key))
            continue
        seen[record.key] = record.image
        yield record
    if twins:
        (first, second, key), *others = twins
        beside = few_of([f"'{one}' and '{other}'" for one, other, _ in others], _TWINS_SHOWN - 1)
        raise UserError(
            f"{source.images.where(second)}: a second image with the key '{key}', beside '{first}'"
            f"{f', and so {beside}' if others else ''}; an image may be listed only once, and two images must differ "
            "in more than their extension"
        )


def _chunks(records: Iterator[Record], size: int) -> Iterator[list[Record]]:
    """Lists of ``size`` records, the last may have fewer; each is emptied when the next is asked for."""
    while True:
        with collector_paused():
            chunk = list(islice(records, size))
            if not chunk:
                return
            yield chunk
            chunk.clear()  # a collector that wakes up now finds no records to search


@contextmanager
def collector_paused() -> Iterator[None]:
    """Records and rows hold no reference cycles, and searching them for cycles takes a twentieth of a build's time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
