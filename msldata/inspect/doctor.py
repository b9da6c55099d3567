"""What is there and what is missing, of raw datasets and of shards, with the next command for each."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from msldata.contract.manifest import MANIFEST_NAME, read_manifest
from msldata.contract.recorded_command import build_command, build_other_split, out_option
from msldata.errors import UserError
from msldata.masks.sources import open_mask_source, usual_place
from msldata.sources.kinds import KINDS, PUBLISHED, FoundSource, find_sources, open_source
from msldata.storage import Location, Storage, open_storage

PUBLISHED_MASKS = 12000
"""Files of NVIDIA's irregular mask test set."""

MASKS_PAGE = "nv-adlr.github.io/publication/partialconv-inpainting"
"""Where NVIDIA publishes its masks; it asks people to download them from this page."""

USUAL_SHARDS = (*(f"{dataset}/{split}" for dataset, split in PUBLISHED), "masks/high", "masks/low")
"""Folders of shards that are looked for; others are somebody's own."""

State = Literal["complete", "partial", "found", "missing", "unfinished", "damaged"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked for."""

    name: str
    """As in "voc2007 test"."""
    where: str
    state: State
    """``complete``: as many as published; ``partial``: fewer; ``found``: nothing is published to compare with."""
    num_samples: int | None = None
    published: int | None = None
    problem: str = ""
    """What is damaged or missing."""
    next_command: str = ""


def examine_raw(root: str | Path, shards: Location | Storage) -> list[Check]:
    """Look for raw datasets and masks in the usual places below ``root``, and count what they hold.

    Annotations are read (half a minute for COCO-2014) and every image is looked for, but none is opened.

    Args:
        root: the folder of all datasets.
        shards: where the next commands build to.
    """
    root, shards = Path(root), open_storage(shards)
    found = {(entry.dataset, split): entry for entry in find_sources(root) for split in entry.splits}
    checks = []
    for dataset, split in [*PUBLISHED, *(name for name in found if name not in PUBLISHED)]:
        entry = found.get((dataset, split))
        if entry is not None:
            checks.append(_examine_source(entry, split, shards))
            continue
        where = str(root / KINDS[dataset].places[0])
        published, command = PUBLISHED[dataset, split], _download_command(root, dataset, split)
        checks.append(Check(f"{dataset} {split}", where, "missing", published=published, next_command=command))
    return [*checks, _examine_masks(root, shards)]


def examine_shards(shards: Location | Storage, raw: list[Check]) -> list[Check]:
    """Look for whatever lies below ``shards``: one's own datasets first, then those of published datasets.

    Args:
        shards: the folder of all shards, local or remote. Only listings and manifests are read.
        raw: from ``examine_raw``: a split that was built completely from a partial source is not called damaged.
    """
    shards = open_storage(shards)
    files = {info.name: info.size for info in shards.list_files()}
    folders = {PurePosixPath(name).parent.as_posix() for name in files if name.endswith((".tar", f"/{MANIFEST_NAME}"))}
    folders |= _empty_splits(shards, folders)
    sources = {check.name: check for check in raw}
    checks = []
    for folder in [*sorted(folders.difference(USUAL_SHARDS)), *USUAL_SHARDS]:
        dataset, _, split = folder.rpartition("/")
        source = sources.get("irregular masks" if dataset == "masks" else f"{dataset} {split}")
        checks.append(_examine_folder(shards, folder, files, source))
    return checks


def _empty_splits(shards: Storage, folders: Set[str]) -> set[str]:
    """Splits that a build of several did not come to: empty folders beside others. Remote stores have none."""
    root = shards.path()
    datasets = {dataset for folder in folders if (dataset := folder.rpartition("/")[0])}
    if root is None:
        return set()
    beside = (path for dataset in datasets for path in (root / dataset).iterdir() if path.is_dir())
    return {path.relative_to(root).as_posix() for path in beside if not any(path.iterdir())}


def _examine_source(entry: FoundSource, split: str, shards: Storage) -> Check:
    name, where = f"{entry.dataset} {split}", str(entry.root)
    published = PUBLISHED.get((entry.dataset, split))
    try:
        source = open_source(entry.dataset, entry.root, split)
        images = [record.image for record in source.records()]
        problem = _missing_images(source.images, images)
    except (UserError, FileNotFoundError) as error:
        return Check(name, where, "damaged", None, published, str(error))
    build = f"msl build-shards --dataset {entry.dataset} --split {split}{out_option(shards)}"
    if problem:
        return Check(name, where, "damaged", len(images), published, problem, f"{build} --on-error skip")
    return Check(name, where, _state(len(images), published), len(images), published, next_command=build)


def _missing_images(folder: Storage, images: list[str]) -> str:
    """Which images are not there; a listing per folder, since asking for each file takes minutes on some disks."""
    root = folder.path()
    assert root is not None  # the usual places are local
    present = set()
    for parent in {PurePosixPath(image).parent for image in images}:
        if (root / parent).is_dir():
            present |= {str(parent / path.name) for path in (root / parent).iterdir()}
    missing = [image for image in images if image not in present]
    return f"{len(missing):,} of {len(images):,} images are missing, the first: {root / missing[0]}" if missing else ""


def _examine_masks(root: Path, shards: Storage) -> Check:
    name, where = "irregular masks", str(root / "irregular_mask")
    place = usual_place(root)
    if place is None:
        command = f"msl build-masks --generate 3000{out_option(shards.child('masks'), '/high')}"
        return Check(
            name, where, "missing", None, PUBLISHED_MASKS, f"or put NVIDIA's test set there, from {MASKS_PAGE}", command
        )
    where = str(place)
    try:
        count = len(open_mask_source(place).names())
    except (UserError, FileNotFoundError) as error:
        return Check(name, where, "damaged", None, PUBLISHED_MASKS, str(error))
    command = f"msl build-masks{out_option(shards.child('masks'), '/high')}"
    return Check(name, where, _state(count, PUBLISHED_MASKS), count, PUBLISHED_MASKS, next_command=command)


def _examine_folder(shards: Storage, folder: str, files: Mapping[str, int], source: Check | None) -> Check:
    dataset, _, split = folder.rpartition("/")
    here = shards.child(folder)
    published = PUBLISHED.get((dataset, split))
    # Masks can be generated; images that are missing must first be fetched.
    buildable = source is not None and (source.state != "missing" or dataset == "masks")
    build = source.next_command if source is not None and buildable else ""
    if f"{folder}/{MANIFEST_NAME}" not in files:
        begun = any(PurePosixPath(name).parent.as_posix() == folder for name in files if name.endswith(".tar"))
        begun = begun or ((path := here.path()) is not None and path.is_dir())
        problem = "a build was not finished; it goes on where it stopped" if begun else ""
        build = build or (_sibling_command(shards, folder, files) if begun else "")
        if source is not None and not build:
            problem = f"first needs {source.name}, above"
        return Check(folder, here.url, "unfinished" if begun else "missing", None, published, problem, build)
    try:
        manifest = read_manifest(here)
    except UserError as error:
        return Check(folder, here.url, "damaged", None, published, str(error), build)
    count = manifest.num_samples
    for info in manifest.shards:
        size = files.get(f"{folder}/{info.name}")
        if size != info.num_bytes or f"{folder}/{info.index_name}" not in files:
            problem = f"{info.name} or its index is missing or not whole"
            command = build_command(here, manifest) or ""
            if not command:  # a guessed one could make another dataset of it
                problem += "; how it was built is not recorded: build its source anew elsewhere"
            return Check(folder, here.url, "damaged", count, published, problem, command)
    command = f"msl verify {shlex.quote(here.url)}"
    if published is None and split == "train":  # a dataset of the user's own
        place = shards.child(dataset).url
        command = f"msl train {shlex.quote(dataset if place == f'shards/{dataset}' else place)}"
    return Check(folder, here.url, _state(count, published), count, published, next_command=command)


def _state(count: int, published: int | None) -> State:
    if published is None:
        return "found"
    return "complete" if count == published else "partial" if count < published else "found"


def _download_command(root: Path, dataset: str, split: str) -> str:
    """The command that puts a published split where it is looked for."""
    place = "" if root == Path("datasets") else f" --to {shlex.quote(str(root))}"
    return f"msl download {dataset} --split {split}{place}"


def _sibling_command(shards: Storage, folder: str, files: Mapping[str, int]) -> str:
    """How another split of its dataset was built, made the command for this one; empty where that is not known."""
    dataset, _, split = folder.rpartition("/")
    here = shards.child(folder)
    for name in sorted(files) if dataset else ():
        other = PurePosixPath(name).parent
        if other.parent.as_posix() != dataset or not name.endswith(f"/{MANIFEST_NAME}"):
            continue
        with suppress(UserError):
            command = build_other_split(here, read_manifest(shards.child(other.as_posix())), split)
            if command is not None:
                return command
    return ""
