"""COCO of any year, and datasets in its layout: one JSON of annotations per split, read through pycocotools."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from msldata.contract.records import LabelSpace, ObjectRecord, Record
from msldata.errors import BadInputError, UserError
from msldata.sources.source import (
    Likeness,
    Location,
    check_name,
    has_folder,
    is_inside,
    key_of,
    local_file,
    refuse_missing_bucket,
    split_location,
    unknown_split,
)
from msldata.storage import Storage, open_storage

LAYOUT = "annotations/instances_SPLIT.json and the images of each split in SPLIT/"
WHOLE = "all"
"""What the split of a single JSON file is called unless another name is asked for."""
_SPLITS_2014 = ("train", "val")
_FOLDERS_2014 = ("COCO2014", "coco2014", "coco")
_CATEGORY_BYTES = 4 << 20
_HINT = "mend the annotations, or fetch them again, and check them"


class Coco:
    """One split of a dataset in COCO's layout, read as the paper reads COCO-2014.

    A class's index is the rank of its category id. An image without any annotation is left out and counted; a crowd
    annotation counts as presence.

    Args:
        root: the folder that holds ``annotations/instances_<folder>.json`` and the images' ``<folder>/``; or one
            ``.json`` file of one's own, which names its images by their paths from its folder. Local or remote.
        split: what the split is called.
        folder: default: ``split``.

    Raises:
        UserError: no such split. FileNotFoundError: annotations or images are missing. BadInputError: the JSON is not
            a COCO instances file.
    """

    dataset = "coco"
    title = "COCO layout"
    licence = (
        "Stated by whoever made the annotations, and per photograph in them; COCO's own annotations are Creative "
        "Commons Attribution 4.0."
    )

    def __init__(self, root: Location, split: str, folder: str | None = None):
        check_name("split", split)
        self.split = split
        self.counts: dict[str, int] = {}
        self.images: Storage
        if _is_file(root):
            self.images, name = split_location(root)
            self._folder = ""
        else:
            self.images = open_storage(root)
            self._folder = folder or split
            name = annotation_file(self._folder)
        self._where = self.images.where(name)
        there = self.images.exists(name)
        if not there or not has_folder(self.images, self._folder):
            refuse_missing_bucket(self.images, name)
            if _is_file(root):
                hint = "give a COCO instances JSON, or the folder that holds annotations and images"
                raise FileNotFoundError(f"{self._where}: no such file; {hint}")
            if folder is None and not there and self.images.path() is not None and (known := available_splits(root)):
                raise unknown_split(str(root), split, known)
            missing = self.images.where(self._folder) if there else self._where
            raise FileNotFoundError(f"{missing}: missing; {self.title} {split} needs it, is the download complete?")
        try:
            with local_file(self.images, name) as path:
                self._coco, digest = _load(path)
        except BadInputError as error:  # it may have named the copy of a remote file
            raise BadInputError(self._where, error.reason, error.hint) from None
        self.provenance: dict[str, Any] = {"source": self.title, "files": {name: digest}}
        with _clear_errors(self._where):
            categories = [self._coco.cats[number] for number in sorted(self._coco.getCatIds())]
            self.labels = LabelSpace(tuple(category["name"] for category in categories))
            self._class_index = {category["id"]: index for index, category in enumerate(categories)}

    def records(self) -> Iterator[Record]:
        """The split's annotated images in ascending order of their ids."""
        dropped = 0
        with _clear_errors(self._where):
            for image_id in sorted(self._coco.imgs):
                annotations = self._coco.imgToAnns.get(image_id, ())
                if not annotations:
                    dropped += 1
                    continue
                yield self._record(image_id, annotations)
        self.counts["dropped_without_annotations"] = dropped

    def _record(self, image_id: int, annotations: list[dict[str, Any]]) -> Record:
        file_name = self._coco.imgs[image_id]["file_name"]
        # It becomes part of a path: nothing in the JSON may point outside the dataset.
        if not is_inside(file_name):
            raise ValueError(f"image {image_id}: {file_name!r} is not a path below the images' folder")
        file_name = PurePosixPath(file_name).as_posix()
        objects = tuple(self._object(item) for item in sorted(annotations, key=lambda item: item["id"]))
        return Record(
            key=key_of(file_name),
            image=f"{self._folder}/{file_name}" if self._folder else file_name,
            positives=tuple(sorted({item.class_index for item in objects})),
            objects=objects,
            image_id=str(image_id),
        )

    def _object(self, annotation: dict[str, Any]) -> ObjectRecord:
        left, top, width, height = map(float, annotation["bbox"])
        return ObjectRecord(
            class_index=self._class_index[annotation["category_id"]],
            box=(left, top, width, height),
            # COCO's own files always have both; those of other tools often not.
            area=float(annotation.get("area", width * height)),
            crowd=bool(annotation.get("iscrowd", False)),
        )


class Coco2014(Coco):
    """COCO-2014: 82,081 annotated images to train on, 40,137 to test with.

    Args:
        root: the folder that holds ``annotations/``, ``train2014/`` and ``val2014/``, or one above it that calls it
            COCO2014, coco2014 or coco.
        split: ``train`` or ``val``.
    """

    dataset = "coco2014"
    title = "COCO-2014"
    licence = (
        "Annotations: Creative Commons Attribution 4.0 (COCO Consortium). Photographs: each under the flickr licence "
        "that the annotations name for it, mostly Creative Commons."
    )

    def __init__(self, root: Location, split: str):
        if split not in _SPLITS_2014:
            raise unknown_split(self.dataset, split, _SPLITS_2014)
        super().__init__(_find_root_2014(root), split, f"{split}2014")


