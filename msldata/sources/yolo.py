"""YOLO's layout: a text file of labels per image, and ``data.yaml`` or ``classes.txt`` that names the classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import PurePosixPath
from typing import Any

from msldata.contract.listing import IMAGE_SUFFIXES
from msldata.contract.records import SHARES, LabelSpace, ObjectRecord, Record, read_class_list
from msldata.errors import BadInputError, UserError, counted
from msldata.sources.source import (
    NO_OPTIONS,
    SPLIT_NAMES,
    WHOLE_SPLIT,
    Likeness,
    Location,
    SourceOptions,
    fail,
    is_hidden,
    key_of,
    read_many,
    split_location,
    unannotated_said,
    unknown_split,
)
from msldata.sources.spelling import as_stored, composed, several_alike, stored_among
from msldata.storage import Storage, open_storage

LAYOUT = "data.yaml (or classes.txt), and images/ and labels/ with a .txt per image"
_YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_CLASS_LISTS = ("classes.txt", "obj.names", "labels/classes.txt")
_DARKNET = "obj.data"
_SPLIT_KEYS = ("train", "val", "valid", "test")
_HINT = "mend the labels and run again"


class Yolo:
    """One split of a dataset in YOLO's layout: boxes, polygons and rotated boxes, all in shares of the picture's sides.

    An image without a file of labels is left out and counted; one whose file is empty shows none of the classes.

    Args:
        root: the folder, or the ``.yaml`` file in it. Local or remote.
        split: ``train``, ``val`` or ``test`` as ``data.yaml`` or the folders name them; ``all`` where neither names
        any.
        options: ``keep_unlabelled``.

    Raises:
        UserError: unknown split, or no classes. FileNotFoundError: no such dataset. BadInputError: a ``data.yaml`` that
            cannot be understood.
    """

    dataset = "yolo"
    licence = "Not stated by the labels; whoever made the dataset states it."

    def __init__(self, root: Location, split: str, options: SourceOptions = NO_OPTIONS):
        self.split = split
        self.reject: Callable[[BadInputError], None] = fail
        self.images: Storage
        self.images, about = _open(root)
        names, splits, files, self._num_keypoint_values, entries = _describe(self.images, about)
        if not names:
            raise UserError(f"{self.images.url}: no class names; YOLO's layout has them in data.yaml or classes.txt")
        if split not in splits:
            raise unknown_split(self.images.url, split, tuple(splits))
        self.notes = _shared(self.images.url, splits, entries)
        """What deserves a look, of all splits."""
        self.labels = LabelSpace(names)
        there = {info.name for info in self.images.list_sources()}
        alike = stored_among(there)
        pairs = [(image, _in_its_form(_label_file(image), there, alike)) for image in splits[split]]
        bare = [image for image, label in pairs if label not in there and image in there]
        self.counts = {} if options.keep_unlabelled or not bare else {"dropped_without_annotations": len(bare)}
        self.notes += unannotated_said(split, bare, kept=bool(options.keep_unlabelled))
        listed = {image for images in splits.values() for image in images}
        if strays := len(set(_image_names(there)) - listed):
            self.counts["in_no_split"] = strays
        self._pairs = [(image, label if label in there else "") for image, label in pairs]
        if not options.keep_unlabelled:
            self._pairs = [pair for pair in self._pairs if pair[1] or pair[0] not in there]  # the build names these
        self.provenance: dict[str, Any] = {"source": "YOLO layout", "files": files}

    def records(self) -> Iterator[Record]:
        """The split's images, by their names."""
        digest = hashlib.sha256()
        contents = read_many(self.images, [label for _, label in self._pairs if label])
        for image, label in self._pairs:
            data = next(contents) if label else b""
            digest.update(data or b"")
            try:
                lines = _lines(data or b"")
                objects = tuple(_parse_line(line, len(self.labels), self._num_keypoint_values) for line in lines)
            except ValueError as error:
                self.reject(BadInputError(self.images.where(label), str(error), _HINT))
                continue
            yield Record(
                key=key_of(_short(image, self.split)),
                image=image,
                positives=tuple(sorted({item.class_index for item in objects})),
                objects=objects,
                image_id=image,
                size=SHARES if objects else None,
            )
        self.provenance["labels_sha256"] = digest.hexdigest()


def available_splits(root: Location, options: SourceOptions = NO_OPTIONS) -> tuple[str, ...]:
    """The splits of a folder in YOLO's layout; empty if it is not one."""
    place, about = _open(root)
    return tuple(_describe(place, about)[1])


