"""Where records come from: the kinds of datasets that can be built, and the usual places to look for them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from msldata.contract.listing import IMAGE_SUFFIXES
from msldata.errors import UserError, counted, did_you_mean, nothing_at
from msldata.sources import class_folders, coco, cvat, datumaro_formats, voc, wider, yolo
from msldata.sources.source import (
    NO_OPTIONS,
    FoundSource,
    Likeness,
    Location,
    Source,
    SourceOptions,
    check_name,
    split_location,
)
from msldata.sources.tables import table
from msldata.sources.tables.rows import SPREADSHEETS, a_spreadsheet
from msldata.storage import open_storage

__all__ = [
    "DEFAULT_SPLITS",
    "KINDS",
    "PUBLISHED",
    "FoundSource",
    "Source",
    "find_sources",
    "open_source",
    "places_looked_at",
    "recognise",
    "select_sources",
]


@dataclass(frozen=True, slots=True)
class SourceKind:
    """How one kind of dataset is opened and found."""

    open: Callable[..., Source]
    """Called with the dataset's place and the split; with the options too where it takes some."""
    available_splits: Callable[..., tuple[str, ...]]
    """The splits that a place has; none if it is not a dataset of this kind. Called like ``open``."""
    recognise: Callable[[Location], Likeness | None]
    """What the kind sees in a place that nobody described; None if it is not a dataset of this kind."""
    layout: str
    """What a place of this kind holds, for messages."""
    default_splits: tuple[str, ...] = ()
    """Built when no split is named; empty: all that are available."""
    places: tuple[str, ...] = ()
    """Where it is usually put below the folder of all datasets, best first."""
    takes: tuple[str, ...] = ()
    """The fields of ``SourceOptions`` that it uses."""

    def splits(self, place: Location, options: SourceOptions = NO_OPTIONS) -> tuple[str, ...]:
        """The splits that a place has."""
        return self.available_splits(place, options) if self.takes else self.available_splits(place)


# Photographs without labels are kept in any case.
_TABLE_OPTIONS = ("classes", "image_column", "labels_columns", "labels_are", "separator", "keep_unlabelled", "group")

# A new kind of dataset is one line here, and a module of its own.
KINDS: Mapping[str, SourceKind] = {
    "voc2007": SourceKind(
        voc.Voc2007,
        partial(voc.available_splits, title="VOC2007"),
        partial(voc.recognise, title="VOC2007"),
        voc.LAYOUT,
        ("trainval", "test"),
        ("VOCdevkit/VOC2007", "VOC2007"),
        takes=("keep_unlabelled",),
    ),
    "voc2012": SourceKind(
        voc.Voc2012,
        partial(voc.available_splits, title="VOC2012"),
        partial(voc.recognise, title="VOC2012"),
        voc.LAYOUT,
        ("trainval",),
        ("VOCdevkit/VOC2012", "VOC2012"),
        takes=("keep_unlabelled",),
    ),
    "coco2014": SourceKind(
        coco.Coco2014,
        coco.available_splits_2014,
        coco.recognise_2014,
        coco.LAYOUT,
        ("train", "val"),
        ("COCO2014", "coco2014", "coco"),
        takes=("keep_unlabelled", "segments"),
    ),
    "voc": SourceKind(
        voc.Voc, voc.available_splits, voc.recognise_own, voc.LAYOUT, takes=("classes", "keep_unlabelled")
    ),
    "coco": SourceKind(
        coco.Coco,
        coco.available_splits,
        coco.recognise,
        coco.LAYOUT,
        places=("COCO2017", "coco2017"),
        takes=("classes", "images", "keep_unlabelled", "segments"),
    ),
    "yolo": SourceKind(yolo.Yolo, yolo.available_splits, yolo.recognise, yolo.LAYOUT, takes=("keep_unlabelled",)),
    "cvat": SourceKind(
        cvat.Cvat, cvat.available_splits, cvat.recognise, cvat.LAYOUT, takes=("classes", "keep_unlabelled")
    ),
    "wider": SourceKind(
        wider.Wider,
        wider.available_splits,
        wider.recognise,
        wider.LAYOUT,
        ("trainval", "test"),
        ("WIDER", "WIDER_Attribute"),
    ),
    "table": SourceKind(table.Table, table.available_splits, table.recognise, table.LAYOUT, takes=_TABLE_OPTIONS),
    "folders": SourceKind(
        class_folders.ClassFolders,
        class_folders.available_splits,
        class_folders.recognise,
        class_folders.LAYOUT,
        takes=("classes",),
    ),
    "datumaro": SourceKind(
        datumaro_formats.Datumaro,
        datumaro_formats.available_splits,
        datumaro_formats.recognise,
        datumaro_formats.LAYOUT,
        takes=("format",),
    ),
}

PUBLISHED: Mapping[tuple[str, str], int] = {
    ("voc2007", "trainval"): 5011,
    ("voc2007", "test"): 4952,
    ("coco2014", "train"): 82081,
    ("coco2014", "val"): 40137,
}
"""Images per split as the paper counts them: for COCO-2014 only those with annotations."""

