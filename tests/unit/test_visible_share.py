"""How much of each object a keep mask leaves visible in a robustness study, against counting pixel by pixel."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from msltrain.robustness.visible_share import ObjectBoxes

SIZE = 12
SIZES = [(96, 64), (40, 70), (50, 50), (30, 90)]
"""Width and height of each photograph."""
OBJECTS = [
    [(1, (10, 8, 60, 12)), (0, (50, 30, 20, 30)), (1, (0, 40, 9, 24))],
    [(2, (5, 10, 30, 55))],
    [],
    [
        (0, (20, 70, 15, 40)),
        (0, (1, 2, 4, 60)),
        (2, (29.5, 89.5, 0.2, 0.2)),
        (1, (10, 15, 0, 0)),
    ],
]


def known(objects: list[list[tuple[int, tuple[float, ...]]]]) -> ObjectBoxes:
    rows = [[{"class_index": class_, "box": list(map(float, box))} for class_, box in own] for own in objects]
    kind = pa.list_(pa.struct([("class_index", pa.int16()), ("box", pa.list_(pa.float32(), 4))]))
    width_N, height_N = np.array(SIZES).T
    samples = SimpleNamespace(
        objects=lambda: pa.array(rows, kind),
        shard_set=SimpleNamespace(classes=("a", "b", "c")),
        rows=SimpleNamespace(width_N=width_N, height_N=height_N),
    )
    return ObjectBoxes(samples)  # type: ignore[arg-type]


def share_by_hand(keep_mask_SS: np.ndarray, box: tuple[float, ...], size: tuple[int, int]) -> float:
    left, top, width, height = box
    ranges = []
    for first, length, whole in ((top, height, size[1]), (left, width, size[0])):
        start = min(math.floor(first / whole * SIZE), SIZE - 1)
        ranges.append(range(start, max(min(math.ceil((first + length) / whole * SIZE), SIZE), start + 1)))
    return float(np.mean([keep_mask_SS[y, x] for y in ranges[0] for x in ranges[1]]))


def test_the_least_hidden_object_of_each_class_counts():
    boxes, place_B = known(OBJECTS), np.array([3, 0, 2, 1, 0])
    assert boxes.known
    keep_mask_B1SS = (torch.rand(5, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) > 0.4).float()
    found_BK = boxes.visible_shares(keep_mask_B1SS, place_B)
    assert found_BK.dtype == np.float32
    for row, place in enumerate(place_B.tolist()):
        expected = [-1.0] * 3
        for class_, box in OBJECTS[place]:
            share = share_by_hand(keep_mask_B1SS[row, 0].numpy(), box, SIZES[place])
            expected[class_] = max(expected[class_], share)
        assert found_BK[row] == pytest.approx(expected, abs=1e-6), place


def test_without_any_object_nothing_is_known():
    assert not known([[], [], [], []]).known
