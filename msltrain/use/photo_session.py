"""What ``msl serve`` shows: a predictor, example pictures, and the photographs it was shown lately.

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
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from msldata.contract.keepmask import decode_png, resize_nearest
from msltrain.use.overlay import RAMP, STRONGEST
from msltrain.use.predict import Answer, Predictor
from msltrain.use.read_images import Picture, read_pixels, squash

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
    square_1CSS: Tensor
    jpeg: bytes


class Studio:
    """A predictor, example pictures, and the photographs it was shown lately. Safe to use from several threads.

    Args:
        predictor: answers.
        examples: pictures to offer; at most ``MAX_EXAMPLES`` of them, spread evenly, are.
    """

    def __init__(self, predictor: Predictor, examples: Sequence[Picture] = ()):
        self.predictor = predictor
        step = max(1, len(examples) / MAX_EXAMPLES)
        self.examples = [examples[int(n * step)] for n in range(min(len(examples), MAX_EXAMPLES))]
        self._photos: OrderedDict[str, _Photo] = OrderedDict()
        self._lock = threading.Lock()
        # One photograph at a time, for a small file may hold a hundred million pixels; and always in the same thread,
        # for each that decodes and resizes keeps memory of its own.
        self._decoder = ThreadPoolExecutor(1)
        self._answers = _Batches(lambda squares, masks: predictor.answer(squares, masks, with_places=True))

    def close(self) -> None:
        """Answer what was asked, and end the threads."""
        self._decoder.shutdown()
        self._answers.close()

    def model(self) -> dict[str, Any]:
        """What the page must know of the model."""
        return {
            "name": str(self.predictor.path),
            "classes": self.predictor.classes,
            "thresholds": [round(float(threshold), 4) for threshold in self.predictor.threshold_K],
            "threshold_origin": self.predictor.threshold_origin,
            "examples": [re.split(r"[/\\#]", picture.name)[-1] for picture in self.examples],
            "hole_colour": self.predictor.hole_colour,
            "ramp": RAMP,
            "strongest": STRONGEST,
        }

    def add(self, picture: Picture) -> dict[str, Any]:
        """Take a photograph in. Raises BadInputError if it is none."""
        photo = self._decoder.submit(self._decode, picture).result()
        # What is shown and what is predicted follow from the pixels, so equal pixels may share an id.
        photo_id = hashlib.sha256(
            f"{photo.width}×{photo.height}".encode() + photo.square_1CSS.numpy().tobytes() + photo.jpeg
        ).hexdigest()[:32]
        with self._lock:
            self._photos[photo_id] = photo
            self._photos.move_to_end(photo_id)
            while len(self._photos) > _NUM_PHOTOS:
                self._photos.popitem(last=False)
        answer = self._answers.ask(photo.square_1CSS, None)
        return {"id": photo_id, "width": photo.width, "height": photo.height, **_as_json(answer)}

    def _decode(self, picture: Picture) -> _Photo:
        image_HWC = read_pixels(picture)
        height, width = image_HWC.shape[:2]
        square_1CSS = squash(image_HWC, self.predictor.image_size)
        return _Photo(width, height, square_1CSS, _jpeg(image_HWC, _SHOWN_SIDE))

    def hide(self, photo_id: str, png: bytes) -> dict[str, Any]:
        """The answer behind a keep mask. Raises NotKnown or BadInputError."""
        photo = self.photo(photo_id)
        size = self.predictor.image_size
        keep_mask_SS = resize_nearest(decode_png(png, "the mask"), size, size)
        answer = self._answers.ask(photo.square_1CSS, keep_mask_SS)
        return {"hidden": round(1 - float(keep_mask_SS.mean()), 4), **_as_json(answer)}

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
        return self._decoder.submit(lambda: _jpeg(read_pixels(example), _EXAMPLE_SIDE)).result()


class _Batches:
    """Answers in a thread of its own, together what was asked at the same time: a batch costs less than its images.

    Args:
        answer: of squares and, for each, a keep mask or None.
    """

    def __init__(self, answer: Callable[[Sequence[Tensor], Sequence[np.ndarray | None]], list[Answer]]):
        self._answer = answer
        self._asked: queue.SimpleQueue[tuple[Tensor, np.ndarray | None, Future[Answer]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ask(self, square_1CSS: Tensor, keep_mask_SS: np.ndarray | None) -> Answer:
        """The answer, when there is one."""
        future: Future[Answer] = Future()
        self._asked.put((square_1CSS, keep_mask_SS, future))
        return future.result()

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
                answers = self._answer([square for square, _, _ in asked], [mask for _, mask, _ in asked])
            except Exception as error:
                for _, _, future in asked:
                    future.set_exception(error)
                continue
            for (_, _, future), answer in zip(asked, answers, strict=True):
                future.set_result(answer)


def _as_json(answer: Answer) -> dict[str, Any]:
    place_KHW = answer.place_score_KHW
    assert place_KHW is not None
    byte_KHW = np.rint(255 * place_KHW).astype(np.uint8)
    return {
        "scores": [round(float(score), 5) for score in answer.score_K],
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
