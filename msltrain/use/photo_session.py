"""What ``msl serve`` shows: one predictor or several, example pictures, and the photographs they were shown lately.

C channels, S side of the square, K classes, H, W positions.
"""

from __future__ import annotations

import base64
import hashlib
import io
import queue
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from msldata.contract.keepmask import decode_png, resize_nearest
from msldata.errors import UserError
from msltrain.use.overlay import RAMP, STRONGEST
from msltrain.use.predict import Answer, Predictor
from msltrain.use.read_images import Picture, read_photo

MAX_EXAMPLES = 12
_SHOWN_SIDE, _EXAMPLE_SIDE = 1024, 160
_NUM_PHOTOS = 32
_MAX_BATCH = 16


class NotKnown(LookupError):
    """A photograph or example that is not there (any more); the text is for a person."""


@dataclass(frozen=True, slots=True, eq=False)
class _Photo:
    width: int
    height: int
    square_of: Mapping[int, Tensor]
    """By side: uint8 (1, C, S, S), as models of that input size see it."""
    jpeg: bytes


class Studio:
    """Predictors, example pictures, and the photographs they were shown lately. Safe to use from several threads.

    Args:
        predictors: answer, each about every photograph; one or several.
        examples: pictures to offer; at most ``MAX_EXAMPLES`` of them, spread evenly, are.
        names: what the predictors are called; none: after where they are.

    Raises:
        UserError: the predictors see different parts of a photograph.
    """

    def __init__(self, predictors: Sequence[Predictor], examples: Sequence[Picture] = (), names: Sequence[str] = ()):
        self.predictors = tuple(predictors)
        if len({predictor.view for predictor in self.predictors}) > 1:
            raise UserError(
                "these models see different parts of a photograph (a timm classifier what its config says, others all "
                "of it), so no hole is the same for them; serve them one at a time"
            )
        self.names = tuple(names) or _names([str(predictor.path) for predictor in predictors])
        step = max(1, len(examples) / MAX_EXAMPLES)
        self.examples = [examples[int(n * step)] for n in range(min(len(examples), MAX_EXAMPLES))]
        self._photos: OrderedDict[str, _Photo] = OrderedDict()
        self._lock = threading.Lock()
        # One photograph at a time, for a small file may hold a hundred million pixels; and always in the same thread,
        # for each that decodes and resizes keeps memory of its own.
        self._decoder = ThreadPoolExecutor(1)
        self._answers = _Batches(self.predictors)

    def close(self) -> None:
        """Answer what was asked, and end the threads."""
        self._decoder.shutdown()
        self._answers.close()

    def about(self) -> dict[str, Any]:
        """What the page must know of the models."""
        models = [
            {
                "name": name,
                "path": str(predictor.path),
                "classes": predictor.classes,
                "thresholds": list(map(float, predictor.threshold_K)),
                "threshold_origin": predictor.threshold_origin,
                "hole_colour": predictor.hole_colour,
            }
            for name, predictor in zip(self.names, self.predictors, strict=True)
        ]
        return {
            "models": models,
            "classes": list(dict.fromkeys(name for predictor in self.predictors for name in predictor.classes)),
            "examples": [picture.called() for picture in self.examples],
            "ramp": RAMP,
            "strongest": STRONGEST,
        }

    def add(self, picture: Picture) -> dict[str, Any]:
        """Take a photograph in. Raises BadInputError if it is none."""
        photo = self._decoder.submit(self._decode, picture).result()
        # What is shown and what is predicted follow from the pixels, so equal pixels may share an id.
        digest = hashlib.sha256(f"{photo.width}×{photo.height}".encode() + photo.jpeg)
        for square_1CSS in photo.square_of.values():
            digest.update(square_1CSS.numpy().tobytes())
        photo_id = digest.hexdigest()[:32]
        with self._lock:
            self._photos[photo_id] = photo
            self._photos.move_to_end(photo_id)
            while len(self._photos) > _NUM_PHOTOS:
                self._photos.popitem(last=False)
        answers = self._answers.ask(photo.square_of, {})
        return {"id": photo_id, "width": photo.width, "height": photo.height, "answers": list(map(_as_json, answers))}

    def _decode(self, picture: Picture) -> _Photo:
        photo = self.predictors[0].seen(read_photo(picture))
        square_of = {size: photo.square(size) for size in self._sizes()}
        return _Photo(*photo.size, square_of, _jpeg(photo.pixels(_SHOWN_SIDE), _SHOWN_SIDE))

    def _sizes(self) -> list[int]:
        return list(dict.fromkeys(predictor.image_size for predictor in self.predictors))

    def hide(self, photo_id: str, png: bytes) -> dict[str, Any]:
        """The answers behind a keep mask. Raises NotKnown or BadInputError."""
        photo = self.photo(photo_id)
        keep_mask_HW = decode_png(png, "the mask")
        keep_mask_of = {size: resize_nearest(keep_mask_HW, size, size) for size in self._sizes()}
        answers = self._answers.ask(photo.square_of, keep_mask_of)
        first_SS = keep_mask_of[self.predictors[0].image_size]
        return {"hidden": round(1 - float(first_SS.mean()), 4), "answers": list(map(_as_json, answers))}

    def photo(self, photo_id: str) -> _Photo:
        """A photograph shown lately. Raises NotKnown if it is not known, or not any more."""
        with self._lock:
            photo = self._photos.get(photo_id)
        if photo is None:
            raise NotKnown("this photograph is not known (any more); drop it again")
        return photo

    def example(self, number: int) -> Picture:
        """Example picture ``number``. Raises NotKnown if there is none."""
        if number >= len(self.examples):
            raise NotKnown(f"there is no example {number}")
        return self.examples[number]

    def example_jpeg(self, number: int) -> bytes:
        """Example picture ``number``, small. Raises NotKnown or BadInputError."""
        example = self.example(number)
        return self._decoder.submit(lambda: _jpeg(read_photo(example).pixels(_EXAMPLE_SIDE), _EXAMPLE_SIDE)).result()


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    square_of: Mapping[int, Tensor]
    keep_mask_of: Mapping[int, np.ndarray]
    """By side, uint8 (S, S); empty: the whole photograph."""
    answers: Future[list[Answer]]


