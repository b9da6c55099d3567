"""Predictions as one parquet file: what was predicted for each sample, by which weights; every number comes from it.

Shapes: N samples in dataset order, K classes.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from msldata.contract.manifest import read_manifest
from msldata.contract.parquet import read_parquet
from msldata.errors import StorageError, UserError
from msldata.storage import PART_SUFFIX, LocalStorage, Location, clear_local_errors, flush_to_disk, read_local
from msltrain.measures.covered import covered_shares
from msltrain.measures.spreadsheet import BOM, cell, csv_text
from msltrain.typed_values import decode

PREDICTIONS_VERSION = 2
"""Version 2 names the largest objects in lists, a class number each. Version 1 is still read."""
_METADATA = b"msl.predictions"
_LARGEST = ("area", "relative_area", "truncated", "occluded", "crowd", "covered", "separated")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Which weights were run on which data. Times, hosts and rank counts are left out: equal work gives equal files."""

    checkpoint: str = ""
    checkpoint_sha256: str = ""
    dataset: str = ""
    split: str = ""
    dataset_fingerprint: str = ""
    image_size: int = 0
    keep_masks: tuple[str, ...] = ()
    """Folders the keep masks came from; empty: the images were whole."""
    keep_mask_fingerprints: tuple[str, ...] = ()
    hole_fraction: float = 0.0
    """Mean share of hidden pixels over the masks that were used."""
    seed: int = 0
    """Together with each sample's key, decides its keep mask."""
    part: str = ""
    """``held out``: only the samples that training set aside for validation; empty: the whole split."""
    ignored_in_rates: str = "left out"
    """How an ignored pair counts in precision, recall and F1: ``left out`` (VOC), or ``negative`` (WIDER-Attribute). In
    AP it is always left out."""
    resize: str = ""
    """How the stored images were made smaller when the shards were built, such as ``shorter=448``; empty: they were
    not."""
    test_time: str = ""
    """Views whose logits were averaged, such as ``flip``; empty: one plain view."""
    kind: str = ""
    """Kind of the keep masks in a robustness run, such as ``irregular``."""
    hole_range: tuple[float, ...] = ()
    """(low, high] of their hole fractions in a robustness run."""
    recalibrated: str = ""
    """Fingerprint of the images on which BatchNorm's statistics were measured anew; empty: the checkpoint's own."""
    skipped: tuple[str, ...] = ()
    """Samples that were left out because they are damaged: key, place, reason."""
    reading: str = ""
    """Digest of what else decides the answers of the weights: head, mean and standard deviation, the way to the square.
    Empty in older files, as ``image_size`` is 0 in older ones still."""

    @property
    def is_of_plain_views(self) -> bool:
        """Whether each image was seen once, and whole."""
        return not self.keep_masks and not self.test_time

    def is_of_same_model(self, other: Origin) -> bool:
        """Whether both are of the same weights, read in the same way as far as both say how."""
        return (
            self.checkpoint_sha256 == other.checkpoint_sha256
            and (self.image_size == other.image_size or 0 in (self.image_size, other.image_size))
            and (self.reading == other.reading or "" in (self.reading, other.reading))
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class LargestObjects:
    """For each sample and class, the largest object that is not difficult; it decides the size and occlusion stratum.

    Only the M pairs that have one are held, by sample, then by class. A flag is 1 for yes, 0 for no, -1 where the
    source does not say.
    """

    shape: tuple[int, int]
    """(N, K)"""
    row_M: np.ndarray
    """int64, sample number"""
    class_M: np.ndarray
    """int64, class number"""
    area_M: np.ndarray
    """float32, square pixels of the stored image (see ``Origin.resize``)."""
    truncated_M: np.ndarray
    """int8"""
    occluded_M: np.ndarray
    """int8"""
    crowd_M: np.ndarray
    """int8"""
    relative_area_M: np.ndarray | None = None
    """float32, the largest area over that of the stored image, so no resize changes it; None in older files."""
    covered_M: np.ndarray | None = None
    """float32, share of it that other annotated objects cover, see ``msltrain.measures.covered``; -1 for a crowd, and
    where it is unknown; None in older files."""
    separated_M: np.ndarray | None = None
    """int8, whether its segment is in several parts, cut by something in front of it; None without segments."""

    @staticmethod
    def of_arrays(**array_NK: np.ndarray | None) -> LargestObjects:
        """From whole arrays by name (``area_NK`` …), in which 0 is no area and -1 nothing known."""
        arrays = {name.removesuffix("_NK"): array for name, array in array_NK.items() if array is not None}
        is_there_NK = np.any([array != _nothing(name) for name, array in arrays.items()], axis=0)
        row_M, class_M = np.nonzero(is_there_NK)
        columns: dict[str, Any] = {f"{name}_M": array[row_M, class_M] for name, array in arrays.items()}
        return LargestObjects(shape=is_there_NK.shape, row_M=row_M, class_M=class_M, **columns)

    def dense(self, name: str) -> np.ndarray | None:
        """One of the columns as an array (N, K): 0 where there is no area, -1 where nothing is known."""
        if (column_M := getattr(self, f"{name}_M")) is None:
            return None
        array_NK = np.full(self.shape, _nothing(name), column_M.dtype)
        array_NK[self.row_M, self.class_M] = column_M
        return array_NK

    def of_classes(self, column_K: np.ndarray) -> LargestObjects:
        """The columns of the classes numbered ``column_K``, in that order."""
        place_K = np.full(self.shape[1], -1, np.int64)
        place_K[column_K] = np.arange(len(column_K))
        kept = np.flatnonzero(place_K[self.class_M] >= 0)
        kept = kept[np.lexsort((place_K[self.class_M[kept]], self.row_M[kept]))]
        columns: dict[str, Any] = {
            name: array[kept] for name, array in vars(self).items() if name != "shape" and array is not None
        }
        return LargestObjects(
            shape=(self.shape[0], len(column_K)), **{**columns, "class_M": place_K[columns["class_M"]]}
        )


def _nothing(name: str) -> int:
    return 0 if name.endswith("area") else -1


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Logits beside the true labels.

    Raises:
        UserError: arrays, keys and classes do not fit together.

    Example:
        predictions, _ = msltrain.evaluate("runs/msl", "shards/voc2007/test")
        print(predictions.keys[0], dict(zip(predictions.classes, predictions.score_NK[0])))
    """

    keys: tuple[str, ...]
    logit_NK: np.ndarray
    """float32, before the sigmoid."""
    target_NK: np.ndarray
    """uint8, 1 positive, 0 negative."""
    ignore_NK: np.ndarray
    """bool, True where the pair is left out: of AP, and of the rates as `Origin.ignored_in_rates` says."""
    classes: tuple[str, ...]
    objects: LargestObjects | None = None
    """None where the dataset has no object annotations."""
    visible_NK: np.ndarray | None = None
    """float32, the visible share of the box of the class's least hidden object behind the keep mask; -1 where there is
    no object. None where the images were whole."""
    origin: Origin = field(default_factory=Origin)

    def __post_init__(self) -> None:
        shape = (len(self.keys), len(self.classes))
        for name, dtype in (("logit_NK", np.float32), ("target_NK", np.uint8), ("ignore_NK", np.bool_)):
            array = getattr(self, name)
            if not isinstance(array, np.ndarray):
                raise UserError(f"{name}: a {type(array).__name__}, expected an array, {np.dtype(dtype)} {shape}")
            if array.shape != shape or array.dtype != dtype:
                raise UserError(f"{name}: {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}")
        if not all(isinstance(key, str) for key in self.keys):
            raise UserError("the keys are not texts")
        if not all(isinstance(name, str) for name in self.classes) or len(set(self.classes)) != len(self.classes):
            raise UserError("the classes are not distinct names")
        if self.target_NK.max(initial=0) > 1:
            raise UserError(f"target_NK: {self.target_NK.max()}, expected 0 or 1")

    @property
    def score_NK(self) -> np.ndarray:
        """Sigmoid of the logits, float64, for display; ranking uses the logits."""
        return 1 / (1 + np.exp(-self.logit_NK.astype(np.float64)))


def write_predictions(predictions: Predictions, file: str | Path) -> None:
    """Write one row per sample, atomically; equal predictions give equal bytes.

    The lists of a row are in the order of the classes, which the file's metadata names:
    ``json.loads(pyarrow.parquet.read_schema(file).metadata[b"msl.predictions"])["classes"]``.

    Columns: ``key`` and, as lists of K values, ``logit``, ``target`` and ``ignore``, and ``visible`` behind keep masks.
    Where objects are known, lists with an entry for each class that has one: ``largest_class``, its number, and
    ``largest_area``, ``largest_relative_area``, ``largest_truncated``, ``largest_occluded``, ``largest_crowd``,
    ``largest_covered`` and, from segments, ``largest_separated``. Classes and origin are JSON in the file's metadata
    under ``msl.predictions``.

    Raises:
        StorageError: the place cannot be written.
    """
    origin = asdict(predictions.origin)
    if not predictions.origin.skipped:
        del origin["skipped"]  # a file with every sample stays the same as before skipping existed
    content = {"version": PREDICTIONS_VERSION, "classes": list(predictions.classes), "origin": origin}
    metadata = {_METADATA: json.dumps(content, ensure_ascii=False).encode()}
    step = max(1, _ROWS_TOGETHER // max(1, len(predictions.classes)))
    file = Path(file)
    with clear_local_errors(str(file)):
        file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_name(f".{file.name}.{os.getpid()}{PART_SUFFIX}")
    try:
        with clear_local_errors(str(file)):
            schema = _rows(predictions, 0, 0).schema.with_metadata(metadata)
            options: dict[str, Any] = {"use_dictionary": _REPEATED, "column_encoding": {_LOGIT: "BYTE_STREAM_SPLIT"}}
            with pq.ParquetWriter(staged, schema, compression="zstd", **options) as writer:
                for start in range(0, max(1, len(predictions.keys)), step):
                    rows = _rows(predictions, start, min(start + step, len(predictions.keys)))
                    writer.write_table(rows.replace_schema_metadata(metadata))
            flush_to_disk(staged)
        LocalStorage(file.parent).put(file.name, staged)
    finally:
        staged.unlink(missing_ok=True)


_ROWS_TOGETHER = 1 << 20
"""About how many logits are written at a time."""
_LOGIT = "logit.list.element"
_REPEATED = [f"{name}.list.element" for name in ("target", *(f"largest_{name}" for name in ("class", *_LARGEST)))]
"""Columns of few different values."""


def _rows(predictions: Predictions, start: int, stop: int) -> pa.Table:
    """Some rows of the file."""
    arrays = {"logit": predictions.logit_NK, "target": predictions.target_NK, "ignore": predictions.ignore_NK}
    columns: dict[str, pa.Array] = {"key": pa.array(predictions.keys[start:stop], pa.string())}
    columns |= {name: _to_lists(array_NK[start:stop]) for name, array_NK in arrays.items()}
    if (objects := predictions.objects) is not None:
        first, last = np.searchsorted(objects.row_M, (start, stop))
        ends = np.searchsorted(objects.row_M[first:last], np.arange(start, stop + 1)).astype(np.int32)
        named = {
            "class": objects.class_M.astype(np.int16),
            **{name: getattr(objects, f"{name}_M") for name in _LARGEST},
        }
        columns |= {
            f"largest_{name}": pa.ListArray.from_arrays(ends, column_M[first:last])
            for name, column_M in named.items()
            if column_M is not None
        }
    if predictions.visible_NK is not None:
        columns["visible"] = _to_lists(predictions.visible_NK[start:stop])
    return pa.table(columns)


def is_table(out: str | Path) -> bool:
    """Whether predictions become CSV there instead of parquet. Raises UserError for any other suffix."""
    suffix = Path(out).suffix.lower()
    if suffix not in (".parquet", ".csv"):
        raise UserError(f"{out}: predictions are written as .parquet, or .csv for a spreadsheet; name the file so")
    return suffix == ".csv"


def check_place(file: str | Path) -> None:
    """Raise StorageError, before any work is done, where predictions could not be written."""
    file = Path(file)
    probe = file.with_name(f".{file.name}.{os.getpid()}{PART_SUFFIX}")
    try:
        with clear_local_errors(str(file.parent)):
            file.parent.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
    except StorageError as error:
        raise StorageError(f"{error}; predictions cannot be written there: give another place with --out") from None


def write_predictions_table(predictions: Predictions, file: str | Path, *, decimal_comma: bool = False) -> None:
    """Write the same as CSV for a spreadsheet: ``key``, then ``logit CLASS``, ``target CLASS`` and ``ignore CLASS``.

    No origin and no objects: what measures predictions again reads the parquet file. ``decimal_comma``: as German,
    French and other spreadsheets read it.

    Raises:
        StorageError: the place cannot be written.
    """
    arrays = (predictions.logit_NK, predictions.target_NK, predictions.ignore_NK.astype(np.uint8))
    names = [f"{kind} {name}" for kind in ("logit", "target", "ignore") for name in predictions.classes]

    def written(value: float) -> object:
        return str(value).replace(".", ",") if decimal_comma else value

    rows = (
        [cell(key), *(written(value) for of_kind in values for value in of_kind)]
        for key, *values in zip(predictions.keys, *(array_NK.tolist() for array_NK in arrays))
    )
    file = Path(file)
    text = csv_text(itertools.chain([["key", *map(cell, names)]], rows), decimal_comma=decimal_comma)
    text = BOM * decimal_comma + text
    LocalStorage(file.parent).put(file.name, text.encode())


def read_predictions(file: str | Path) -> Predictions:
    """Read what ``write_predictions`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is not a predictions file, or one of another version.
    """
    if Path(file).is_dir():
        raise UserError(f"{file}: a folder, not a predictions file; those of a run are RUN/predictions/*.parquet")
    data = read_local(file)
    hint = "write one with `msl evaluate --checkpoint RUN --data SHARDS --out FILE.parquet`"
    if not data.startswith(b"PAR1"):
        what = "a table of text, which is for reading" if _is_text(data) else "not a parquet file"
        raise UserError(f"{file}: not a predictions file, but {what}; {hint}")
    try:
        table = read_parquet(data)
        content: dict[str, Any] = json.loads(table.schema.metadata[_METADATA])
        version = content["version"]
    except (KeyError, TypeError):
        why = "it holds no truth to measure against, nor does anything that `msl predict` writes"
        raise UserError(f"{file}: not a predictions file: {why}; {hint}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not a predictions file ({error}); {hint}") from None
    if version not in (1, PREDICTIONS_VERSION):
        raise UserError(
            f"{file}: predictions of version {version}, this program reads 1 to {PREDICTIONS_VERSION}; {hint}"
        )
    try:
        return _predictions(table, content)
    except (KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        raise UserError(f"{file}: a damaged predictions file ({error}); {hint}") from None


def _is_text(data: bytes) -> bool:
    return b"\0" not in data[:4096]


def _predictions(table: pa.Table, content: dict[str, Any]) -> Predictions:
    classes = content["classes"]
    if not isinstance(classes, list):
        raise ValueError("its classes are not a list of names")
    origin: Origin = decode(content["origin"], Origin, "origin")
    if not 0 <= origin.hole_fraction <= 1:
        raise ValueError(f"a hole fraction of {origin.hole_fraction}")
    if table["key"].type != pa.string() or table["key"].null_count:
        raise ValueError("its keys are not texts")
    names = [name for name in _LARGEST if f"largest_{name}" in table.column_names]
    shape, objects = (len(table), len(classes)), None
    if "largest_class" in table.column_names:
        lists = {name: table[f"largest_{name}"].combine_chunks() for name in ("class", *names)}
        lengths = lists["class"].value_lengths()
        columns: dict[str, Any] = {f"{name}_M": lists[name].flatten().to_numpy() for name in lists}
        if columns["class_M"].dtype.kind not in "iu" or any(one.value_lengths() != lengths for one in lists.values()):
            raise ValueError("its lists of objects do not fit together")
        row_M = np.repeat(np.arange(len(table)), lengths.to_numpy())
        columns["class_M"] = columns["class_M"].astype(np.int64)
        objects = LargestObjects(shape=shape, row_M=row_M, **columns)
    elif names:
        objects = LargestObjects.of_arrays(**{f"{name}_NK": _to_array(table[f"largest_{name}"]) for name in names})
    if objects is not None:
        _check_objects(objects)
    visible_NK = _to_array(table["visible"]) if "visible" in table.column_names else None
    if visible_NK is not None and (visible_NK.shape != shape or not _within(visible_NK, -1, 1)):
        raise ValueError("its visible shares are not one of each class, from 0 to 1")
    logit_NK = _to_array(table["logit"])
    if np.isnan(logit_NK).any():
        raise ValueError("some of its logits are no numbers")
    return Predictions(
        keys=tuple(table["key"].to_pylist()),
        logit_NK=logit_NK,
        target_NK=_to_array(table["target"]),
        ignore_NK=_to_array(table["ignore"]),
        classes=tuple(classes),
        objects=objects,
        visible_NK=visible_NK,
        origin=origin,
    )


_FLAG = (-1, 1)
_POSSIBLE = {"area": (0, np.inf), "relative_area": (0, np.inf)}
"""Least and largest value of what is said about an object; of flags and of the covered share -1, for unknown, to 1."""


def _check_objects(objects: LargestObjects) -> None:
    """Raise ValueError for a class that there is not or that is named twice, and for values that cannot be."""
    num_classes = objects.shape[1]
    pair_M = objects.row_M * num_classes + objects.class_M
    if not _within(objects.class_M, 0, num_classes - 1) or not (np.diff(pair_M) > 0).all():
        raise ValueError("its lists of objects do not name each class once, in order")
    for name in _LARGEST:
        column_M = getattr(objects, f"{name}_M")
        if column_M is not None and not (
            np.isfinite(column_M).all() and _within(column_M, *_POSSIBLE.get(name, _FLAG))
        ):
            raise ValueError(f"a largest_{name} that cannot be")


def _within(values: np.ndarray, low: float, high: float) -> bool:
    return bool(((values >= low) & (values <= high)).all())


def largest_objects(
    array: pa.ListArray, num_classes: int, image_area_N: np.ndarray, occlusion: pa.ListArray | None = None
) -> LargestObjects | None:
    """Reduce the ``objects`` column of a sample index (N lists of structs) to the largest object per class.

    Difficult objects are passed over, as they never make a class positive. None when there is no object at all.

    Args:
        array: a list of ``msldata.contract.format.OBJECT_TYPE`` per sample.
        num_classes: K.
        image_area_N: of the stored images, square pixels.
        occlusion: a list of ``msldata.contract.format.OCCLUSION_TYPE`` per sample, of the same objects; None: the index
            has no such column, and boxes decide what is covered.
    """
    flat = array.flatten()
    if len(flat) == 0:
        return None
    row_M = np.repeat(np.arange(len(array)), array.value_lengths().to_numpy())
    area_M = flat.field("area").to_numpy()
    # Ascending by area, so that the largest of a pair comes last.
    order = np.argsort(area_M, kind="stable")
    order = order[~flat.field("difficult").to_numpy(zero_copy_only=False)[order]]
    # The last of each pair, in the order of the pairs.
    pair = row_M[order] * num_classes + flat.field("class_index").to_numpy()[order]
    _, last = np.unique(pair[::-1], return_index=True)
    chosen = order[len(order) - 1 - last]

    def flag_M(column: pa.Array) -> np.ndarray:
        return column.cast(pa.int8()).fill_null(-1).to_numpy()[chosen]

    area_M = area_M[chosen].astype(np.float32)
    columns: dict[str, np.ndarray] = {
        f"{name}_M": flag_M(flat.field(name)) for name in ("truncated", "occluded", "crowd")
    }
    if occlusion is None:
        is_crowd = flat.field("crowd").to_numpy(zero_copy_only=False)
        columns["covered_M"] = np.where(is_crowd, np.float32(-1), covered_shares(array))[chosen].astype(np.float32)
    else:
        told = occlusion.flatten()
        columns["covered_M"] = told.field("covered").fill_null(-1).to_numpy()[chosen]
        columns["separated_M"] = flag_M(told.field("separated"))
    return LargestObjects(
        shape=(len(array), num_classes),
        row_M=row_M[chosen],
        class_M=flat.field("class_index").to_numpy()[chosen].astype(np.int64),
        area_M=area_M,
        relative_area_M=(area_M / image_area_N[row_M[chosen]]).astype(np.float32),
        **columns,
    )


def keep_mask_fingerprints(locations: Sequence[Location]) -> tuple[str, ...]:
    """Fingerprints of the keep-mask folders. Raises FormatError where one is not a finished dataset."""
    return tuple(read_manifest(location).fingerprint for location in locations)


def _to_lists(array_NK: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(array_NK).reshape(-1)), array_NK.shape[1])


def _to_array(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
