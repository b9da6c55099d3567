"""One VOC annotation: the objects of an image, its size, and what their classes are called."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from xml.etree import ElementTree

from msldata.contract.records import VOC, LabelSpace, ObjectRecord
from msldata.errors import BadInputError

HINT = "repair the file, or take its id out of the list in ImageSets/Main"
_MARKED = {"0": False, "1": True, "": None, None: None}
"""What nearly all marks are; ``_flag`` reads the others."""


def parse_annotation(
    data: bytes, where: str, labels: LabelSpace = VOC
) -> tuple[tuple[ObjectRecord, ...], tuple[int, int] | None]:
    """One annotation.

    VOC counts pixels from 1 and both corners belong to the box; the result counts from 0.

    Returns:
        Its objects in the order of the file, and width and height of the image that was annotated, where it says so.

    Raises:
        BadInputError: not XML, a document type declaration (never needed here, and a way to exhaust memory), an object
            without name or box, or an unknown class.
    """
    root = parse_xml(data, where)
    try:
        objects = [_parse_object(element, labels.positions) for element in root.findall("object")]
        return tuple(objects), _parse_size(root)
    except ValueError as error:
        raise BadInputError(where, str(error), HINT) from None


def parse_objects(data: bytes, where: str, labels: LabelSpace = VOC) -> tuple[ObjectRecord, ...]:
    """The objects alone; raises as ``parse_annotation`` does."""
    return parse_annotation(data, where, labels)[0]


def parse_class_names(data: bytes, where: str) -> list[str]:
    """What the classes of the objects are called, known or not. Raises BadInputError: not XML."""
    names = [(element.findtext("name") or "").strip() for element in parse_xml(data, where).findall("object")]
    return [name for name in names if name]


def parse_xml(data: bytes, where: str, hint: str = HINT) -> ElementTree.Element:
    """The root of a document from anywhere. Raises BadInputError: it is not XML, or declares a type or entities."""
    # One letter is found in a third of the time that a word takes, and half of the files have none.
    if (b"!" in data and (b"<!DOCTYPE" in data or b"<!ENTITY" in data)) or b"\0" in data:
        raise BadInputError(where, "document type declarations, entities and NUL bytes are refused", hint)
    try:
        parser = ElementTree.XMLParser()  # as ``fromstring`` does, without a tree builder in between
        parser.feed(data)
        return parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # also raised for an unknown encoding
        raise BadInputError(where, f"not valid XML ({error})", hint) from None


def _parse_size(root: ElementTree.Element) -> tuple[int, int] | None:
    """The stated size, or None; some tools write 0 for "not stated"."""
    size = root.find("size")
    if size is None:
        return None
    try:
        width, height = int(float(size.findtext("width") or 0)), int(float(size.findtext("height") or 0))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _parse_object(element: ElementTree.Element, positions: Mapping[str, int]) -> ObjectRecord:
    name = (element.findtext("name") or "").strip()
    class_index = positions.get(name)
    if class_index is None:
        raise ValueError(f"unknown class '{name}'")
    box = element.find("bndbox")
    if box is None:
        raise ValueError(f"an object of class '{name}' has no bndbox")
    # A build does this for every object: calls and generators would take as long as the rest.
    corner, mark = box.findtext, element.findtext
    try:
        left, top = float(corner("xmin") or ""), float(corner("ymin") or "")
        right, bottom = float(corner("xmax") or ""), float(corner("ymax") or "")
    except ValueError:
        left, top, right, bottom = (_number(box, tag) for tag in ("xmin", "ymin", "xmax", "ymax"))  # says which
    width, height = right - left + 1, bottom - top + 1
    if right <= 1 and not bottom > 1 and not all(value.is_integer() for value in (left, top, right, bottom)):
        raise ValueError(f"an object of class '{name}' has a box between 0 and 1, where pixels are expected")
    if not (0 < width < inf and 0 < height < inf):
        raise ValueError(f"an object of class '{name}' has a box without area ({left}, {top}, {right}, {bottom})")
    try:
        difficult = _MARKED[mark("difficult")]
        truncated, occluded = _MARKED[mark("truncated")], _MARKED[mark("occluded")]
    except KeyError:
        difficult, truncated, occluded = (_flag(element, tag) for tag in ("difficult", "truncated", "occluded"))
    return ObjectRecord(
        class_index, (left - 1, top - 1, width, height), width * height, bool(difficult), truncated, occluded
    )


def _number(box: ElementTree.Element, tag: str) -> float:
    text = box.findtext(tag)
    try:
        return float(text or "")
    except ValueError:
        raise ValueError(f"{tag} is {text!r}, not a number") from None


def _flag(element: ElementTree.Element, tag: str) -> bool | None:
    """A 0/1 tag; None where it is absent, because "not marked" and "not looked at" differ."""
    text = element.findtext(tag)
    stripped = text and text.strip()
    if not stripped:
        return None
    if stripped in ("0", "1"):
        return stripped == "1"
    lower = stripped.lower()
    if lower not in ("false", "true", "unspecified"):
        raise ValueError(f"{tag} is {text!r}, expected 0 or 1")
    return None if lower == "unspecified" else lower == "true"
