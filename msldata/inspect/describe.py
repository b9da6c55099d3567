"""What is in a dataset: numbers from its manifest and its sample indexes, without touching an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from msldata.contract.format import INDEX_SCHEMAS, read_index
from msldata.contract.manifest import IMAGES, Manifest, read_manifest
from msldata.contract.records import LARGE_FROM, SMALL_BELOW
from msldata.storage import Location, Storage, open_storage

_FLAGS = ("difficult", "truncated", "occluded", "crowd")


@dataclass(frozen=True, slots=True)
class LabelCount:
    """In how many images one class is positive, and in how many it is ignored."""

    name: str
    positive: int
    ignored: int
    share: float
    """Positive images among all, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class LabelPair:
    """Two classes and how often they are positive in one image."""

    first: str
    second: str
    images: int
    overlap: float
    """Images with both among those with either (Jaccard index), in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Smallest, middle and largest of some numbers."""

    minimum: float
    median: float
    maximum: float


@dataclass(frozen=True, slots=True)
class FlagCount:
    """For how many objects something is true, and for how many the source says whether it is."""

    true: int
    known: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """One dataset in numbers. What a kind of dataset lacks is empty: labels of keep masks, holes of images."""

    kind: str
    dataset: str
    split: str
    num_samples: int
    num_shards: int
    num_bytes: int
    fingerprint: str
    options: Mapping[str, Any]
    counts: Mapping[str, int]
    licence: str
    width: Extent | None
    height: Extent | None
    """Widths of the stored images in pixels; None, as for hole fractions, where there is no sample."""
    labels: tuple[LabelCount, ...] = ()
    labels_per_image: float = 0.0
    """Mean number of positive classes."""
    pairs: tuple[LabelPair, ...] = ()
    """The pairs with the largest overlap first."""
    object_sizes: Mapping[str, int]
    """Numbers of objects that are small, medium and large."""
    object_flags: Mapping[str, FlagCount]
    """Numbers of objects that are difficult, truncated, occluded or a crowd."""
    hole_fraction_histogram: Mapping[str, int]
    hole_fraction: Extent | None = None


def describe(place: Location | Storage, *, max_pairs: int = 8) -> Description:
    """Read a dataset's manifest and sample indexes and count.

    Args:
        place: a split of images or a subset of keep masks, local or remote.
        max_pairs: how many pairs of classes to name.

    Raises:
        FormatError: no readable manifest or index. FileNotFoundError: an index is missing.
    """
    folder = open_storage(place)
    manifest = read_manifest(folder)
    images = manifest.kind == IMAGES
    columns = ("width", "height", *(("positives", "ignored", "objects") if images else ("hole_fraction",)))
    index = _read_indexes(folder, manifest, columns)
    labels: Sequence[LabelCount] = ()
    pairs: Sequence[LabelPair] = ()
    labels_per_image = 0.0
    if images:
        labels = _count_labels(manifest.classes, index)
        pairs = _count_pairs(labels, index["positives"])[:max_pairs]
        labels_per_image = sum(one.positive for one in labels) / max(1, index.num_rows)
    return Description(
        kind=manifest.kind,
        dataset=manifest.dataset,
        split=manifest.split,
        num_samples=manifest.num_samples,
        num_shards=len(manifest.shards),
        num_bytes=sum(manifest.shards.num_bytes),
        fingerprint=manifest.fingerprint,
        options=manifest.options,
        counts=manifest.counts,
        licence=manifest.licence,
        width=_spread(index["width"].to_numpy()),
        height=_spread(index["height"].to_numpy()),
        labels=tuple(labels),
        labels_per_image=labels_per_image,
        pairs=tuple(pairs),
        object_sizes=_object_sizes(index) if images else {},
        object_flags=_object_flags(index) if images else {},
        hole_fraction_histogram=manifest.hole_fraction_histogram,
        hole_fraction=None if images else _spread(index["hole_fraction"].to_numpy()),
    )


def _read_indexes(folder: Storage, manifest: Manifest, columns: Sequence[str]) -> pa.Table:
    tables = [read_index(folder, manifest, info, columns) for info in manifest.shards]
    none = INDEX_SCHEMAS[manifest.kind].empty_table().select(list(columns))  # a subset of masks may have no shards
    return pa.concat_tables([none, *(table.replace_schema_metadata(None) for table in tables)])


def _flat(lists: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(number of the row, value) of every value in a column of lists."""
    rows = [np.repeat(np.arange(len(chunk)), chunk.value_lengths().to_numpy()) for chunk in lists.chunks]
    starts = np.cumsum([0, *(len(chunk) for chunk in lists.chunks)])
    values = [chunk.flatten().to_numpy() for chunk in lists.chunks]
    if not rows:
        return np.zeros(0, np.int64), np.zeros(0, np.int16)
    return np.concatenate([row + start for row, start in zip(rows, starts)]), np.concatenate(values)


def _count_labels(classes: Sequence[str], index: pa.Table) -> list[LabelCount]:
    positive_K, ignored_K = (
        np.bincount(_flat(index[name])[1], minlength=len(classes)) for name in ("positives", "ignored")
    )
    return [
        LabelCount(name, int(positive), int(ignored), int(positive) / max(1, index.num_rows))
        for name, positive, ignored in zip(classes, positive_K, ignored_K, strict=True)
    ]


def _count_pairs(labels: Sequence[LabelCount], positives: pa.ChunkedArray) -> list[LabelPair]:
    """All pairs that occur, sorted by overlap, then by count."""
    rows, classes = _flat(positives)
    order = np.lexsort((classes, rows))
    rows, classes = rows[order], classes[order].astype(np.int64)
    found = [np.empty(0, np.int64)]
    # The pairs of a class with the next one of its image, with the one after that, and so on.
    for apart in range(1, len(rows)):
        same = np.flatnonzero(rows[apart:] == rows[:-apart])
        if not len(same):
            break
        found.append(classes[same] * len(labels) + classes[same + apart])
    numbers, counts = np.unique(np.concatenate(found), return_counts=True)
    pairs = []
    for number, both in zip(numbers.tolist(), counts.tolist(), strict=True):
        one, other = (labels[k] for k in divmod(number, len(labels)))
        pairs.append(LabelPair(one.name, other.name, both, both / (one.positive + other.positive - both)))
    return sorted(pairs, key=lambda pair: (-pair.overlap, -pair.images, pair.first, pair.second))


def _objects(index: pa.Table) -> pa.StructArray:
    return pa.concat_arrays([chunk.flatten() for chunk in index["objects"].chunks])


def _object_sizes(index: pa.Table) -> dict[str, int]:
    area = _objects(index).field("area").to_numpy()
    small, large = int(np.sum(area < SMALL_BELOW)), int(np.sum(area >= LARGE_FROM))
    return {"small": small, "medium": len(area) - small - large, "large": large}


def _object_flags(index: pa.Table) -> dict[str, FlagCount]:
    columns = {flag: _objects(index).field(flag) for flag in _FLAGS}
    return {flag: FlagCount(column.true_count, len(column) - column.null_count) for flag, column in columns.items()}


def _spread(values: np.ndarray) -> Extent | None:
    if not len(values):
        return None
    return Extent(values.min().item(), float(np.median(values)), values.max().item())
