"""COCO of any year, and datasets in its layout: one JSON of annotations per split, read through pycocotools."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msldata.errors import BadInputError
from msldata.labels import LabelSpace
from msldata.records import ObjectRecord, Record
from msldata.sources.source import check_name, key_of, unknown_split
from msldata.storage import LocalStorage, Storage

LAYOUT = "annotations/instances_SPLIT.json and the images of each split in SPLIT/"
_SPLITS_2014 = ("train", "val")
_HINT = "mend the annotations, or fetch them again, and check them"


class Coco:
    """One split of a dataset in COCO's layout, read as the paper reads COCO-2014.

    A class's index is the rank of its category id. An image without any annotation is left out and counted; a crowd
    annotation counts as presence.

    Args:
        root: the folder that holds ``annotations/instances_<folder>.json`` and the images' ``<folder>/``.
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

    def __init__(self, root: Path, split: str, folder: str | None = None):
        check_name("split", split)
        self.split = split
        self.root = root
        self._folder = folder or split
        self.images: Storage = LocalStorage(self.root)
        self.counts: dict[str, int] = {}
        path = annotation_file(self.root, self._folder)
        if folder is None and not path.is_file() and (known := available_splits(root)):
            raise unknown_split(str(root), split, known)
        for needed in (path, self.root / self._folder):
            if not needed.exists():
                raise FileNotFoundError(f"{needed}: missing; {self.title} {split} needs it, is the download complete?")
        self._where = str(path)
        self._coco, digest = _load(path)
        self.provenance: dict[str, Any] = {
            "source": self.title,
            "files": {path.relative_to(self.root).as_posix(): digest},
        }
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
        if not isinstance(file_name, str) or "/" in file_name or "\\" in file_name or file_name.startswith("."):
            raise ValueError(f"image {image_id}: {file_name!r} is not a plain file name")
        objects = tuple(self._object(item) for item in sorted(annotations, key=lambda item: item["id"]))
        return Record(
            key=key_of(file_name),
            image=f"{self._folder}/{file_name}",
            positives=tuple(sorted({item.class_index for item in objects})),
            objects=objects,
            image_id=str(image_id),
        )

    def _object(self, annotation: dict[str, Any]) -> ObjectRecord:
        left, top, width, height = map(float, annotation["bbox"])
        return ObjectRecord(
            class_index=self._class_index[annotation["category_id"]],
            box=(left, top, width, height),
            area=float(annotation["area"]),
            crowd=bool(annotation["iscrowd"]),
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

    def __init__(self, root: Path, split: str):
        if split not in _SPLITS_2014:
            raise unknown_split(self.dataset, split, _SPLITS_2014)
        super().__init__(_find_root_2014(root), split, f"{split}2014")


def available_splits(root: Path) -> tuple[str, ...]:
    """Splits of any name whose annotations and image folder lie in ``root``, sorted."""
    names = (path.stem.removeprefix("instances_") for path in (root / "annotations").glob("instances_*.json"))
    return tuple(sorted(name for name in names if (root / name).is_dir()))


def available_splits_2014(root: Path) -> tuple[str, ...]:
    """Splits of COCO-2014 whose annotations lie in ``root``."""
    return tuple(split for split in _SPLITS_2014 if annotation_file(root, f"{split}2014").is_file())


def annotation_file(root: Path, folder: str) -> Path:
    """Where the annotations of the images in ``folder`` are."""
    return root / "annotations" / f"instances_{folder}.json"


def _find_root_2014(root: Path) -> Path:
    for candidate in (root, root / "COCO2014", root / "coco2014", root / "coco"):
        if available_splits_2014(candidate):
            return candidate
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
