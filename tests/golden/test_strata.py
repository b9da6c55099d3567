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


def test_limits_of_the_sizes_belong_to_the_larger_side():
    """COCO: small < 32², medium, large >= 96² square pixels; the same limits as shares of 640 × 480."""
    area_N = [1, 1023, 1024, 9215, 9216]
    unknown = np.full((5, 1), -1, np.int8)
    objects = LargestObjects.of_arrays(
        area_NK=np.float32(area_N)[:, None],
        relative_area_NK=np.array(area_N)[:, None] / (640 * 480),
        truncated_NK=unknown,
        occluded_NK=unknown,
        crowd_NK=unknown,
    )
    predictions = Predictions(
        keys=tuple("abcde"),
        logit_NK=np.float32([[5], [4], [3], [2], [1]]),
        target_NK=np.ones((5, 1), np.uint8),
        ignore_NK=np.zeros((5, 1), bool),
        classes=("a",),
        objects=objects,
    )
    counts = {row.name: row.num_positive for row in compute_strata(predictions)}
    assert counts == {"small": 2, "medium": 2, "large": 1, "small share": 2, "medium share": 2, "large share": 1}


def test_covered_objects_by_their_share():
    """Bins exclude their lower edge; 0 is one of its own, and -1, unknown, is in none."""
    covered_N = [-1, 0, 0.01, 0.25, 0.26, 0.5, 0.51, 1.0]
    unknown = np.full((8, 1), -1, np.int8)
    objects = LargestObjects.of_arrays(
        area_NK=np.full((8, 1), 50, np.float32),
        truncated_NK=unknown,
        occluded_NK=np.int8([[1], [1], [0], [-1], [-1], [-1], [-1], [-1]]),
        crowd_NK=unknown,
        covered_NK=np.float32(covered_N)[:, None],
        separated_NK=np.int8([[1], [0], [0], [0], [-1], [-1], [-1], [-1]]),
    )
    predictions = Predictions(
        keys=tuple("abcdefgh"),
        logit_NK=np.float32([[8], [7], [6], [5], [4], [3], [2], [-1]]),
        target_NK=np.ones((8, 1), np.uint8),
        ignore_NK=np.zeros((8, 1), bool),
        classes=("a",),
        objects=objects,
    )
    strata = {row.name: row for row in compute_strata(predictions)}
    assert {name: row.num_positive for name, row in strata.items()} == {
        "small": 8,
        "medium": 0,
        "large": 0,
        "occluded": 2,
        "not occluded": 1,
        "separated": 1,
        "not separated": 3,
        "covered 0 %": 1,
        "covered to 25 %": 2,
        "covered 25–50 %": 2,
        "covered over 50 %": 2,
    }
    assert strata["covered over 50 %"].CR == 0.5
    assert "segments of other annotated objects are seen" in strata_note(predictions)
    by_boxes = replace(predictions, objects=replace(objects, separated_M=None))
    assert "under smaller boxes" in strata_note(by_boxes) and "separated" not in {
        row.name for row in compute_strata(by_boxes)
    }
    nothing = replace(predictions, objects=replace(objects, covered_M=np.zeros(8, np.float32)))
    assert strata_note(nothing) == "" and not any("covered" in row.name for row in compute_strata(nothing))


def test_strata_average_over_the_classes_that_have_one():
    """Class b's only small object stands behind two negatives; class c has no small one."""
    unknown = np.full((4, 3), -1, np.int8)
    predictions = Predictions(
        keys=tuple("abcd"),
        logit_NK=np.float32([[4, 4, 4], [3, 3, 3], [2, 2, 2], [1, -1, 1]]),
        target_NK=np.uint8([[1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0]]),
        ignore_NK=np.zeros((4, 3), bool),
        classes=tuple("xyz"),
        objects=LargestObjects.of_arrays(
            area_NK=np.float32([[5, 0, 9e4], [0, 0, 0], [5, 5, 0], [0, 9e4, 0]]),
            truncated_NK=unknown,
            occluded_NK=unknown,
            crowd_NK=unknown,
        ),
    )
    small, _, large = compute_strata(predictions)
    assert (small.num_positive, small.num_classes) == (3, 2)
    assert small.mAP == pytest.approx(((1 + 2 / 3) / 2 + 1 / 3) / 2)
    assert (large.mAP, large.CR) == (pytest.approx((1 / 3 + 1) / 2), 0.5)
    assert compute_strata(replace(predictions, objects=None)) == ()
    assert strata_note(replace(predictions, objects=None)) == ""


def test_a_score_of_one_half_is_found_and_an_unknown_size_is_none():
    """Logit 0 counts as predicted, as in the rates; an area of 0 says that there is no object."""
    unknown = np.full((3, 1), -1, np.int8)
    predictions = Predictions(
        keys=tuple("abc"),
        logit_NK=np.float32([[0.5], [0], [-0.5]]),
        target_NK=np.ones((3, 1), np.uint8),
        ignore_NK=np.zeros((3, 1), bool),
        classes=("a",),
        objects=LargestObjects.of_arrays(
            area_NK=np.float32([[5], [5], [0]]),
            truncated_NK=unknown,
            occluded_NK=unknown,
            crowd_NK=unknown,
            covered_NK=np.float32([[0.5], [0], [0]]),
        ),
        origin=Origin(resize="fit=64"),
    )
    small = compute_strata(predictions)[0]
    assert (small.name, small.num_positive, small.CR) == ("small", 2, 1.0)
    resized, covered = strata_note(predictions).split("; covered is ")
    assert resized.endswith("the parts of the image do not change with the size") and "fit=64" in resized
    assert covered.startswith("the share of the object's box under smaller boxes")


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
