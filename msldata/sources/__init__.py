"""Where records come from: the datasets that can be built, and the usual places to look for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from msldata.errors import UserError
from msldata.format import check_key
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


def open_source(dataset: str, root: str | Path, split: str, name: str | None = None) -> Source:
    """Open one split of a dataset.

    Args:
        dataset: ``voc2007`` or ``coco2014``.
        root: the dataset's folder.
        split: ``trainval``, ``train``, ``val`` or ``test`` of VOC2007; ``train`` or ``val`` of COCO-2014.
        name: what the shards and the manifest call the dataset; default: its own name.

    Raises:
        UserError: unknown dataset or split. FileNotFoundError: the folder or a list in it is missing.
    """
    from msldata.sources.coco2014 import Coco2014
    from msldata.sources.voc2007 import Voc2007

    openers: Mapping[str, Callable[[Path, str], Source]] = {"voc2007": Voc2007, "coco2014": Coco2014}
    if dataset not in openers:
        raise UserError(f"unknown dataset '{dataset}'; known are: {', '.join(openers)}")
    source = openers[dataset](Path(root).expanduser(), split)
    if name is not None:
        check_key(name)  # it becomes part of file names
        source.dataset = name
    return source


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


def select_sources(
    root: Path, dataset: str | None = None, source: Path | None = None, splits: Sequence[str] | None = None
) -> list[FoundSource]:
    """What a build command means: the dataset at ``source``, or what is found in the usual places below ``root``.

    Args:
        root: the folder of all datasets.
        dataset: only this one; needed with ``source``.
        source: the dataset's own folder.
        splits: default: those of ``DEFAULT_SPLITS`` that are there.

    Raises:
        UserError: nothing was found, or ``source`` without ``dataset``.
    """
    if source is not None:
        if dataset is None:
            raise UserError(
                f"--source {source}: say also what it is, with --dataset {' or --dataset '.join(DEFAULT_SPLITS)}"
            )
        return [FoundSource(dataset, source, tuple(splits or DEFAULT_SPLITS[dataset]))]
    found = [entry for entry in find_sources(root) if dataset in (None, entry.dataset)]
    if not found:
        places = "\n  ".join(places_looked_at(root))
        raise UserError(
            f"no {dataset or 'dataset'} found; looked at\n  {places}\n"
            "Three ways on:\n"
            "  point at it:  msl build-shards --dataset voc2007 --source FOLDER, or set MSL_DATA to the folder of all\n"
            "  download it:  host.robots.ox.ac.uk/pascal/VOC/voc2007 or cocodataset.org, unpacked into a place above\n"
            "  synthetic:    msl synthesize --out FOLDER, then point at it"
        )
    return [FoundSource(entry.dataset, entry.root, tuple(splits or entry.splits)) for entry in found]