def recognise(root: Location) -> Likeness | None:
    """YOLO's layout at ``root``."""
    place, about = _open(root)
    if not place.can_list or (place.path() is not None and not place.path().is_dir()):  # type: ignore[union-attr]
        return None
    if not about and not any(place.exists(name) for name in (*_YAMLS, *_CLASS_LISTS)):
        return None
    names, splits, *_ = _describe(place, about)
    labelled = any(
        place.exists(as_stored(place, _label_file(image))) for images in splits.values() for image in images[:50]
    )
    if not names or not labelled:
        return None
    return Likeness.of(3 if about or _yaml_of(place) else 2, "YOLO layout", tuple(splits), len(names))


def _open(root: Location) -> tuple[Storage, str]:
    """The folder, and the name of the YAML file in it where that was given."""
    if PurePosixPath(str(root)).suffix.lower() in (".yaml", ".yml"):
        return split_location(root)
    return open_storage(root), ""


def _yaml_of(place: Storage) -> str:
    return next((name for name in _YAMLS if place.exists(name)), "")


def _describe(
    place: Storage, about: str
) -> tuple[tuple[str, ...], dict[str, list[str]], dict[str, str], int, dict[str, Any]]:
    """(class names, images of every split, SHA-256 of the files that say so, numbers of an object's keypoints, what is
    said of the splits)."""
    about = about or _yaml_of(place)
    listed = next((name for name in _CLASS_LISTS if place.exists(name)), "")
    if not about and not listed:
        return (), {}, {}, 0, {}
    entries = _read_yaml(place, about) if about else _read_darknet(place)
    source = about or listed
    files = {source: hashlib.sha256(place.read(source)).hexdigest()}
    names = _names(place, about, entries) if about else read_class_list(place, listed, counted=True).classes
    images = _image_names(info.name for info in place.list_sources())
    splits = {
        key: _images_at(place, about, entries[key], images) for key in _SPLIT_KEYS if entries.get(key) not in (None, "")
    }
    if not splits:
        for image in images:
            split = next((part for part in PurePosixPath(image).parts[:-1] if part.lower() in SPLIT_NAMES), WHOLE_SPLIT)
            splits.setdefault(split, []).append(image)
    shape: list[str] = entries.get("kpt_shape") or []
    num_values = int(shape[0]) * int(shape[1]) if len(shape) == 2 and all(map(str.isdigit, shape)) else 0
    return names, {split: found for split, found in splits.items() if found}, files, num_values, entries


