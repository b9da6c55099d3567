"""Samples that a program makes one after the other, on disk until all are known: a source like any other then."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from msldata.contract.records import LabelSpace, Record
from msldata.errors import BadInputError, StorageError, UserError, counted, did_you_mean
from msldata.sources.source import fail
from msldata.storage import LocalStorage, Storage, clear_local_errors
from msldata.storage.lock import own_folder

_RECORDS = "records.jsonl"
_PREFIX = ".msl-samples-"


class _Folder(LocalStorage):
    """A folder that will be gone, so that messages do not name it."""

    def where(self, name: str) -> str:
        return f"samples/{name}"


class Spooled:
    """A split whose images lie in a temporary folder; see `Source`."""

    licence = "Not stated; the photographs' owner states it."

    def __init__(self, folder: Path, dataset: str, split: str, labels: LabelSpace):
        self.dataset, self.split, self.labels = dataset, split, labels
        self.images: Storage = _Folder(folder)
        self._file = folder / _RECORDS
        self.provenance: dict[str, Any] = {"source": "samples of a program"}
        self.counts: dict[str, int] = {}
        self.reject: Callable[[BadInputError], None] = fail

    def records(self) -> Iterator[Record]:
        """The samples, in the order in which they came."""
        with open(self._file, encoding="utf-8") as lines:
            for line in lines:
                key, image, positives, ignored = json.loads(line)
                yield Record(key=key, image=image, positives=tuple(positives), ignored=tuple(ignored))


@contextmanager
def spooled(
    samples: Iterable[tuple[str, Any, Any]], classes: Sequence[str], dataset: str, split: str, beside: Path | None
) -> Iterator[Spooled]:
    """Write all samples into a folder that is gone after the block; one at a time is in memory.

    Args:
        samples: key, image, labels; see `msldata.write_shards`.
        classes: names, in target order.
        dataset, split: their names.
        beside: where that folder is made; None: where temporary files are.

    Raises:
        UserError: a sample is none, with its key. StorageError: the disk is full.
    """
    labels = LabelSpace(tuple(classes))
    if beside is not None:
        with clear_local_errors(str(beside)):
            beside.mkdir(parents=True, exist_ok=True)
        _remove_left(beside)
    with (
        tempfile.TemporaryDirectory(prefix=_PREFIX, dir=beside) as name,
        own_folder(LocalStorage(Path(name)), "program"),
    ):
        folder = Path(name)
        number = -1
        with open(folder / _RECORDS, "w", encoding="utf-8") as lines:
            for number, sample in enumerate(samples):
                key, image, given = _three(sample, number)
                data = _encoded(image, key)
                # Of other bytes it is another sample: a build that goes on must not keep what was written of the first.
                file = f"{key.replace('/', '_')}.{hashlib.sha256(data).hexdigest()[:16]}"
                with clear_local_errors(str(folder)):
                    (folder / file).write_bytes(data)
                    lines.write(json.dumps([key, file, *_indices(given, labels, key)], ensure_ascii=False) + "\n")
        if number < 0:
            raise UserError(f"{dataset} {split}: no samples were given; a generator gives its samples once")
        yield Spooled(folder, dataset, split, labels)


def _remove_left(beside: Path) -> None:
    """Remove what programs that were killed have left: folders that nobody owns any more."""
    for left in beside.glob(f"{_PREFIX}*"):
        with suppress(UserError, StorageError, OSError), own_folder(LocalStorage(left), "program"):
            shutil.rmtree(left)


def _three(sample: Any, number: int) -> tuple[str, Any, Any]:
    try:
        key, image, labels = sample
    except (TypeError, ValueError):
        raise UserError(f"sample {number}: is no (key, image, labels)") from None
    if not isinstance(key, str):
        raise UserError(f"sample {number}: its key is a {type(key).__name__}; it must be text")
    return key, image, labels


def _encoded(image: Any, key: str) -> bytes:
    """The bytes of an image file: those that were given, or pixels without loss."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if not isinstance(image, Image.Image):
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
            raise UserError(
                f"sample '{key}': its image is a {type(image).__name__} of {pixels.dtype} {pixels.shape}; give the "
                "bytes of a file, a PIL image, or uint8 (H, W, 3) or (H, W)"
            )
        image = Image.fromarray(pixels)
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1)
    return data.getvalue()


def _indices(given: Any, labels: LabelSpace, key: str) -> tuple[list[int], list[int]]:
    """Positive and ignored classes, ascending, of names or of a number for each class."""
    given = [given] if isinstance(given, str) else given
    if isinstance(given, Mapping) or not hasattr(given, "__iter__"):
        raise UserError(f"sample '{key}': its labels are a {type(given).__name__}; give names, or 0 and 1 by class")
    values = list(given)
    if all(isinstance(value, str) for value in values):
        for name in values:
            if name not in labels:
                raise UserError(f"sample '{key}': no class '{name}'{did_you_mean(name, labels.classes)}")
        return sorted({labels.index(name) for name in values}), []
    hot_K = np.asarray(values)
    if hot_K.shape != (len(labels),) or not np.isin(hot_K, (-1, 0, 1)).all():
        raise UserError(
            f"sample '{key}': its labels are {values[:8]}{' …' * (len(values) > 8)}; give names, or for each of "
            f"{counted(len(labels), 'class')} 1, 0, or -1 where it is to be ignored"
        )
    return np.flatnonzero(hot_K == 1).tolist(), np.flatnonzero(hot_K == -1).tolist()