DEFAULT_SPLITS: Mapping[str, tuple[str, ...]] = {name: kind.default_splits for name, kind in KINDS.items()}
"""The splits that are built when none is named: everything, once."""


def open_source(
    dataset: str,
    root: Location,
    split: str,
    name: str | None = None,
    classes: Location | None = None,
    options: SourceOptions = NO_OPTIONS,
) -> Source:
    """Open one split of a dataset.

    Args:
        dataset: its kind, a name of ``KINDS``.
        root: the dataset's folder, local or remote; for a table (or your own COCO JSON) the file.
        split: one that the kind has.
        name: what the shards and the manifest call the dataset; default: its own name.
        classes: a file with one class name per line, for kinds that leave the classes open.
        options: whatever else the user says about the dataset.

    Raises:
        UserError: unknown dataset or split, or an option that the kind does not take. FileNotFoundError: the
            dataset or a list in it is missing. BadInputError: a list that cannot be understood.
    """
    kind = _kind(dataset)
    options = replace(options, classes=classes or options.classes)
    _check_options(dataset, options, root)
    source = kind.open(root, split, options) if kind.takes else kind.open(root, split)
    if name is not None:
        check_name("name", name)
        source.dataset = name
    return source


def find_sources(root: str | Path) -> list[FoundSource]:
    """Datasets in the usual places below ``root``, at most one of a kind, in the order of ``KINDS``."""
    root, found = Path(root), []
    for dataset, kind in KINDS.items():
        for place in kind.places:
            available = kind.splits(root / place)
            splits = tuple(split for split in kind.default_splits or available if split in available)
            if splits:
                found.append(FoundSource(dataset, root / place, splits))
                break
    return found


def places_looked_at(root: str | Path) -> list[str]:
    """The folders that ``find_sources`` tries, as a person would type them."""
    return [str(Path(root, place)) for kind in KINDS.values() for place in kind.places]


def select_sources(
    root: str | Path,
    dataset: str | None = None,
    source: Location | None = None,
    splits: Sequence[str] | None = None,
    options: SourceOptions = NO_OPTIONS,
) -> list[FoundSource]:
    """The datasets that a build command means: the one at ``source``, or those in the usual places below ``root``.

    Args:
        root: the folder of all datasets.
        dataset: only this one; default: whatever ``source`` is taken for.
        source: the dataset's own location, local or remote.
        splits: default: the kind's, or all that are there.
        options: what the user says about the dataset.

    Raises:
        UserError: nothing was found, ``source`` is not a dataset or could be two kinds, or an unknown ``dataset``.
    """
    if source is not None:
        taken_for = ""
        if dataset is None:
            dataset, taken_for = recognise(source)
        kind = _kind(dataset)
        _check_options(dataset, options, source)
        chosen = tuple(splits or _default_splits(kind, source, options))
        if not chosen:
            raise UserError(f"{source}: no {dataset} dataset here; it would hold {kind.layout}")
        return [FoundSource(dataset, source, chosen, taken_for)]
    if dataset is not None and not _kind(dataset).places:
        raise UserError(f"--dataset {dataset}: say also where it is, with --source")
    found = [entry for entry in find_sources(root) if dataset in (None, entry.dataset)]
    if not found:
        places = "\n  ".join(places_looked_at(root))
        raise UserError(
            f"no {dataset or 'dataset'} found; looked at\n  {places}\n"
            "Four ways on:\n"
            "  point at it:  msl build-shards FOLDER, or set MSL_DATA to the folder of all\n"
            "  your own:     msl build-shards labels.csv --name NAME\n"
            "  download it:  msl download voc2007, or msl download coco2014\n"
            "  synthetic:    msl synthesize --out FOLDER, then point at it"
        )
    return [FoundSource(entry.dataset, entry.root, tuple(splits or entry.splits)) for entry in found]


def _default_splits(kind: SourceKind, source: Location, options: SourceOptions) -> tuple[str, ...]:
    """The kind's splits that are there, or else whatever is there; all of the kind's if nothing can be listed."""
    if kind.default_splits and split_location(source)[0].path() is None:
        return kind.default_splits
    available = kind.splits(source, options)
    return tuple(split for split in kind.default_splits if split in available) or available or kind.default_splits


