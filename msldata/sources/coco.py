"""COCO of any year, and datasets in its layout: one JSON of annotations per split, read through pycocotools."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import mmap
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from msldata.contract.records import LabelSpace, ObjectRecord, Record, quoted, read_class_list
from msldata.errors import BadInputError, UserError
from msldata.sources.coco_images import CocoImages, find_coco_images
from msldata.sources.segments import compact_segment, occlusion_of
from msldata.sources.source import (
    NO_OPTIONS,
    WHOLE_SPLIT,
    Likeness,
    Location,
    SourceOptions,
    check_name,
    fail,
    has_folder,
    is_inside,
    key_of,
    local_file,
    refuse_missing_bucket,
    split_location,
    unannotated_said,
    unknown_split,
)
from msldata.sources.tables.label_studio import plain_path
from msldata.storage import FileInfo, Storage, open_storage, regular

LAYOUT = "annotations/instances_SPLIT.json and the images of each split in SPLIT/"
_SPLITS_2014 = ("train", "val")
_FOLDERS_2014 = ("COCO2014", "coco2014", "coco")
_CATEGORY_BYTES = 4 << 20
_FIFTYONE = "labels.json"
_BESIDE = ("_annotations.coco.json", _FIFTYONE)
"""Annotations beside a split's images: Roboflow's, FiftyOne's."""
_COCOS_OWN = re.compile(r"//(www\.)?(cocodataset|mscoco)\.org\b")
"""The address that COCO's own files name."""
_NO_CROWD = (None, 0, False, "", "0")
"""As programs write it that store numbers as text, too."""
_HINT = "mend the annotations, or fetch them again, and check them"


