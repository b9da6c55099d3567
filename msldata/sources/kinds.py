"""Where records come from: the kinds of datasets that can be built, and the usual places to look for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msldata.errors import UserError
from msldata.sources import coco, table, voc, wider
from msldata.sources.source import FoundSource, Location, Source, check_name

__all__ = [
    "DEFAULT_SPLITS",
    "KINDS",
    "FoundSource",
    "Source",
    "find_sources",
    "open_source",
    "places_looked_at",
    "select_sources",
]


@dataclass(frozen=True, slots=True)
class SourceKind:
    """How one kind of dataset is opened and found."""

    open: Callable[..., Source]
    """Called with the dataset's place and the split; with ``classes`` too when ``takes_classes``."""
    available_splits: Callable[[Location], tuple[str, ...]]
    """The splits that a place has; none where it is no dataset of this kind."""
    layout: str
    """What a place of this kind holds, for messages."""
    default_splits: tuple[str, ...] = ()
    """Built when no split is named; empty: all that are available."""
    places: tuple[str, ...] = ()
    """Where it is usually put below the folder of all datasets, best first."""
    takes_classes: bool = False


# A new kind of dataset is one line here, and a module of its own.
KINDS: Mapping[str, SourceKind] = {
    "voc2007": SourceKind(
        voc.Voc2007, voc.available_splits, voc.LAYOUT, ("trainval", "test"), ("VOCdevkit/VOC2007", "VOC2007")
    ),
    "voc2012": SourceKind(
        voc.Voc2012, voc.available_splits, voc.LAYOUT, ("trainval",), ("VOCdevkit/VOC2012", "VOC2012")
    ),
    "coco2014": SourceKind(
        coco.Coco2014, coco.available_splits_2014, coco.LAYOUT, ("train", "val"), ("COCO2014", "coco2014", "coco")
    ),
    "coco": SourceKind(coco.Coco, coco.available_splits, coco.LAYOUT, places=("COCO2017", "coco2017")),
    "wider": SourceKind(
        wider.Wider, wider.available_splits, wider.LAYOUT, ("trainval", "test"), ("WIDER", "WIDER_Attribute")
    ),
    "table": SourceKind(table.Table, table.available_splits, table.LAYOUT, takes_classes=True),
}

DEFAULT_SPLITS: Mapping[str, tuple[str, ...]] = {name: kind.default_splits for name, kind in KINDS.items()}
"""The splits that are built when none is named: all there is, once."""


def open_source(
    dataset: str, root: Location, split: str, name: str | None = None, classes: Location | None = None
) -> Source:
    """Open one split of a dataset.

    Args:
        dataset: its kind, a name of ``KINDS``.
        root: the dataset's folder, local or remote; of a table (or of a COCO JSON of one's own) the file.
        split: one that the kind has.
        name: what the shards and the manifest call the dataset; default: its own name.
        classes: a file with one class name a line, for kinds that leave the classes open.

    Raises:
        UserError: unknown dataset or split, or ``classes`` for a dataset that has its own. FileNotFoundError: the
            dataset or a list in it is missing. BadInputError: a list that cannot be understood.
    """
    kind = _kind(dataset)
    if classes is None:
        source = kind.open(root, split)
    elif kind.takes_classes:
        source = kind.open(root, split, classes)
    else:
        takers = ", ".join(other for other, entry in KINDS.items() if entry.takes_classes)
        raise UserError(f"--classes {classes}: {dataset} has its own classes; only these take a list: {takers}")
    if name is not None:
        check_name("name", name)
        source.dataset = name
    return source


def find_sources(root: str | Path) -> list[FoundSource]:
    """Datasets in the usual places below ``root``, at most one of a kind, in the order of ``KINDS``."""
    root, found = Path(root), []
    for dataset, kind in KINDS.items():
        for place in kind.places:
            available = kind.available_splits(root / place)
            splits = tuple(split for split in kind.default_splits or available if split in available)
            if splits:
                found.append(FoundSource(dataset, root / place, splits))
                break
    return found


def places_looked_at(root: str | Path) -> list[str]:
    """The folders that ``find_sources`` tries, as a person would type them."""
    return [str(Path(root, place)) for kind in KINDS.values() for place in kind.places]


def select_sources(
    root: str | Path, dataset: str | None = None, source: Location | None = None, splits: Sequence[str] | None = None
) -> list[FoundSource]:
    """What a build command means: the dataset at ``source``, or what is found in the usual places below ``root``.

    Args:
        root: the folder of all datasets.
        dataset: only this one; needed with ``source``.
        source: the dataset's own place, local or remote.
        splits: default: the kind's, or all that are there.

    Raises:
        UserError: nothing was found, ``source`` without ``dataset``, or an unknown ``dataset``.
    """
    if source is not None:
        if dataset is None:
            raise UserError(f"--source {source}: say also what it is, with --dataset {' or --dataset '.join(KINDS)}")
        kind = _kind(dataset)
        chosen = tuple(splits or kind.default_splits or kind.available_splits(source))
        if not chosen:
            raise UserError(f"{source}: no {dataset} dataset here; it would hold {kind.layout}")
        return [FoundSource(dataset, source, chosen)]
    if dataset is not None and not _kind(dataset).places:
        raise UserError(f"--dataset {dataset}: say also where it is, with --source")
    found = [entry for entry in find_sources(root) if dataset in (None, entry.dataset)]
    if not found:
        places = "\n  ".join(places_looked_at(root))
        raise UserError(
            f"no {dataset or 'dataset'} found; looked at\n  {places}\n"
            "Four ways on:\n"
            "  point at it:  msl build-shards --dataset voc2007 --source FOLDER, or set MSL_DATA to the folder of all\n"
            "  your own:     msl build-shards --dataset table --source labels.csv --name NAME\n"
            "  download it:  msl download voc2007, or msl download coco2014\n"
            "  synthetic:    msl synthesize --out FOLDER, then point at it"
        )
    return [FoundSource(entry.dataset, entry.root, tuple(splits or entry.splits)) for entry in found]


def _kind(dataset: str) -> SourceKind:
    if dataset not in KINDS:
        raise UserError(f"unknown dataset '{dataset}'; known are: {', '.join(KINDS)}")
    return KINDS[dataset]
