"""Where records come from: the datasets that can be built, and the usual places to look for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from msldata.errors import UserError
from msldata.labels import LabelSpace
from msldata.records import Record
from msldata.storage import Storage

DEFAULT_SPLITS: Mapping[str, tuple[str, ...]] = {"voc2007": ("trainval", "test"), "coco2014": ("train", "val")}
"""The splits that are built when none is named: all there is, once."""

_PLACES: Mapping[str, tuple[str, ...]] = {
    "voc2007": ("VOCdevkit/VOC2007", "VOC2007"),
    "coco2014": ("COCO2014", "coco2014", "coco"),
}


class Source(Protocol):
    """One split of a labelled dataset."""

    dataset: str
    split: str
    labels: LabelSpace
    images: Storage
    """The folder that ``Record.image`` is relative to."""
    licence: str
    provenance: dict[str, Any]
    """Names relative to the dataset and SHA-256 of what the records were read from; nothing of this machine."""
    counts: dict[str, int]
    """What was left out, by reason; complete once ``records`` is exhausted."""

    def records(self) -> Iterator[Record]:
        """All images of the split, always in the same order. Raises BadInputError for a file it cannot understand."""
        ...


@dataclass(frozen=True, slots=True)
class FoundSource:
    """A dataset that was found on disk, and which of its ``DEFAULT_SPLITS`` are there."""

    dataset: str
    root: Path
    splits: tuple[str, ...]


def open_source(dataset: str, root: str | Path, split: str) -> Source:
    """Open one split of a dataset.

    Args:
        dataset: ``voc2007`` or ``coco2014``.
        root: the dataset's folder.
        split: ``trainval``, ``train``, ``val`` or ``test`` of VOC2007; ``train`` or ``val`` of COCO-2014.

    Raises:
        UserError: unknown dataset or split. FileNotFoundError: the folder or a list in it is missing.
    """
    from msldata.sources.coco2014 import Coco2014
    from msldata.sources.voc2007 import Voc2007

    openers: Mapping[str, Callable[[Path, str], Source]] = {"voc2007": Voc2007, "coco2014": Coco2014}
    if dataset not in openers:
        raise UserError(f"unknown dataset '{dataset}'; known are: {', '.join(openers)}")
    return openers[dataset](Path(root).expanduser(), split)


def find_sources(root: Path) -> list[FoundSource]:
    """Datasets in the usual places below ``root``, at most one of a kind, in the order of ``DEFAULT_SPLITS``."""
    from msldata.sources import coco2014, voc2007

    finders = {"voc2007": voc2007.available_splits, "coco2014": coco2014.available_splits}
    found = []
    for dataset, places in _PLACES.items():
        for place in places:
            available = finders[dataset](root / place)
            splits = tuple(split for split in DEFAULT_SPLITS[dataset] if split in available)
            if splits:
                found.append(FoundSource(dataset, root / place, splits))
                break
    return found


def places_looked_at(root: Path) -> list[str]:
    """The folders that ``find_sources`` tries, as a person would type them."""
    return [str(root / place) for places in _PLACES.values() for place in places]


def unknown_split(dataset: str, split: str, known: tuple[str, ...]) -> UserError:
    """The error for a split that ``dataset`` does not have."""
    return UserError(f"{dataset} has no split '{split}'; known are: {', '.join(known)}")
