"""What a study shows in holes: other photographs, cut-outs squeezed into boxes, and which classes that is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from msltrain.robustness.fillings import Filling
from msltrain.stream.keepmasks.fill import make_filling

IMAGE_BCHW = torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
OTHER_BCHW = torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(1))
SHOWN_BK = torch.tensor([[True, False], [False, True], [True, True], [False, False], [True, False]])
BOXES = [(2, 1, 6, 9), None, (0, 0, 12, 12), (7, 10, 12, 12), (11, 0, 12, 1)]
"""(top, left, bottom, right) of each hole, bottom and right exclusive."""


def keep_masks() -> Tensor:
    keep_mask_B1HW = torch.ones(5, 1, 12, 12)
    for mask_1HW, box in zip(keep_mask_B1HW, BOXES, strict=True):
        if box is not None:
            mask_1HW[:, box[0] : box[2], box[1] : box[3]] = 0
    return keep_mask_B1HW


def hidden(kind: str) -> tuple[Tensor, Tensor | None, list[tuple[Any, ...]]]:
    """The images behind the boxes, the classes that show there, and what the donors were asked."""
    asked: list[tuple[Any, ...]] = []

    def donors(keys: np.ndarray, *, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        asked.append((keys.tolist(), seed, epoch))
        return OTHER_BCHW, SHOWN_BK

    filling: Any = Filling.__new__(Filling)
    is_other = kind in ("pasted", "image")
    filling._fill, filling._seed, filling._is_pasted = "mean" if kind == "mean" else "zero", 3, kind == "pasted"
    filling._donors = SimpleNamespace(filling=donors) if is_other else None
    assert filling.shows_classes == is_other
    batch: Any = SimpleNamespace(image_BCHW=IMAGE_BCHW.clone(), key_hash_B=np.arange(5, dtype=np.uint64))
    image_BCHW, shown_BK = filling.hide(batch, keep_masks())
    assert torch.equal(batch.image_BCHW, IMAGE_BCHW), "the next kind of hole is laid over the same images"
    return image_BCHW, shown_BK, asked


@pytest.mark.parametrize("kind", ["pasted", "image"])
def test_other_photographs_show_where_the_holes_are(kind: str):
    image_BCHW, shown_BK, asked = hidden(kind)
    assert asked == [([0, 1, 2, 3, 4], 3, 0)], "every model and every run of a study sees the same ones"
    expected_BCHW = IMAGE_BCHW.clone()
    for number, box in enumerate(BOXES):
        if box is None:
            continue
        top, left, bottom, right = box
        inside = (number, slice(None), slice(top, bottom), slice(left, right))
        squeezed_1CHW = F.interpolate(
            OTHER_BCHW[number : number + 1],
            size=(bottom - top, right - left),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        expected_BCHW[inside] = squeezed_1CHW[0] if kind == "pasted" else OTHER_BCHW[inside]
    torch.testing.assert_close(image_BCHW, expected_BCHW)
    assert shown_BK is not None
    expected_BK = SHOWN_BK.clone()
    expected_BK[1] = False  # nothing is hidden there, so nothing else shows
    assert shown_BK.tolist() == expected_BK.tolist()


def test_what_is_made_of_the_image_itself_shows_no_other_class():
    image_BCHW, shown_BK, asked = hidden("mean")
    filling = make_filling("mean", IMAGE_BCHW, np.arange(5, dtype=np.uint64), seed=3, epoch=0)
    assert filling is not None and shown_BK is None and not asked
    torch.testing.assert_close(image_BCHW, torch.where(keep_masks() == 1, IMAGE_BCHW, filling))
    image_BCHW, shown_BK, _ = hidden("irregular")
    assert torch.equal(image_BCHW, IMAGE_BCHW * keep_masks()) and shown_BK is None