class _Batches:
    """Answers in a thread of its own, together what was asked at the same time: a batch costs less than its images.

    Args:
        predictors: asked one after the other, so that several need no more memory for their work than one.
    """

    def __init__(self, predictors: Sequence[Predictor]):
        self._predictors = predictors
        self._asked: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ask(self, square_of: Mapping[int, Tensor], keep_mask_of: Mapping[int, np.ndarray]) -> list[Answer]:
        """The answer of each predictor, when there is one."""
        question = _Question(square_of, keep_mask_of, Future())
        self._asked.put(question)
        return question.answers.result()

    def close(self) -> None:
        self._asked.put(None)
        self._thread.join()

    def _run(self) -> None:
        going_on = True
        while going_on:
            together = [self._asked.get()]
            while together[-1] is not None and len(together) < _MAX_BATCH and not self._asked.empty():
                together.append(self._asked.get())
            going_on = together[-1] is not None
            asked = [one for one in together if one is not None]
            try:
                answers = [self._answer(predictor, asked) for predictor in self._predictors]
            except Exception as error:
                for one in asked:
                    one.answers.set_exception(error)
                continue
            for number, one in enumerate(asked):
                one.answers.set_result([of_one_model[number] for of_one_model in answers])

    def _answer(self, predictor: Predictor, asked: Sequence[_Question]) -> list[Answer]:
        size = predictor.image_size
        squares = [one.square_of[size] for one in asked]
        return predictor.answer(squares, [one.keep_mask_of.get(size) for one in asked], with_places=True)


def _as_json(answer: Answer) -> dict[str, Any]:
    place_KHW = answer.place_score_KHW
    assert place_KHW is not None
    byte_KHW = np.rint(255 * place_KHW).astype(np.uint8)
    return {
        "scores": list(map(float, answer.score_K)),
        "places": {
            "rows": byte_KHW.shape[1],
            "columns": byte_KHW.shape[2],
            "bytes": base64.b64encode(byte_KHW.tobytes()).decode(),
        },
    }


def _jpeg(image_HWC: np.ndarray, side: int) -> bytes:
    image = Image.fromarray(image_HWC)
    image.thumbnail((side, side))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return data.getvalue()


def _names(places: Sequence[str]) -> tuple[str, ...]:
    """Short names: of a run its own, of others the last part; as much of the place as tells them apart."""
    parts = [re.sub(r"/checkpoints/[^/]+$|/export$", "", place.rstrip("/")).split("/") for place in places]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = tuple("/".join(one[-length:]) for one in parts)
        if len(set(names)) == len(names):
            return names
    return tuple(f"{'/'.join(one)} ({number})" for number, one in enumerate(parts, 1))