class Coco:
    """One split of a dataset in COCO's layout, read as the paper reads COCO-2014.

    A class's index is the rank of its category id, or its position in ``classes``. An image without any annotation is
    kept, as a negative of every class; in COCO's own files, which the paper reads without them, it is left out and
    counted. A crowd annotation counts as presence, and so does one without a box.

    Args:
        root: the folder that holds the annotations and the images, as COCO, CVAT, FiftyOne, Roboflow or Ultralytics
            arrange them; or your own ``.json`` file. Local or remote.
        split: what the split is called.
        options: ``classes``, ``images`` (default: looked for), ``keep_unlabelled`` and ``segments``.
        folder: what the annotations call the split's folder; default: ``split``.

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

    def __init__(
        self,
        root: Location,
        split: str,
        options: SourceOptions = NO_OPTIONS,
        folder: str | None = None,
    ):
        check_name("split", split)
        self.split = split
        self.reject: Callable[[BadInputError], None] = fail
        self._segments = options.segments
        self.counts: dict[str, int] = {}
        self.notes: tuple[str, ...] = ()
        """What deserves a look, of all splits."""
        part = folder or split
        if _is_file(root):
            place, name = _place_of_file(root)
            part = PurePosixPath(name).stem.removeprefix("instances_")
        else:
            place = open_storage(root)
            name = find_annotations(place, part)
            self.notes = _left_out(place, options) if folder is None else ()
        self._where = place.where(name)
        there = place.exists(name)
        if not there:
            refuse_missing_bucket(place, name)
            if _is_file(root):
                hint = "give a COCO instances JSON, or the folder that holds annotations and images"
                raise FileNotFoundError(f"{self._where}: no such file; {hint}")
            if folder is None and place.path() is not None and (known := available_splits(root, options)):
                raise unknown_split(str(root), split, known)
            raise FileNotFoundError(f"{self._where}: missing; {self.title} {split} needs it, is the download complete?")
        try:
            with local_file(place, name) as path:
                self._coco, digest = _load(path, with_segments=self._segments)
        except BadInputError as error:  # it may have named the copy of a remote file
            raise BadInputError(self._where, error.reason, error.hint) from None
        self.images: Storage = place if options.images is None else open_storage(options.images)
        with _clear_errors(self._where):
            file_names = [str(entry.get("file_name")) for entry in self._coco.dataset["images"]]
            info = self._coco.dataset.get("info")
        own_address = info.get("url") if isinstance(info, dict) else None
        is_published = folder is not None or bool(_COCOS_OWN.search(str(own_address)))
        self._found = CocoImages()
        if options.images is None:
            needed_by = f"{self.title} {split}"
            self._found = find_coco_images(place, name, part, file_names, needed_by, own=not is_published)
        self.notes += (self._found.note,) if self._found.note else ()
        self.provenance: dict[str, Any] = {"source": self.title, "files": {name: digest}}
        if self._segments:
            self.provenance["occlusion"] = "segments"
        with _clear_errors(self._where):
            categories = [self._coco.cats[number] for number in sorted(self._coco.getCatIds())]
            names = {category["id"]: str(category["name"]).strip() for category in categories}
        if options.classes is not None:
            listed, list_name = split_location(options.classes)
            self.labels = read_class_list(listed, list_name)
            if unknown := [name for name in names.values() if name not in self.labels]:
                raise UserError(f"{options.classes}: lacks these classes of {self._where}: {quoted(unknown)}")
            self.provenance["classes"] = {list_name: hashlib.sha256(listed.read(list_name)).hexdigest()}
        else:
            try:
                self.labels = LabelSpace(tuple(names.values()))
            except UserError as error:  # Roboflow, for one, adds a category for all
                hint = "if they are one, list the names once in a file and add --classes FILE"
                raise BadInputError(self._where, str(error), hint) from None
        self._keep_unlabelled = not is_published if options.keep_unlabelled is None else options.keep_unlabelled
        if not is_published:
            bare = [
                str(image.get("file_name"))
                for key, image in self._coco.imgs.items()
                if not self._coco.imgToAnns.get(key)
            ]
            self.notes += unannotated_said(split, bare, kept=self._keep_unlabelled)
        self._class_index = {number: self.labels.index(name) for number, name in names.items()}

    def records(self) -> Iterator[Record]:
        """The split's annotated images in ascending order of their ids."""
        dropped = bare = 0
        with _clear_errors(self._where):
            image_ids = sorted(self._coco.imgs)
        for image_id in image_ids:
            annotations = self._coco.imgToAnns.get(image_id, ())
            if not annotations and not self._keep_unlabelled:
                dropped += 1
                continue
            bare += not annotations
            try:
                record = self._record(image_id, annotations)
            except KeyError as error:
                self.reject(BadInputError(self._where, f"image {image_id}: no entry {error}", _HINT))
            except (ValueError, TypeError) as error:
                self.reject(BadInputError(self._where, f"image {image_id}: {error}", _HINT))
            else:
                yield record
        self.counts["dropped_without_annotations"] = dropped
        if bare:
            self.counts["without_any_class"] = bare

    def _record(self, image_id: int, annotations: Sequence[dict[str, Any]]) -> Record:
        entry = self._coco.imgs[image_id]
        file_name = entry["file_name"]
        if isinstance(file_name, str):
            file_name = plain_path(file_name.replace("\\", "/"))  # written on Windows, or by Label Studio's server
        # It becomes part of a path: nothing in the JSON may point outside the dataset.
        if not is_inside(file_name):
            raise ValueError(f"{file_name!r} is not a path below the images' folder")
        path, file_name = self._found.path(self.images, file_name)
        ordered = sorted(annotations, key=lambda item: item["id"])
        size = entry.get("width"), entry.get("height")
        boxed = [item for item in ordered if item.get("bbox") not in (None, [])]
        return Record(
            key=key_of(file_name),
            image=path,
            positives=tuple(sorted({self._class_of(item) for item in ordered})),
            objects=tuple(map(self._object, boxed)),
            image_id=str(image_id),
            size=size if all(isinstance(side, int) and side > 0 for side in size) else None,
            occlusion=occlusion_of(boxed, int(entry["height"]), int(entry["width"])) if self._segments else None,
        )

    def _class_of(self, annotation: dict[str, Any]) -> int:
        try:
            return self._class_index[annotation["category_id"]]
        except KeyError as error:
            raise ValueError(f"annotation {annotation.get('id')}: no entry {error} among the categories") from None

    def _object(self, annotation: dict[str, Any]) -> ObjectRecord:
        try:
            left, top, width, height = map(float, annotation["bbox"])
        except (TypeError, ValueError):
            raise ValueError(
                f"annotation {annotation.get('id')}: bbox {annotation['bbox']!r} is not 4 numbers"
            ) from None
        area = annotation.get("area")
        return ObjectRecord(
            class_index=self._class_of(annotation),
            box=(left, top, width, height),
            # COCO's own files always have both; other tools' files often do not.
            area=width * height if area is None else float(area),
            crowd=annotation.get("iscrowd") not in _NO_CROWD,
        )