def available_splits(root: Location) -> tuple[str, ...]:
    """Splits of any name whose annotations and image folder lie in ``root``, sorted; ``all`` of a single file.

    Raises:
        UserError: a web address, which cannot be listed.
    """
    if _is_file(root):
        return (WHOLE,)
    place = open_storage(root)
    if not place.can_list:
        raise UserError(f"{place.url}: a web address cannot be listed; say which splits it has, with --split")
    files = [PurePosixPath(info.name) for info in place.child("annotations").list_files()]
    names = [path.stem.removeprefix("instances_") for path in files if path.match("instances_*.json")]
    return tuple(sorted(name for name in names if has_folder(place, name)))


def available_splits_2014(root: Location) -> tuple[str, ...]:
    """Splits of COCO-2014 whose annotations lie in ``root``."""
    place = open_storage(root)
    return tuple(split for split in _SPLITS_2014 if place.exists(annotation_file(f"{split}2014")))


def recognise(root: Location) -> Likeness | None:
    """COCO's layout at ``root``, or one JSON of annotations in it."""
    if not _is_file(root):
        splits = available_splits(root) if open_storage(root).can_list else ()
        return Likeness.of(2, "COCO layout", splits, _num_classes(root, annotation_file(splits[0]))) if splits else None
    place, name = split_location(root)
    num_classes = _num_classes(str(root).rpartition("/")[0] or ".", name) if place.path() is not None else None
    return Likeness.of(3 if num_classes else 1, "one COCO file", (WHOLE,), num_classes)


def recognise_2014(root: Location) -> Likeness | None:
    """COCO-2014 at ``root``, or one folder below it."""
    if _is_file(root):
        return None
    for candidate in _places_2014(root):
        if splits := available_splits_2014(candidate):
            return Likeness.of(3, "COCO-2014", splits, _num_classes(candidate, annotation_file(f"{splits[0]}2014")))
    return None


def _num_classes(root: Location, name: str) -> int | None:
    """How many categories an annotation file lists, without reading the rest; None when that cannot be seen."""
    path = open_storage(root).path(name)
    if path is None or not path.is_file() or not path.stat().st_size:
        return None
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(b'"images"') < 0 or data.find(b'"annotations"') < 0:
            return None
        # Most files end with them, and some begin with them.
        for start in (data.rfind(b'"categories"'), data.find(b'"categories"')):
            opening = data.find(b"[", start) if start >= 0 else -1
            text = data[opening : opening + _CATEGORY_BYTES].decode("utf-8", "ignore") if opening >= 0 else ""
            with contextlib.suppress(ValueError):
                found, _ = json.JSONDecoder().raw_decode(text)
                return len(found)
    return None


def annotation_file(folder: str) -> str:
    """Where the annotations of the images in ``folder`` are."""
    return f"annotations/instances_{folder}.json"


def _is_file(root: Location) -> bool:
    return PurePosixPath(str(root)).suffix.lower() == ".json"


def _places_2014(root: Location) -> list[Location]:
    below = [root / name if isinstance(root, Path) else f"{root.rstrip('/')}/{name}" for name in _FOLDERS_2014]
    return [root, *below]


def _find_root_2014(root: Location) -> Location:
    for candidate in _places_2014(root):
        if available_splits_2014(candidate):
            return candidate
    refuse_missing_bucket(open_storage(root), annotation_file("train2014"))
    raise FileNotFoundError(
        f"{root}: no COCO-2014 here (no annotations/instances_train2014.json or instances_val2014.json); "
        "give the folder that holds annotations, train2014 and val2014"
    )


def _load(path: Path) -> tuple[Any, str]:
    """The indexed annotations and the file's SHA-256.

    The segments are most of the file and never needed: each is dropped as soon as it is parsed, which holds the peak
    memory of the whole training set to a fraction of ``COCO(path)``'s.
    """
    from pycocotools.coco import COCO

    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with _clear_errors(str(path)), contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports by printing
        coco = COCO()
        coco.dataset = json.loads(path.read_text(encoding="utf-8"), object_hook=_without_segment)
        if not isinstance(coco.dataset, dict):
            raise ValueError("no object with images, annotations and categories")
        for part in ("images", "annotations", "categories"):
            if not isinstance(coco.dataset[part], list):
                raise ValueError(f"'{part}' is not a list")
        coco.createIndex()
        # pycocotools keeps the last of two with one id, and annotations of nothing: neither may vanish unseen.
        for part, by_id in (("images", coco.imgs), ("annotations", coco.anns), ("categories", coco.cats)):
            if len(by_id) != len(coco.dataset[part]):
                raise ValueError(f"two of the '{part}' have one id")
        if strays := coco.imgToAnns.keys() - coco.imgs.keys():
            raise ValueError(f"annotations of image {min(strays)}, which is not among the images")
    return coco, digest


def _without_segment(item: dict[str, Any]) -> dict[str, Any]:
    item.pop("segmentation", None)
    return item


@contextlib.contextmanager
def _clear_errors(where: str) -> Iterator[None]:
    """A JSON that parses but is not COCO's fails somewhere inside: say which file and what was missed."""
    try:
        yield
    except BadInputError:
        raise
    except KeyError as error:
        raise BadInputError(where, f"not a COCO instances file (no entry {error})", _HINT) from None
    except (ValueError, TypeError) as error:  # includes JSON and UTF-8 errors
        raise BadInputError(where, f"not a COCO instances file ({error})", _HINT) from None
