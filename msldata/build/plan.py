"""Source → plan: which records go into which shard, checked before anything is written."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msldata.build.image import TRANSCODE_QUALITY, Resize
from msldata.contract.format import check_key, encode_json
from msldata.contract.manifest import IMAGES, SCHEMA_VERSION, Manifest, shard_name
from msldata.contract.records import ObjectRecord, Record
from msldata.errors import UserError
from msldata.sources.kinds import Source
from msldata.storage import Storage

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

    def records(self) -> list[Record]:
        """The records in shard order."""
        return [
            Record(
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
                *map(tuple, crop),
            )
            for key, image, positives, ignored, objects, image_id, *crop in json.loads(self.packed)
        ]


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
    """How images are made smaller; None: they keep their own bytes."""

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    def draft(self) -> Manifest:
        """The manifest of what will be built, but for the shards and what is counted in them."""
        return Manifest(
            kind=IMAGES,
            dataset=self.dataset,
            split=self.split,
            classes=self.classes,
            shards=(),
            counts=self.counts,
            options=self.options,
            provenance=self.provenance,
            licence=self.licence,
            plan=self.digest,
        )


def plan_build(source: Source, *, samples_per_shard: int = 1000, resize: Resize | None = None) -> BuildPlan:
    """Read all records of a source and cut them into shards, in the source's order.

    Args:
        source: one split of a dataset.
        samples_per_shard: every shard but the last has this many.
        resize: make the images smaller, and turn them upright; default: they keep their own bytes.

    Raises:
        UserError: no images, two images of one key, a key that cannot name a sample, or ``samples_per_shard`` below 1.
        BadInputError: an annotation that cannot be understood.
    """
    if samples_per_shard < 1:
        raise UserError(f"samples_per_shard is {samples_per_shard}; it must be 1 or more")
    options: dict[str, Any] = {"samples_per_shard": samples_per_shard, "transcode_quality": TRANSCODE_QUALITY}
    if resize is not None:  # without it nothing is added: the plans of earlier builds keep their digests
        options |= resize.options()
    classes = source.labels.classes
    digest = hashlib.sha256(
        encode_json(
            {
                "schema_version": SCHEMA_VERSION,
                "dataset": source.dataset,
                "split": source.split,
                "classes": classes,
                "options": options,
            }
        )
    )
    shards: list[ShardTask] = []
    for chunk in _chunks(_checked(source), samples_per_shard):
        packed = _pack(chunk, source)
        digest.update(b"\n" + packed)
        shards.append(ShardTask(shard_name(source.dataset, source.split, len(shards)), len(chunk), packed))
    if not shards:
        raise UserError(f"{source.images.url}: {source.dataset} {source.split} has no images to build from")
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
    )


def _pack(records: Sequence[Record], source: Source) -> bytes:
    try:
        return _JSON.encode([_packed(record) for record in records]).encode()
    except ValueError:
        bad = next(record for record in records if not _is_finite(record))
        raise UserError(
            f"{source.images.where(bad.image)}: a box, an area or a crop is not a finite number; mend the annotations"
        ) from None


def _is_finite(record: Record) -> bool:
    numbers = [*(record.crop or ())]
    for item in record.objects:
        numbers += (*item.box, item.area)
    return all(map(math.isfinite, numbers))


def _packed(record: Record) -> list[Any]:
    """What ``ShardTask.records`` reads back, field by field."""
    # Whole images add nothing for it: their plans keep the digests of earlier builds.
    crop = [] if record.crop is None else [record.crop]
    return [record.key, record.image, record.positives, record.ignored, record.objects, record.image_id, *crop]


def _checked(source: Source) -> Iterator[Record]:
    """The source's records, each with a key that is valid and new."""
    seen: set[str] = set()
    for record in source.records():
        check_key(record.key)
        if record.key in seen:
            raise UserError(
                f"{source.images.where(record.image)}: a second image with the key '{record.key}'; an image may be "
                "listed only once, and two images must differ in more than their extension"
            )
        seen.add(record.key)
        yield record


def _chunks(records: Iterator[Record], size: int) -> Iterator[list[Record]]:
    chunk: list[Record] = []
    for record in records:
        chunk.append(record)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