def recognise(source: Location) -> tuple[str, str]:
    """The kind of the dataset at ``source``, a name of ``KINDS``, and a sentence that says why.

    The sentence names the runner-up where the kind is not sure.

    Raises:
        UserError: no kind knows it, or two kinds are equally sure. FileNotFoundError: there is nothing.
    """
    path = split_location(source)[0].path(split_location(source)[1])
    if path is not None and not path.exists():
        raise nothing_at(source)
    if path is not None and path.is_file():  # any file that is named is taken for a table
        _refuse_spreadsheets(source)
    seen: list[tuple[str, Likeness]] = []
    for name, kind in KINDS.items():
        # Datumaro, the last, is slow to load, and what our own readers know is theirs.
        if (name != "datumaro" or not seen) and (likeness := kind.recognise(source)) is not None:
            seen.append((name, likeness))
    if not seen:
        _refuse_spreadsheets(source)
        if unlabelled := _only_photographs(source):
            raise UserError(unlabelled)
        if len(tables := _tables(_names(source))) == 1:
            table_at = open_storage(source).where(tables[0])
            raise UserError(
                f"{source}: none of its files has a table's usual name, such as labels.csv; if {tables[0]} says what "
                f"the photographs show, run: msl build-shards {shlex.quote(table_at)} --name NAME"
            )
        known = "\n".join(f"  {name:9} {kind.layout}" for name, kind in KINDS.items())
        raise UserError(
            f"{source}: not taken for any kind of dataset{_hint(source)}; known are\n{known}\n"
            "or name one with --dataset"
        )
    seen.sort(key=lambda entry: -entry[1].certainty)
    (name, best), *others = seen
    if others and others[0][1].certainty == best.certainty:
        choices = "\n".join(
            f"  --dataset {kind:9} {like.sees}" for kind, like in seen if like.certainty == best.certainty
        )
        raise UserError(f"{source}: could be several kinds of dataset; say which\n{choices}")
    doubt = f"; or {others[0][1].sees}: --dataset {others[0][0]}" if others and best.certainty < 3 else ""
    return name, f"{source}: {best.sees}{doubt}"


def _refuse_spreadsheets(source: Location) -> None:
    """Raise UserError for a spreadsheet, named or in a folder: with the way to read it."""
    folder, name = split_location(source)
    names = [] if (path := folder.path(name)) is not None and path.is_file() else _names(source)
    folder, names = (open_storage(source), names) if names else (folder, [name])
    spreadsheets = [name for name in names if PurePosixPath(name).suffix.lower() in SPREADSHEETS]
    if spreadsheets and not _tables(names):
        raise a_spreadsheet(folder.where(spreadsheets[0]))


def _hint(source: Location) -> str:
    """A hint at something there that may be meant."""
    names = _names(source)
    if any(name.endswith(".tar") for name in names):
        return f" (it holds tars: msl index {shlex.quote(str(source))})"
    tables = _tables(names)
    return f" (if one of its tables is meant, name it: {', '.join(tables[:6])})" if tables else ""


def _names(source: Location) -> list[str]:
    """The files right in a folder; none where it cannot be listed."""
    place = open_storage(source)
    return [info.name for info in place.list_files() if "/" not in info.name] if place.can_list else []


def _tables(names: list[str]) -> list[str]:
    """Those that end like tables."""
    return sorted(name for name in names if PurePosixPath(name).suffix.lower() in table.SUFFIXES)


def _only_photographs(source: Location) -> str:
    """What to do with a folder of photographs in which nothing says what they show; empty where it is another case."""
    place = open_storage(source)
    names = [info.name for info in place.list_sources()] if place.can_list else []
    photographs = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    if not photographs or _hint(source):
        return ""
    example = quoted_cell(photographs[0])
    they_show = "it shows" if len(photographs) == 1 else "they show"
    return (
        f"{source}: {counted(len(photographs), 'photograph')}, but nothing that says what {they_show}: write a table "
        f"{place.where('labels.csv')} with a line for each, such as\n"
        f"  image,labels\n  {example},cat;chair\n"
        "or put the photographs of each class into a folder of its name"
    )


def quoted_cell(text: str) -> str:
    """A cell of a CSV table."""
    return '"{}"'.format(text.replace('"', '""')) if any(mark in text for mark in ',"\n') else text


def _check_options(dataset: str, options: SourceOptions, source: Location | None = None) -> None:
    """Raise UserError for an option that the kind would ignore."""
    for name in options.given():
        if name not in KINDS[dataset].takes:
            takers = ", ".join(other for other, kind in KINDS.items() if name in kind.takes)
            option = f"--{name.replace('_', '-').removesuffix('s') if name == 'labels_columns' else name}"
            option = option.replace("_", "-")
            if name == "images" and dataset == "table":
                beside = f"{str(options.images).rstrip('/')}/"
                raise UserError(
                    f"--images {options.images}: a table finds its photographs itself, by paths from its own folder "
                    "and in all folders below that; put it beside or above them, and leave --images out, as with "
                    f"cp {shlex.quote(str(source or 'labels.csv'))} {shlex.quote(beside)}"
                )
            if name == "classes":
                raise UserError(
                    f"--classes {options.classes}: {dataset} has its own classes; only these take a list: {takers}"
                )
            raise UserError(f"{option} says nothing to {dataset}; only these take it: {takers}")


def _kind(dataset: str) -> SourceKind:
    if dataset not in KINDS:
        raise UserError(f"unknown dataset '{dataset}'; known are: {', '.join(KINDS)}{did_you_mean(dataset, KINDS)}")
    return KINDS[dataset]
