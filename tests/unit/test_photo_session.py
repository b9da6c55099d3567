"""Which photographs ``msl serve`` remembers, and what its models are asked; a stand-in for a model answers."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from msldata.contract.keepmask import encode_png
from msltrain.use.photo_session import MAX_EXAMPLES, NotKnown, Studio, readable_examples
from msltrain.use.predict import Answer
from msltrain.use.read_images import Photo, Picture
from tests.smallshards import photo


class StandIn:
    image_size, view, path, classes = 8, None, Path("run"), ("cat",)

    def seen(self, photo: Photo) -> Photo:
        return photo

    def answer(self, squares: Sequence[Tensor], *_: Any, **__: Any) -> list[Answer]:
        return [Answer(np.zeros(1, np.float32), np.zeros((1, 1, 1), np.float32)) for _ in squares]


def test_a_photograph_that_is_shown_again_is_the_newest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("msltrain.use.photo_session._NUM_PHOTOS", 2)
    pictures = [Picture(f"{number}.jpg", lambda number=number: photo(number, 40, 30)) for number in range(3)]
    studio = Studio([StandIn()])  # type: ignore[list-item]
    try:
        first, second = (studio.add(picture)["id"] for picture in pictures[:2])
        assert studio.add(pictures[0])["id"] == first
        third = studio.add(pictures[2])["id"]
        assert studio.photo(first) and studio.photo(third)
        with pytest.raises(NotKnown):
            studio.photo(second)
    finally:
        studio.close()


def test_a_photograph_may_be_hidden_again_and_again_and_outlives_an_answer_that_failed():
    class Failing(StandIn):
        def answer(self, squares: Sequence[Tensor], masks: Sequence[np.ndarray | None], **_: Any) -> list[Answer]:
            if any(mask is not None and not mask.any() for mask in masks):
                raise RuntimeError("out of memory")
            return super().answer(squares)

    studio = Studio([Failing()])  # type: ignore[list-item]
    try:
        shown = studio.add(Picture("0.jpg", lambda: photo(0, 40, 30)))["id"]
        for hidden in (0.0, 1.0, 0.0):
            mask = encode_png(np.full((4, 4), 1 - int(hidden), np.uint8))
            with pytest.raises(RuntimeError, match="out of memory") if hidden else nullcontext():
                assert studio.hide(shown, mask)["hidden"] == hidden
            studio._answers._thread.join(0.1)
            assert studio._answers._thread.is_alive(), "else the next question waits for ever"
    finally:
        studio.close()


def test_a_broken_photograph_is_no_example_and_another_takes_its_place():
    whole = photo(1, 400, 300)
    data = [whole] * 15
    data[0] = data[5] = whole[: len(whole) // 2]
    pictures = [Picture(f"{number}.jpg", lambda one=one: one) for number, one in enumerate(data)]
    kept, broken = readable_examples(pictures)
    names = [picture.name for picture in kept]
    assert len(names) == MAX_EXAMPLES == len(set(names)) and not {"0.jpg", "5.jpg"} & set(names)
    assert names == sorted(names, key=lambda name: int(name.partition(".")[0]))
    assert {error.file for error in broken} <= {"0.jpg", "5.jpg"} and broken
    assert [picture.name for picture in readable_examples(pictures[:3])[0]] == ["1.jpg", "2.jpg"]


def test_photographs_that_look_the_same_are_kept_apart_where_a_model_sees_them_differ(monkeypatch: pytest.MonkeyPatch):
    """What is shown of them may be equal to the byte, and the squares that are predicted are not."""
    monkeypatch.setattr("msltrain.use.photo_session._jpeg", lambda image_HWC, side: b"both")
    pixel_HWC = np.full((30, 40, 3), 120, np.uint8)
    other_HWC = pixel_HWC.copy()
    other_HWC[8:24, 8:24] += 1
    studio = Studio([StandIn()])  # type: ignore[list-item]
    try:
        one, other, again = (
            studio.add(Picture("a", lambda pixels=pixels: pixels))["id"] for pixels in (pixel_HWC, other_HWC, pixel_HWC)
        )
        first, second = studio.photo(one), studio.photo(other)
    finally:
        studio.close()
    assert one == again != other and not torch.equal(first.square_of[8], second.square_of[8])


class NearIts(StandIn):
    """A model that answers just below its threshold."""

    threshold_K, threshold_origin, hole_colour = np.array([0.50004]), "said", (0, 0, 0)

    def answer(self, squares: Sequence[Tensor], *_: Any, **__: Any) -> list[Answer]:
        return [Answer(np.float32([0.500035]), np.zeros((1, 1, 1), np.float32)) for _ in squares]


def test_the_page_gets_scores_and_thresholds_that_agree_with_predict():
    """Rounded, a score below its threshold reached it, and a tiny threshold was 0."""
    studio = Studio([NearIts()])  # type: ignore[list-item]
    try:
        [answer] = studio.add(Picture("0.jpg", lambda: photo(0, 40, 30)))["answers"]
        [model] = studio.about()["models"]
    finally:
        studio.close()
    assert model["thresholds"] == [0.50004] and answer["scores"] == [float(np.float32(0.500035))]


class Counting(StandIn):
    """Answers with what it is called by, how bright the square is that it sees, and how much of it is visible, and with
    where the mask is visible."""

    def __init__(self, number: int, size: int):
        self.number, self.image_size = number, size

    def answer(self, squares: Sequence[Tensor], masks: Sequence[np.ndarray | None], **_: Any) -> list[Answer]:
        assert len(squares) == len(masks) and all(square.shape[2:] == (self.image_size,) * 2 for square in squares)
        shown = [np.ones((self.image_size, self.image_size)) if mask is None else mask for mask in masks]
        return [
            Answer(np.float32([self.number / 9, square.float().mean() / 255, one.mean()]), np.float32(one[None]))
            for square, one in zip(squares, shown)
        ]


def said(answer: dict[str, Any]) -> tuple[list[float], np.ndarray]:
    places = answer["places"]
    bytes_KHW = np.frombuffer(base64.b64decode(places["bytes"]), np.uint8)
    return answer["scores"], bytes_KHW.reshape(-1, places["rows"], places["columns"])


def test_every_model_is_asked_about_the_photograph_and_its_hole_in_its_own_size():
    studio = Studio([Counting(1, 8), Counting(2, 12), Counting(3, 8)])  # type: ignore[list-item]
    keep_mask_HW = np.ones((24, 48), np.uint8)
    keep_mask_HW[:6, 12:] = 0
    try:
        photos = [Image.new("RGB", (40, 30), (level,) * 3) for level in (30, 90, 210)]
        ids = []
        for image in photos:
            data = io.BytesIO()
            image.save(data, "PNG")
            found = studio.add(Picture("a.png", data.getvalue))
            assert (found["width"], found["height"]) == (40, 30)
            ids.append(found["id"])
            for number, answer in enumerate(found["answers"], 1):
                expected = [number / 9, image.getpixel((0, 0))[0] / 255, 1]  # type: ignore[index]
                assert said(answer)[0] == pytest.approx(expected, abs=1e-4)
        for photo_id, image in zip(ids[::-1], photos[::-1]):
            found = studio.hide(photo_id, encode_png(keep_mask_HW))
            assert found["hidden"] == pytest.approx(3 / 16, abs=1e-4)
            for number, (answer, size) in enumerate(zip(found["answers"], (8, 12, 8), strict=True), 1):
                scores, places_KHW = said(answer)
                expected = [number / 9, image.getpixel((0, 0))[0] / 255, 13 / 16]  # type: ignore[index]
                assert scores == pytest.approx(expected, abs=1e-4)
                mask_SS = np.full((size, size), 255, np.uint8)
                mask_SS[: size // 4, size // 4 :] = 0
                assert places_KHW.tolist() == [mask_SS.tolist()]
    finally:
        studio.close()


def test_questions_of_one_moment_get_their_own_answers():
    """A photograph behind a hole and a whole one, in whatever batch they are answered."""
    studio = Studio([Counting(1, 8), Counting(2, 12)])  # type: ignore[list-item]
    squares = [{size: torch.full((1, 3, size, size), level) for size in (8, 12)} for level in (0, 51, 102, 255)]
    masks: list[dict[int, np.ndarray]] = [{} for _ in squares]
    for row in (1, 3):
        masks[row] = {size: np.ones((size, size), np.uint8) for size in (8, 12)}
        for mask_SS in masks[row].values():
            mask_SS[: len(mask_SS) // 4 * row] = 0
    try:
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(studio._answers.ask, squares * 5, masks * 5))
    finally:
        studio.close()
    for row, answers in enumerate(found):
        level, visible = (0, 0.2, 0.4, 1)[row % 4], (1, 0.75, 1, 0.25)[row % 4]
        for number, answer in enumerate(answers, 1):
            assert answer.score_K.tolist() == pytest.approx([number / 9, level, visible], abs=1e-5)


def test_of_many_examples_a_dozen_are_offered_from_first_to_last():
    pictures = [Picture(f"folder/{number}.jpg", lambda: b"") for number in range(30)]
    for count, expected in ((30, [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27]), (5, [0, 1, 2, 3, 4]), (12, range(12))):
        studio = Studio([StandIn()], pictures[:count])  # type: ignore[list-item]
        studio.close()
        names = [picture.name for picture in studio.examples]
        assert names == [f"folder/{number}.jpg" for number in expected]
        assert studio.example(len(names) - 1).name == names[-1]
        with pytest.raises(NotKnown):
            studio.example(len(names))
