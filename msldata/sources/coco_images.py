"""Where the images of a COCO file lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from msldata.errors import UserError, counted
from msldata.sources.source import is_inside
from msldata.sources.spelling import as_stored
from msldata.sources.tables.image_paths import find_images
from msldata.sources.tables.label_studio import plain_path
from msldata.storage import Storage

_NUM_TRIED = 8


@dataclass(frozen=True, slots=True)
class CocoImages:
    """The folder that the names of the images are relative to, or where each of them is."""

    folder: str = ""
    paths: Mapping[str, str] = field(default_factory=dict)
    """By the names that the file has for those that lie elsewhere; empty where the folder says it."""
    note: str = ""

    def path(self, place: Storage, file_name: str) -> tuple[str, str]:
        """The path of an image as it is stored, and its name below the folder."""
        if file_name in self.paths:
            return self.paths[file_name], file_name
        above = f"{self.folder}/" if self.folder else ""
        path = as_stored(place, f"{above}{PurePosixPath(file_name).as_posix()}")
        return path, path[len(above) :]


def find_coco_images(
    place: Storage, name: str, part: str, listed: Sequence[str], needed_by: str, *, own: bool
) -> CocoImages:
    """The first of the usual folders that holds all tested images, or the one that holds most; where none holds any,
    the images are looked for below the file's folder by the ends of their paths, as those of tables are.

    Args:
        place: the dataset's folder.
        name: the file there.
        part: what the annotations call the split's folder.
        listed: the images' names in the file.
        needed_by: dataset and split, in words.
        own: the file is somebody's own, and was not downloaded.

    Raises:
        FileNotFoundError: they are nowhere. UserError: two files may be one of them.
    """
    beside = PurePosixPath(name).parent.as_posix().removeprefix(".")
    usual = [
        part,
        f"images/{part}",
        beside,
        f"{beside}/data" if beside else "data",
        f"{part}/images",
        "images",
        "data",
        "",
    ]
    is_local = place.path() is not None
    names = [name for name in (plain_path(name.replace("\\", "/")) for name in listed) if is_inside(name)]
    tried = names[:: max(1, len(names) // _NUM_TRIED)][:_NUM_TRIED] if is_local else names[:1]
    best, most = "", 0
    for folder in dict.fromkeys(usual):
        found = sum(place.exists(as_stored(place, f"{folder}/{entry}" if folder else entry)) for entry in tried)
        if found > most:
            best, most = folder, found
        if most == len(tried):
            return CocoImages(best)
    if most:
        return CocoImages(best)
    if is_local and own and names and (elsewhere := _below(place, name, names)) is not None:
        return elsewhere
    for folder in (part, f"images/{part}"):
        if is_local and place.path(folder).is_dir():  # type: ignore[union-attr]
            return CocoImages(folder)  # the images are missing, not their folder: each is named when it is read
    if not is_local:
        return CocoImages(beside if beside != "annotations" else part)
    looked = ", ".join(place.where(folder) if folder else place.url for folder in dict.fromkeys(usual))
    where = place.where(name)
    if own:
        raise FileNotFoundError(
            f"{where}: of {counted(len(names), 'image')} that it names, such as {next(iter(names), 'none')}, none is "
            f"in {looked} or below; say where they are with --images FOLDER"
        )
    raise FileNotFoundError(
        f"{place.where(part)}: missing; {needed_by} needs it, is the download complete? Of the images that {where} "
        f"names none is in {looked}; say where they are with --images FOLDER"
    )


def _below(place: Storage, name: str, names: Sequence[str]) -> CocoImages | None:
    """Where files of these names are found below the file's folder; None where none is."""
    unique = list(dict.fromkeys(PurePosixPath(one).as_posix() for one in names))
    try:
        found = find_images(place, unique)
    except ValueError as error:
        raise UserError(f"{place.where(name)}: {error}, or say where the images are with --images FOLDER") from None
    elsewhere = [path for path, one in zip(found.paths, unique, strict=True) if path != one and place.exists(path)]
    if not elsewhere:
        return None
    note = (
        f"{counted(len(elsewhere), 'image')} not where {name} says, but found by name below its folder, such as "
        f"{elsewhere[0]}"
    )
    return CocoImages("", dict(zip(unique, found.paths, strict=True)), note)
