"""Where the images of a table lie: at the paths it names, or where files of those names are found near it."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from msldata.contract.listing import IMAGE_SUFFIXES
from msldata.errors import counted
from msldata.sources.places import FolderOrAddresses, address_path, is_address
from msldata.sources.spelling import as_stored_below, composed, several_alike
from msldata.sources.tables.label_studio import plain_path
from msldata.storage import REMOTE_SCHEMES, LocalStorage, Storage

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_DRIVE = re.compile(r"[A-Za-z]:/")
_UPLOAD_HASH = re.compile(r"[0-9a-f]{8}-(?=.)")
_NOT_UPLOADED = re.compile(r"[^-\w.]")
_LOOKED_AT = 32
"""How many images are looked for one by one before the folder is searched."""


@dataclass(frozen=True, slots=True)
class ImagePaths:
    """Where every image of a table is."""

    images: Storage
    paths: list[str]
    """In the requested order, relative to ``images``, or addresses."""
    names: list[str]
    """What the images are called: as the table says or, for absolute paths, from their common folder on."""
    searched: Mapping[str, str]
    """Those that were not where the table says: where they were found instead."""
    notes: tuple[str, ...] = ()
    """What was found by another name than the table has."""


def checked_path(image: object) -> str:
    """The path in its plainest form. Raises ValueError when it is not one, or could leave the table's folder."""
    if not isinstance(image, str) or not image:
        raise ValueError(f"image is {image!r}, not a path")
    image = plain_path(image)
    if is_address(image):
        address_path(image)
        return image
    image = image.replace("\\", "/")  # written on Windows, whose absolute paths are those of another machine
    image = _DRIVE.sub("/", image, count=1) if _DRIVE.match(image) else image
    if _SCHEME.match(image):
        raise ValueError(
            f"image is {image!r}; give a path with / that starts from the table's folder, or the address of a file at "
            + ", ".join(f"{scheme}://" for scheme in REMOTE_SCHEMES)
        )
    path = PurePosixPath(image)
    if ".." in path.parts or not path.name:
        raise ValueError(f"image is {image!r}; '..' is refused, put the table beside or above the images")
    return path.as_posix()


def find_images(folder: Storage, images: Sequence[str]) -> ImagePaths:
    """Find the images that a table names.

    A path is used unchanged when there is a file. Otherwise the file below the table's folder is used whose path ends
    in the same way, with whatever extension it has; for absolute paths from another machine, the part that all of them
    share is removed. Where there is none, the only file counts whose path differs in the case of letters alone, or
    that Label Studio would have stored under that name: with eight digits in front and without spaces.

    Args:
        folder: the table's.
        images: paths from ``checked_path``.

    Raises:
        ValueError: two files fit a path, one file fits two, or an absolute path at a remote place.
    """
    root = folder.path()
    local = [image for image in images if not is_address(image)]
    absolute = any(image.startswith("/") for image in local)
    if root is None:
        if absolute:
            image = next(image for image in local if image.startswith("/"))
            raise ValueError(f"image is {image!r}; a remote table names its images from its own folder, or by address")
        return ImagePaths(folder, list(images), list(images), {})
    images = [image if is_address(image) else as_stored_below(root, image) for image in images]
    local = [image for image in images if not is_address(image)]
    storage: Storage = FolderOrAddresses(folder) if len(local) < len(images) else folder
    if not absolute and all((root / image).is_file() for image in local[:_LOOKED_AT]):
        return ImagePaths(storage, list(images), list(images), {})
    finder = _Finder(root)
    found = [image if is_address(image) else finder.find(image) for image in images]
    found = [finder.usual_place + path if path in finder.missing else path for path in found]
    images = [_like(path, image) for image, path in zip(images, found, strict=True)]
    _refuse_two_as_one(images, found)
    names = [
        path if image.endswith(path) and not path.startswith("/") else image
        for image, path in zip(images, found, strict=True)
    ]
    if any(path.startswith("/") for path in found):
        # From their common folder on, so that neither keys nor shards hold a path of this machine.
        places = [
            path if path.startswith("/") else str(root.absolute() / path) for path in found if not is_address(path)
        ]
        common = os.path.commonpath([os.path.dirname(path) for path in places])  # noqa: PTH120
        storage = LocalStorage(Path(common))
        storage = FolderOrAddresses(storage) if len(local) < len(images) else storage
        moved = iter([os.path.relpath(path, common) for path in places])
        found = [path if is_address(path) else next(moved) for path in found]
        names = list(found)
    return ImagePaths(storage, found, names, finder.searched, finder.notes())


