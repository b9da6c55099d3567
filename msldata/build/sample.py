"""A record becomes a sample: its image read and checked, its members, and its row of the index."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any, NamedTuple

from msldata.build.image import Placement, Resize, prepare_image
from msldata.build.missing import missing_image
from msldata.contract.format import IMAGE_SUFFIX, META_SUFFIX, OCCLUSION, TARGET_SUFFIX, encode_target
from msldata.contract.records import SHARES, ObjectRecord, Record
from msldata.errors import SKIP_BAD, BadInputError, UserError, few_of
from msldata.storage import Storage

_BEYOND = 0.05
"""A box may leave the picture by this share of its side: people draw beyond edges, and tools round."""
_OTHERS_SHOWN = 9
_FLAG = {None: "null", False: "false", True: "true"}


class Sample(NamedTuple):
    """What the shard writer takes, and what the report counts."""

    record: Record
    """Its objects are in pixels of the stored image: moved with the pixels where the image was made smaller."""
    members: list[tuple[str, bytes]]
    row: dict[str, Any]
    """The columns of the index, except those that say where the bytes are."""
    transcoded: bool
    turned: bool
    """Whether its pixels were turned upright."""
    size_differs: bool
    """Whether the annotations state another size than the image has; its boxes fit all the same."""


class SampleMaker:
    """Makes the samples of one dataset.

    Args:
        images: the folder that ``Record.image`` is relative to.
        classes: class names in target order.
        resize: how images are made smaller; None: they keep their own bytes.
        decode: decode every image to be sure that it is whole.
    """

    def __init__(self, images: Storage, classes: Sequence[str], resize: Resize | None, *, decode: bool = False):
        self.images = images
        self.resize = resize
        self.decode = decode
        self.num_bytes_read = -1
        """Size of the image file that was read last; -1 if it could not be read."""
        self._names = [encode_basestring(name) for name in classes]

    def make(self, record: Record) -> Sample:
        """Read the record's image and encode everything. Raises BadInputError: the image cannot be used."""
        self.num_bytes_read = -1
        try:
            data = self.images.read(record.image)
            self.num_bytes_read = len(data)
            image = prepare_image(data, self.resize, record.crop, decode=self.decode)
            placement = image.placement
            size = image.width, image.height
            frame = None
            if record.objects and placement is None and record.size == size:
                check_boxes(record.objects, *size)  # nearly every image: nothing to move
            elif record.objects:
                frame = frame_of_boxes(record.size, placement or Placement(*size * 2))
                check_boxes(record.objects, frame.width, frame.height)
        except FileNotFoundError:
            raise missing_image(self.images, record.image) from None
        except ValueError as error:
            # A storage failure says nothing about the image; but a folder or a locked file is the image's own fault.
            reason = _no_file(self.images.path(record.image)) if isinstance(error, UserError) else str(error)
            if not reason:
                raise
            raise BadInputError(self.images.where(record.image), reason) from None
        size_differs = False
        if frame is not None:
            size_differs = record.size not in (None, (frame.width, frame.height))
            if not frame.is_identity:
                record = replace(record, objects=tuple(map(frame.move, record.objects)))
        members = [
            (IMAGE_SUFFIX, image.data),
            (META_SUFFIX, self.encode_meta(record, image.width, image.height)),
            (TARGET_SUFFIX, encode_target(record.positives, len(self._names))),
        ]
        row = {
            "width": image.width,
            "height": image.height,
            "positives": record.positives,
            "ignored": record.ignored,
            "objects": record.objects,
        }
        if record.occlusion is not None:
            row[OCCLUSION.name] = record.occlusion
        turned = placement is not None and placement.orientation != 1
        return Sample(record, members, row, image.transcoded, turned, size_differs)

    def encode_meta(self, record: Record, width: int, height: int) -> bytes:
        """The JSON member: the bytes ``format.encode_json`` would make, in a third of the time."""
        names = self._names
        objects = [
            f'{{"area":{area},"box":[{x},{y},{across},{down}],"class":{names[index]},"crowd":{_FLAG[crowd]},'
            f'"difficult":{_FLAG[difficult]},"occluded":{_FLAG[occluded]},"truncated":{_FLAG[truncated]}}}'
            for index, (x, y, across, down), area, difficult, truncated, occluded, crowd in record.objects
        ]
        crop = "" if record.crop is None else f'"crop":[{",".join(map(str, record.crop))}],'
        return (
            f'{{{crop}"file":{encode_basestring(record.image)},"height":{height},'
            f'"ignored":[{",".join([names[index] for index in record.ignored])}],'
            f'"image_id":{encode_basestring(record.image_id or record.key)},'
            f'"labels":[{",".join([names[index] for index in record.positives])}],'
            f'"objects":[{",".join(objects)}],"width":{width}}}'
        ).encode()