class Coco2014(Coco):
    """COCO-2014: 82,081 annotated images to train on, 40,137 to test with.

    Args:
        root: the folder that holds ``annotations/``, ``train2014/`` and ``val2014/``, or its parent, in which it is
            called COCO2014, coco2014 or coco.
        split: ``train`` or ``val``.
        options: as for ``Coco``.
    """

    dataset = "coco2014"
    title = "COCO-2014"
    licence = (
        "Annotations: Creative Commons Attribution 4.0 (COCO Consortium). Photographs: each under the flickr licence "
        "that the annotations name for it, mostly Creative Commons."
    )

    def __init__(self, root: Location, split: str, options: SourceOptions = NO_OPTIONS):
        if split not in _SPLITS_2014:
            raise unknown_split(self.dataset, split, _SPLITS_2014)
        super().__init__(_find_root_2014(root), split, options, f"{split}2014")


def available_splits(root: Location, options: SourceOptions = NO_OPTIONS) -> tuple[str, ...]:
    """Splits of any name whose annotations and image folder are in ``root``, sorted; ``all`` for a single file.

    Raises:
        UserError: a web address, which cannot be listed.
    """
    if _is_file(root):
        return (WHOLE_SPLIT,)
    place = open_storage(root)
    if not place.can_list:
        raise UserError(f"{place.url}: a web address cannot be listed; say which splits it has, with --split")
    if place.path() is not None and not place.path().is_dir():  # type: ignore[union-attr]
        return ()
    files = [PurePosixPath(info.name) for info in _annotation_files(place)]
    found = {_split_of(path) for path in files}
    anywhere = options.images is not None
    return tuple(sorted(split for split in found if split and (anywhere or _may_have_images(place, split))))


def _left_out(place: Storage, options: SourceOptions) -> tuple[str, ...]:
    """A note for each split that has annotations in a local folder, and no folder of images."""
    if place.path() is None or options.images is not None:
        return ()
    parts = {(_split_of(path), path) for path in map(PurePosixPath, (info.name for info in _annotation_files(place)))}
    return tuple(
        f"{split} has annotations ({path}), and no folder {split} or images/{split} with its images: left out"
        for split, path in sorted(parts)
        if split and not _may_have_images(place, split)
    )


def _may_have_images(place: Storage, split: str) -> bool:
    """Whether there is a folder for the split's images: downloading one split of COCO brings the annotations of all."""
    if split == WHOLE_SPLIT or any(has_folder(place, folder) for folder in (split, f"images/{split}", "data")):
        return True
    flat = place.path("images")
    return flat is not None and flat.is_dir() and any(entry.is_file() for entry in flat.iterdir())


