"""Which boxes a report and a preview draw: those of the objects that count, or that do not, and where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from msldata.contract.manifest import Manifest
from msldata.contract.pixels import decode
from msldata.contract.records import SMALL_BELOW
from msldata.inspect.preview import load_preview
from msldata.inspect.tiles import Box
from msldata.pages.colours import class_colour
from msldata.storage import LocalStorage
from msltrain.measures.predictions import LargestObjects, Origin, Predictions
from msltrain.measures.strata import REFERENCE_AREA
from msltrain.report.examples import _hidden, _small, read_examples
from tests.smallshards import CLASSES, photo, thing, write_images

THINGS = [
    thing(0, 1, 2, 3, 4),
    thing(0, 11, 2, 4, 5, difficult=True),
    thing(2, 21, 2, 5, 6, crowd=True),
    thing(1, 31, 2, 6, 7, difficult=True, crowd=True),
]


@pytest.fixture
def shards(tmp_path: Path) -> Manifest:
    """Two shards of two; the first photograph of the second one has objects."""
    return write_images(tmp_path, [2, 2], size=(60, 40), objects={"s000002": THINGS})


def predictions(manifest: Manifest, numbers: str, classes: tuple[str, ...]) -> Predictions:
    shape = len(numbers), len(classes)
    none = np.full(shape, -1, np.int8)
    return Predictions(
        keys=tuple(f"s00000{number}" for number in numbers),
        logit_NK=np.zeros(shape, np.float32),
        target_NK=np.zeros(shape, np.uint8),
        ignore_NK=np.zeros(shape, bool),
        classes=classes,
        objects=LargestObjects.of_arrays(
            area_NK=np.zeros(shape, np.float32), truncated_NK=none, occluded_NK=none, crowd_NK=none
        ),
        origin=Origin(dataset_fingerprint=manifest.fingerprint, image_size=32),
    )


# Of samples that were skipped there is no row; a model may know fewer classes, in another order.
@pytest.mark.parametrize("numbers", ["0123", "023", "2"])
@pytest.mark.parametrize(("classes", "first", "last"), [(CLASSES, 0, 2), ((CLASSES[2], CLASSES[0]), 1, 0)])
def test_a_report_draws_boxes_of_the_objects_that_count(
    shards: Manifest, tmp_path: Path, numbers: str, classes: tuple[str, ...], first: int, last: int
):
    """A difficult object is neither right nor wrong, and nobody is to look for it in the picture."""
    row = numbers.index("2")
    [example] = read_examples([row], predictions(shards, numbers, classes), tmp_path)
    assert example.row == row and np.array_equal(np.asarray(example.image), decode(photo(2, 60, 40)))
    assert example.boxes == ((first, (1, 2, 3, 4)), (last, (21, 2, 5, 6)))
    assert example.keep_mask_HW is None


def test_a_preview_draws_all_and_those_that_do_not_count_faintly(shards: Manifest, tmp_path: Path):
    tiles = load_preview(LocalStorage(tmp_path), num=4).tiles
    assert [tile.key for tile in tiles] == [f"s00000{number}" for number in range(4)]
    assert [len(tile.boxes) for tile in tiles] == [0, 0, 4, 0]
    assert tiles[2].boxes == tuple(
        Box(CLASSES[k], class_colour(k), *map(float, box), faint)
        for k, box, faint in (
            (0, (1, 2, 3, 4), False),
            (0, (11, 2, 4, 5), True),
            (2, (21, 2, 5, 6), True),
            (1, (31, 2, 6, 7), True),
        )
    )
    assert [(label.name, label.ignored) for label in tiles[0].labels] == [(CLASSES[0], False), (CLASSES[1], True)]


def test_small_and_hidden_objects_are_those_that_are_known_to_be():
    """Where the area is unknown, 0 stands for it, and -1 for a flag; small is by share of the picture where that is
    told: an object of 900 square pixels fills half of a tiny one."""
    small = SMALL_BELOW / REFERENCE_AREA
    columns: dict[str, np.ndarray] = {
        "area_NK": np.float32([[0, 900], [1023, 1024], [50_000, 900]]),
        "truncated_NK": np.int8([[1, 0], [-1, -1], [0, -1]]),
        "occluded_NK": np.int8([[0, -1], [1, -1], [0, 0]]),
        "crowd_NK": np.zeros((3, 2), np.int8),
    }
    absolute = LargestObjects.of_arrays(**columns)
    assert _small(absolute).tolist() == [[False, True], [True, False], [False, True]]
    assert _hidden(absolute).tolist() == [[True, False], [True, False], [False, False]]
    columns["relative_area_NK"] = np.float32([[0, 0.9 * small], [1.1 * small, small], [0.9 * small, 0.5]])
    columns["covered_NK"] = np.float32([[-1, 0.25], [-1, 0.26], [0, -1]])
    relative = LargestObjects.of_arrays(**columns)
    assert _small(relative).tolist() == [[False, True], [False, False], [True, False]]
    assert _hidden(relative).tolist() == [[True, False], [True, True], [False, False]]