def _is_spelt(path: str, folder: str, name: str) -> bool:
    """Whether a path ends in a folder and in a name, with or without extension, letter for letter."""
    above, _, file = f"/{path}".rpartition("/")
    return above.endswith(folder) and name in (file, os.path.splitext(file)[0])  # noqa: PTH122


def _as_uploaded(name: str) -> str:
    """A file's name as Label Studio, like any Django, stores an upload of it, but for the digits in front."""
    return _NOT_UPLOADED.sub("", composed(name).strip().replace(" ", "_")).casefold()


def _ends_alike(path: str, folder: str) -> bool:
    """Whether a path's folder ends in another one, in whatever case."""
    above = composed(f"/{path}".rpartition("/")[0]).casefold()
    return not folder or above.endswith(composed(f"/{folder}").casefold())


def _like(path: str, image: str) -> str:
    """What a table calls an image, with accents in the form in which the file's name has them."""
    end = "/".join(path.split("/")[-1 - image.count("/") :])
    return end if not image.isascii() and composed(end) == composed(image) else image


def _refuse_two_as_one(images: Sequence[str], found: Sequence[str]) -> None:
    """Raise ValueError where different names lead to one file, as those may that Label Studio gives to uploads."""
    first: dict[str, str] = {}
    for image, path in zip(images, found, strict=True):
        other = first.setdefault(path, image)
        if other != image and PurePosixPath(other).stem != PurePosixPath(image).stem and not is_address(image):
            raise ValueError(
                f"'{other}' and '{image}' may be two photographs, and only {path} is here for both; name the files of "
                "uploads as the table does, or take one of them off"
            )