def _annotation_files(place: Storage) -> list[FileInfo]:
    """Where annotations may be: in a local folder at most two levels deep, for the image folders are large."""
    folder = place.path()
    if folder is None:
        return place.child("annotations").list_files() and [
            FileInfo(f"annotations/{info.name}", info.size) for info in place.child("annotations").list_files()
        ]
    paths = sorted([*folder.glob("*.json"), *folder.glob("*/*.json")])
    return [FileInfo(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths]


def _split_of(path: PurePosixPath) -> str:
    """The split whose annotations a file holds, judging by its name; empty if the name is not a known one."""
    folder, name = path.parent.as_posix(), path.name
    if folder == "annotations" and name.startswith("instances_"):
        return path.stem.removeprefix("instances_")
    if name in _BESIDE:
        return WHOLE_SPLIT if folder == "." else folder
    return ""


def find_annotations(place: Storage, part: str) -> str:
    """The annotations of a split, in any of the layouts that programs use; COCO's own path where there are none."""
    below = "" if part == WHOLE_SPLIT else f"{part}/"
    names = [annotation_file(part), *(f"{below}{name}" for name in _BESIDE)]
    return next((name for name in names if place.exists(name)), names[0])


def available_splits_2014(root: Location, options: SourceOptions = NO_OPTIONS) -> tuple[str, ...]:
    """Splits of COCO-2014 whose annotations are in ``root``."""
    place = open_storage(root)
    return tuple(split for split in _SPLITS_2014 if place.exists(annotation_file(f"{split}2014")))


def recognise(root: Location) -> Likeness | None:
    """COCO's layout at ``root``, or one JSON of annotations in it."""
    if not _is_file(root):
        place = open_storage(root)
        splits = available_splits(root) if place.can_list else ()
        if not splits:
            return None
        name = find_annotations(place, splits[0])
        num_classes = _num_classes(root, name)
        if num_classes is None and PurePosixPath(name).name == _FIFTYONE and place.path() is not None:
            return None  # its classifications and detections have the same name
        return Likeness.of(2, "COCO layout", splits, num_classes)
    place, name = split_location(root)
    num_classes = _num_classes(str(root).rpartition("/")[0] or ".", name) if place.path() is not None else None
    local = place.path(name)
    if local is not None and local.is_file() and _starts_as_list(local):
        return None
    return Likeness.of(3 if num_classes else 1, "one COCO file", (WHOLE_SPLIT,), num_classes)


def _starts_as_list(path: Path) -> bool:
    with open(path, "rb", opener=regular) as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[")


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
    with open(path, "rb", opener=regular) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
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


def _place_of_file(root: Location) -> tuple[Storage, str]:
    """The dataset's folder for a JSON file, and the file's name in it, which may begin with ``annotations/``."""
    place, name = split_location(root)
    folder = place.url.rstrip("/")
    if folder.rpartition("/")[2] == "annotations":
        return split_location(folder)[0], f"annotations/{name}"
    return place, name


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


def _load(path: Path, *, with_segments: bool) -> tuple[Any, str]:
    """The indexed annotations and the file's SHA-256.

    The segments are most of the file and rarely needed: each is dropped, or made compact, as soon as it is parsed,
    which holds the peak memory of the whole training set to a fraction of ``COCO(path)``'s.
    """
    from pycocotools.coco import COCO

    hook = _with_compact_segment if with_segments else _without_segment
    with open(path, "rb", opener=regular) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with _clear_errors(str(path)), contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports by printing
        coco = COCO()
        coco.dataset = json.loads(path.read_text(encoding="utf-8-sig"), object_hook=hook)
        if not isinstance(coco.dataset, dict):
            raise ValueError("not an object with images, annotations and categories")
        for part in ("images", "annotations", "categories"):
            if not isinstance(coco.dataset[part], list):
                raise ValueError(f"'{part}' is not a list")
        coco.createIndex()
        # pycocotools keeps the last of two with one id, and annotations of no image: neither may vanish silently.
        for part, by_id in (("images", coco.imgs), ("annotations", coco.anns), ("categories", coco.cats)):
            if len(by_id) != len(coco.dataset[part]):
                raise ValueError(f"two of the '{part}' have one id")
        if strays := coco.imgToAnns.keys() - coco.imgs.keys():
            raise ValueError(f"annotations of image {min(strays)}, which is not among the images")
    return coco, digest


def _without_segment(item: dict[str, Any]) -> dict[str, Any]:
    item.pop("segmentation", None)
    return item


def _with_compact_segment(item: dict[str, Any]) -> dict[str, Any]:
    if "segmentation" in item:
        item["segmentation"] = compact_segment(item["segmentation"])
    return item


@contextlib.contextmanager
def _clear_errors(where: str) -> Iterator[None]:
    """A JSON that parses but is not COCO's fails somewhere inside: say which file and what is missing."""
    try:
        yield
    except BadInputError:
        raise
    except KeyError as error:
        raise BadInputError(where, f"not a COCO instances file (no entry {error})", _HINT) from None
    except (ValueError, TypeError) as error:  # includes JSON and UTF-8 errors
        raise BadInputError(where, f"not a COCO instances file ({error})", _HINT) from None