def _shared(where: str, splits: Mapping[str, list[str]], entries: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes on splits that are said to be the same, or to be where there are none.

    Raises:
        UserError: an image is in two splits that are said to be elsewhere: both trained on and tested with.
    """
    notes = [
        f"{key} is {str(entries[key])[:80]!r}, where no images are: left out"
        for key in _SPLIT_KEYS
        if entries.get(key) and key not in splits
    ]
    for one, other in combinations(splits, 2):
        both = set(splits[one]).intersection(splits[other])
        if not both:
            continue
        if entries.get(one) == entries.get(other):
            notes.append(f"{one} and {other} are the same images, as {entries[one]!r} is named for both")
            continue
        raise UserError(
            f"{where}: {counted(len(both), 'image')} of {one} ({entries.get(one)}) are in {other} "
            f"({entries.get(other)}) too, {min(both)} for one; name the folders, or lists, of each as they lie here"
        )
    return tuple(notes)


def _image_names(names: Iterable[str]) -> list[str]:
    found = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    return sorted(name for name in found if not is_hidden(name))


def _read_darknet(place: Storage) -> dict[str, Any]:
    """The lists of images that ``obj.data`` names, as darknet and CVAT write it."""
    if not place.exists(_DARKNET):
        return {}
    lines = place.read(_DARKNET).decode("utf-8-sig", "replace").splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}


def _read_yaml(place: Storage, name: str) -> dict[str, Any]:
    import yaml

    try:
        # Every scalar is text: a class may be called "no" or "1.10".
        entries = yaml.load(place.read(name), Loader=_once(yaml.BaseLoader))
    except FileNotFoundError:
        raise FileNotFoundError(f"{place.where(name)}: no such file; YOLO's layout has {LAYOUT}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInputError(place.where(name), f"not valid YAML ({error})".replace("\n", " "), "mend it") from None
    if not isinstance(entries, dict):
        raise BadInputError(place.where(name), "no entries such as names and train", "mend it")
    return entries


def _once(loader: Any) -> Any:
    """A loader that refuses a key that is given twice, of which YAML's would keep the last."""

    class Once(loader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            if twice := next((key for key in keys if keys.count(key) > 1), None):
                import yaml

                raise yaml.YAMLError(f"line {node.start_mark.line + 1}: '{twice}' is given twice")
            return super().construct_mapping(node, deep)

    return Once


def _names(place: Storage, about: str, entries: dict[str, Any]) -> tuple[str, ...]:
    names = entries.get("names")
    if isinstance(names, dict):
        if set(names) != set(map(str, range(len(names)))):
            raise BadInputError(place.where(about), "its names are not numbered from 0 without a gap", "mend it")
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise BadInputError(place.where(about), f"'names' is {str(names)[:60]!r}, expected class names", "mend it")
    if entries.get("nc", str(len(names))) != str(len(names)):
        raise BadInputError(place.where(about), f"nc is {entries['nc']}, and there are {len(names)} names", "mend it")
    return tuple(str(name).strip() for name in names)


def _images_at(place: Storage, about: str, wanted: Any, images: list[str]) -> list[str]:
    """The images of one split: from a folder, from a list of images, or from several.

    The paths in such files often belong to another machine: the longest end of each that exists in the dataset counts.
    An image that a list names and that is not there keeps the name that it would have.
    """
    if isinstance(wanted, list):
        return sorted({image for part in wanted for image in _images_at(place, about, part, images)})
    parts = [part for part in PurePosixPath(str(wanted).replace("\\", "/")).parts if part not in ("..", ".", "/")]
    for start in range(len(parts)):
        path = as_stored(place, "/".join(parts[start:]))
        if path.endswith(".txt") and place.exists(path):
            lines = [line.strip() for line in place.read(path).decode("utf-8-sig", "replace").split("\n")]
            at = {line: _images_at(place, about, line, images) for line in lines if line}
            beyond = (line.removesuffix(found[0]) for line, found in at.items() if found and line.endswith(found[0]))
            above = next(beyond, "")  # what is before the names of those that are there
            return [image for line in lines if line for image in at[line] or [_plain_path(line.removeprefix(above))]]
        if found := [image for image in images if image == path or image.startswith(f"{path}/")]:
            return found
        if not path.isascii():
            plain = composed(path)
            found = [image for image in images if composed(image) == plain or composed(image).startswith(f"{plain}/")]
            if len({*map(composed, found)}) < len(found):
                raise several_alike(path, map(place.where, found))
            if found:
                return found
    return []


def _plain_path(path: str) -> str:
    return "/".join(part for part in PurePosixPath(path.replace("\\", "/")).parts if part not in ("..", "/"))


def _label_file(image: str) -> str:
    """Where YOLO looks for an image's labels: the last folder ``images`` becomes ``labels``."""
    parts = list(PurePosixPath(image).with_suffix(".txt").parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place].lower() == "images":
            parts[place] = "labels"
            break
    return "/".join(parts)


def _in_its_form(label: str, there: Collection[str], alike: Mapping[str, list[str]]) -> str:
    """The file of labels with a name, or the only one whose name stores its accents in another form."""
    found = [] if label in there else alike.get(composed(label), [])
    return found[0] if len(found) == 1 else label


def _short(image: str, split: str) -> str:
    """An image's path without the folders that all images of a split share."""
    parts = PurePosixPath(image).parts
    dull = ("images", split, *SPLIT_NAMES)
    return "/".join((*(part for part in parts[:-1] if part.lower() not in dull), parts[-1]))


def _lines(data: bytes) -> list[list[str]]:
    return [line.split() for line in data.decode("utf-8-sig", "replace").splitlines() if line.strip()]


def _parse_line(fields: list[str], num_classes: int, num_keypoint_values: int = 0) -> ObjectRecord:
    """One object: its class, and a box by its centre or the corners of a polygon, between 0 and 1."""
    try:
        number, values = int(fields[0].removesuffix(".0")), [float(value) for value in fields[1:]]
    except ValueError:
        raise ValueError(f"{' '.join(fields)[:80]!r} is not a class index and numbers") from None
    if not 0 <= number < num_classes:
        raise ValueError(f"class index {number}; of {counted(num_classes, 'class')}")
    if num_keypoint_values and len(values) in (4 + num_keypoint_values, 5 + num_keypoint_values):
        values = values[:4]
    if len(values) in (4, 5):  # a fifth is a confidence
        x, y, width, height = values[:4]
        left, top = x - width / 2, y - height / 2
    elif len(values) >= 6 and len(values) % 2 == 0:
        left, top = min(values[::2]), min(values[1::2])
        width, height = max(values[::2]) - left, max(values[1::2]) - top
    else:
        raise ValueError(f"{len(values)} numbers for an object, expected 4 of a box or 6 and more of a polygon")
    return ObjectRecord(class_index=number, box=(left, top, width, height), area=width * height)