class _Finder:
    """Files below a folder, by the end of their path."""

    def __init__(self, root: Path):
        self.root = root
        self.searched: dict[str, str] = {}
        self.missing: set[str] = set()
        """What was found nowhere."""
        self._folders: Counter[str] = Counter()
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._foreign_prefix: str | None = None
        self._paths: list[str] = []
        self._found_by_case: dict[str, str] = {}
        self._found_by_upload: dict[str, str] = {}
        for place, folders, files in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in files:
                stem, suffix = os.path.splitext(name)  # noqa: PTH122
                if suffix.lower() in IMAGE_SUFFIXES:
                    path = Path(place, name).relative_to(root).as_posix()
                    self._by_name[composed(name)].append(path)
                    self._by_name[composed(stem)].append(path)
                    self._paths.append(path)

    @cached_property
    def _by_case(self) -> Mapping[str, list[str]]:
        return self._called(lambda name: composed(name).casefold())

    @cached_property
    def _by_upload(self) -> Mapping[str, list[str]]:
        return self._called(_as_uploaded)

    def _called(self, key: Callable[[str], str]) -> Mapping[str, list[str]]:
        """The files by what a function makes of their names; most tables need none of these."""
        found: dict[str, list[str]] = defaultdict(list)
        for path in self._paths:
            found[key(path.rpartition("/")[2])].append(path)
        return found

    def notes(self) -> tuple[str, ...]:
        """How many images were found by another name than the table has, with one of each kind."""
        kinds = [
            (self._found_by_case, "whose names differ from the table's in upper and lower case alone"),
            (self._found_by_upload, "by what uploads of Label Studio are called (8 digits, then _ for spaces)"),
        ]
        return tuple(
            f"{counted(len(found), 'photograph')} found {how}, such as {next(iter(found.values()))} for "
            f"{next(iter(found))}"
            for found, how in kinds
            if found
        )

    def find(self, image: str) -> str:
        if image.startswith("/"):
            inside = self._inside(image)
            if inside is not None:
                image = inside
            elif os.path.isfile(image):  # noqa: PTH113
                return image
            else:
                return self._find_foreign(image)
        if (self.root / image).is_file():
            return image
        own, _, rest = image.partition("/")
        if composed(own) == composed(self.root.absolute().name) and rest:
            rest = as_stored_below(self.root, rest)
            if (self.root / rest).is_file():
                self.searched[image] = rest
                return rest  # counted from the folder above the table's
        below = self._below(image)
        if below.endswith(image):
            self._folders[below.removesuffix(image)] += 1
        elif not below:
            self.missing.add(image)
        return below or image

    @property
    def usual_place(self) -> str:
        """The folder, with a slash, in which most of the others were found: where one that is missing would be."""
        return self._folders.most_common(1)[0][0] if self._folders else ""

    def _inside(self, image: str) -> str | None:
        try:
            return PurePosixPath(image).relative_to(self.root.absolute().as_posix()).as_posix()
        except ValueError:
            return None

    def _find_foreign(self, image: str) -> str:
        """A path from another machine: the beginning that all paths share is cut off, once for the table."""
        parts = image.strip("/").split("/")
        if self._foreign_prefix is None:
            for start in range(len(parts)):
                if found := self._below("/".join(parts[start:]), exact=True):
                    self._foreign_prefix = "/" + "".join(f"{part}/" for part in parts[:start])
                    return found
            return image
        if not image.startswith(self._foreign_prefix):
            return image
        return self._below(image.removeprefix(self._foreign_prefix), exact=True) or image

    def _below(self, tail: str, exact: bool = False) -> str:
        folder, _, name = tail.rpartition("/")
        fitting: list[str] = []
        for candidate in (name, _UPLOAD_HASH.sub("", name)):
            places = self._by_name.get(composed(candidate), [])
            end = f"/{folder}" if folder else ""
            fitting = [path for path in places if composed(f"/{path}".rpartition("/")[0]).endswith(composed(end))]
            fitting = [path for path in fitting if _is_spelt(path, end, candidate)] or fitting
            if fitting:
                break
        if not fitting:  # which a note says
            return next(iter(self._of_nearly_that_name(tail)), "")
        if exact and tail in fitting:
            return tail
        if len(fitting) > 1 and len(set(map(composed, fitting))) < len(fitting):
            raise several_alike(tail, [str(self.root / path) for path in fitting])
        if len(fitting) > 1:
            raise ValueError(
                f"image '{tail}' may be {self.root / fitting[0]} or {self.root / fitting[1]}; name it with its folder"
            )
        self.searched[tail] = fitting[0]
        return fitting[0]

    def _of_nearly_that_name(self, tail: str) -> list[str]:
        """The only file of that name in another case, or that an upload of that name was made of; else none.

        Raises:
            ValueError: an upload was made of one of several files.
        """
        folder, _, name = tail.rpartition("/")
        in_case = [path for path in self._by_case.get(composed(name).casefold(), []) if _ends_alike(path, folder)]
        if len(in_case) == 1:
            self._found_by_case[tail] = in_case[0]
            return in_case
        uploaded = _UPLOAD_HASH.sub("", name)
        if in_case or uploaded == name:
            return []
        files = self._by_upload.get(_as_uploaded(uploaded), [])
        if len(files) > 1:
            raise ValueError(
                f"image '{name}' is an upload of Label Studio, whose name says neither folder nor spaces, and may be "
                f"{self.root / files[0]} or {self.root / files[1]}; write into the table which it is"
            )
        if files:
            self._found_by_upload[tail] = files[0]
        return files
