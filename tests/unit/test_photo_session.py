"""Which photographs ``msl serve`` remembers; a stand-in for a model answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from msltrain.use.photo_session import NotKnown, Studio
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
