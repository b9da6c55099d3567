"""Size and occlusion strata against values worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from msldata.contract.format import OBJECT_TYPE
from msltrain.measures.predictions import LargestObjects, Origin, Predictions, largest_objects
from msltrain.measures.strata import compute_strata, strata_note


def thing(class_index, area, *, difficult=False, truncated=None, occluded=None, crowd=False):
    return {
        "class_index": class_index,
        "box": [0, 0, 1, 1],
        "area": area,
        "difficult": difficult,
        "truncated": truncated,
        "occluded": occluded,
        "crowd": crowd,
    }


def test_the_largest_object_that_is_not_difficult_decides():
    first = [thing(0, 50), thing(0, 2000, truncated=True), thing(0, 9e4, difficult=True)]
    third = [thing(1, 7, occluded=False, crowd=True)]
    column = pa.array([first, [], third], pa.list_(OBJECT_TYPE))
    objects = largest_objects(column, 2, np.array([4000, 9, 28]))
    assert objects is not None
    assert objects.dense("area").tolist() == [[2000, 0], [0, 0], [0, 7]]
    assert objects.dense("relative_area") is not None
    assert objects.dense("relative_area").tolist() == [[0.5, 0], [0, 0], [0, 0.25]]
    assert objects.dense("truncated").tolist() == [[1, -1], [-1, -1], [-1, -1]]
    assert objects.dense("occluded").tolist() == [[-1, -1], [-1, -1], [-1, 0]]
    assert objects.dense("crowd").tolist() == [[0, -1], [-1, -1], [-1, 1]]


def test_no_object_annotations_means_no_strata():
    assert largest_objects(pa.array([[], []], pa.list_(OBJECT_TYPE)), 2, np.ones(2)) is None


def test_strata_by_hand():
    # One class, ranked in sample order: small, negative, large, large (missed), ignored.
    area = np.float32([[100], [0], [10_000], [9_216], [5]])
    truncated = np.int8([[1], [-1], [0], [1], [0]])
    unknown = np.full((5, 1), -1, np.int8)
    predictions = Predictions(
        keys=tuple("abcde"),
        logit_NK=np.float32([[4], [3], [2], [-1], [9]]),
        target_NK=np.uint8([[1], [0], [1], [1], [0]]),
        ignore_NK=np.array([[False], [False], [False], [False], [True]]),
        classes=("a",),
        objects=LargestObjects.of_arrays(area_NK=area, truncated_NK=truncated, occluded_NK=unknown, crowd_NK=unknown),
    )
    strata = {row.name: row for row in compute_strata(predictions)}
    assert list(strata) == ["small", "medium", "large", "truncated", "not truncated"]

    assert (strata["small"].mAP, strata["small"].CR, strata["small"].num_positive) == (1.0, 1.0, 1)
    assert (strata["medium"].mAP, strata["medium"].CR, strata["medium"].num_classes) == (None, None, 0)
    # Large positives stand at ranks 2 and 3 behind the one negative: (1/2 + 2/3) / 2.
    assert strata["large"].mAP == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert strata["large"].CR == 0.5
    # Truncated: ranks 1 and 3 of (small, negative, missed).
    assert strata["truncated"].mAP == pytest.approx((1 + 2 / 3) / 2)


def test_sizes_relative_to_the_image_and_the_note_about_resized_shards():
    # COCO's limits on 640 x 480: a third of a percent and three percent of the image.
    unknown = np.full((3, 1), -1, np.int8)
    objects = LargestObjects.of_arrays(
        area_NK=np.float32([[100], [100], [100]]),
        relative_area_NK=np.float32([[0.0033], [0.0034], [0.03]]),
        truncated_NK=unknown,
        occluded_NK=unknown,
        crowd_NK=np.int8([[1], [0], [-1]]),
    )
    predictions = Predictions(
        keys=tuple("abc"),
        logit_NK=np.float32([[1], [2], [3]]),
        target_NK=np.uint8([[1], [1], [1]]),
        ignore_NK=np.zeros((3, 1), bool),
        classes=("a",),
        objects=objects,
    )
    counts = {row.name: row.num_positive for row in compute_strata(predictions)}
    assert counts == {
        "small": 3,
        "medium": 0,
        "large": 0,
        "small share": 1,
        "medium share": 1,
        "large share": 1,
        "crowded": 1,
        "not crowded": 1,
    }
    assert strata_note(predictions) == ""
    assert "shorter=448" in strata_note(replace(predictions, origin=Origin(resize="shorter=448")))