def with_others(first: BadInputError, made: Iterator[Sample | BadInputError], images: Storage) -> BadInputError:
    """The error for an image that ends a build, which names the others of its shard that cannot be used either.

    Args:
        first: that image's own.
        made: what becomes of the shard's other images; of a remote dataset it is not asked, for each costs a request.
        images: the folder of all.
    """
    others: list[BadInputError] = []
    if images.path() is not None:
        with suppress(UserError):  # a disk that fails now is no reason to say less
            others += (one for one in made if isinstance(one, BadInputError))
    folder = images.where("")
    said = few_of([f"{one.file.removeprefix(folder).lstrip('/')} ({one.reason})" for one in others], _OTHERS_SHOWN)
    hint = first.hint.replace(f"or {SKIP_BAD}", f"or, to leave out and list all such images, {SKIP_BAD}")
    return BadInputError(first.file, first.reason + (f", and also {said}" if others else ""), hint)


def _no_file(path: Path | None) -> str:
    """Why a local path holds no readable file; empty when it does."""
    if path is None or not os.path.lexists(path):
        return ""
    if path.is_dir():
        return "a folder, not an image file"
    return "" if os.access(path, os.R_OK) else "permission to read it is denied"


def frame_of_boxes(size: tuple[int, int] | None, placement: Placement) -> Placement:
    """How boxes are moved from the picture that they were drawn on to the stored one.

    Annotations that state a size were drawn on the picture of that size: the file's own pixels, or those that its EXIF
    orientation turns upright. Where both have the same size (upside down, mirrored, a square) it is the upright one,
    which is what annotation tools show; where no size is stated, the file's own. Shares refer to the upright one.

    Args:
        size: width and height that the annotations state.
        placement: of the file's own pixels.

    Raises:
        ValueError: width and height are swapped, and nothing in the file says which way it would have to be turned.
    """
    if size == SHARES:
        upright = placement.drawn_upright()
        return Placement(*SHARES, upright.scaled_width, upright.scaled_height)
    own, upright = (placement.width, placement.height), placement.drawn_upright()
    if size is None or (placement.orientation == 1 and size == own):
        return placement
    if placement.orientation != 1:
        return placement if size == own != (upright.width, upright.height) else upright
    if size == own[::-1]:
        raise ValueError(
            f"its annotations are of a picture of {size[0]} × {size[1]}, the image has {own[0]} × {own[1]}: one of "
            "them was turned"
        )
    return placement


def check_boxes(objects: Sequence[ObjectRecord], width: int, height: int) -> None:
    """Raise ValueError for a box of negative size, beyond the picture, or in shares of it instead of pixels."""
    frame_is_shares = (width, height) == SHARES
    slack = 0.0 if frame_is_shares else 2.0
    across, down = max(slack, _BEYOND * width), max(slack, _BEYOND * height)
    right, bottom = width + across, height + down
    in_pixels = frame_is_shares or not objects
    for item in objects:  # every box of a dataset comes by here: one pass, no calls
        x, y, w, h = item.box
        if not (w >= 0 and h >= 0 and x >= -across and y >= -down and x + w <= right and y + h <= bottom):
            box = ", ".join(f"{value:g}" for value in item.box)
            problem = "is of negative size" if w < 0 or h < 0 else f"leaves the picture of {width} × {height}"
            raise ValueError(f"the box [{box}] (x, y, width, height) {problem}")
        if x + w > 1 or y + h > 1:
            in_pixels = True
    if not in_pixels and not all(float(value).is_integer() for item in objects for value in item.box):
        raise ValueError("its boxes lie between 0 and 1: shares of the picture, where pixels are expected")
