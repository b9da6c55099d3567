"""Where a timm classifier sees a class: each place on maps that are not square, and tokens with any number before them;
and what is painted over a photograph of any shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from msltrain.use import overlay
from msltrain.use.class_activation import logits_and_place_logits
from msltrain.use.overlay import (
    PANEL_SIDE,
    RAMP,
    STRONGEST,
    Panel,
    Row,
    _sheet_names,
    draw_sheet,
    hide,
    paint,
    thumbnail,
)

WEIGHT_KD = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.25, -3.0]])


class OfMaps(nn.Module):
    """A head that takes the mean over places."""

    def __init__(self, output_fmt: str):
        super().__init__()
        self.output_fmt = output_fmt

    def forward_features(self, image_BCHW: Tensor) -> Tensor:
        feature_BDHW = image_BCHW[:, :2]
        return feature_BDHW.permute(0, 2, 3, 1) if self.output_fmt == "NHWC" else feature_BDHW

    def forward_head(self, feature: Tensor) -> Tensor:
        return feature.mean((1, 2) if self.output_fmt == "NHWC" else (2, 3)) @ WEIGHT_KD.T


class OfTokens(nn.Module):
    """A head that takes the mean over all tokens, those before the patches too."""

    def __init__(self, num_prefix_tokens: int):
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens

    def forward_features(self, image_BCHW: Tensor) -> Tensor:
        token_BND = image_BCHW[:, :2].flatten(2).transpose(1, 2)
        return torch.cat([7 * token_BND[:, : self.num_prefix_tokens], token_BND], dim=1)

    def forward_head(self, token_BND: Tensor) -> Tensor:
        assert token_BND.shape[1] > self.num_prefix_tokens
        weight_N = torch.ones(token_BND.shape[1])
        weight_N[: self.num_prefix_tokens] = 3
        return (token_BND * weight_N[:, None]).sum(1) / weight_N.sum() @ WEIGHT_KD.T


@pytest.mark.parametrize(
    ("network", "rows", "columns"),
    [
        (OfMaps("NCHW"), 2, 3),
        (OfMaps("NHWC"), 2, 3),
        (OfMaps("NHWC"), 4, 1),
        *((OfTokens(number), 3, 3) for number in (0, 1, 4)),
    ],
)
def test_each_place_is_asked_as_if_all_were_like_it(network: nn.Module, rows: int, columns: int):
    image_BCHW = torch.randn(2, 3, rows, columns, generator=torch.Generator().manual_seed(0))
    logit_BK, place_BKHW = logits_and_place_logits(network, image_BCHW)
    torch.testing.assert_close(logit_BK, network.forward_head(network.forward_features(image_BCHW)))  # type: ignore[operator]
    assert place_BKHW.shape == (2, 3, rows, columns)
    for n, row, column in np.ndindex(2, rows, columns):
        torch.testing.assert_close(place_BKHW[n, :, row, column], WEIGHT_KD @ image_BCHW[n, :2, row, column])


def test_the_photograph_is_mostly_grey_below_and_the_colour_as_strong_as_the_score():
    photo_HWC = np.array([[[200, 100, 0], [0, 100, 200], [40, 40, 40], [250, 250, 0]]] * 2, np.uint8)
    score_HW = np.array([[0.0, 0.5, 1.0, 1.4], [-0.3, 0.25, 0.125, 0.75]])
    painted_HWC = paint(photo_HWC, score_HW)
    for row, column in np.ndindex(2, 4):
        red, green, blue = photo_HWC[row, column].astype(float)
        grey = 0.299 * red + 0.587 * green + 0.114 * blue
        below = 0.8 * grey + 0.2 * np.array([red, green, blue])
        score = min(max(score_HW[row, column], 0), 1)
        step, rest = divmod(4 * score, 1)
        colours = np.array([*RAMP, RAMP[-1]], float)
        colour = (1 - rest) * colours[int(step)] + rest * colours[int(step) + 1]
        expected = (1 - STRONGEST * score) * below + STRONGEST * score * colour
        assert np.abs(painted_HWC[row, column] - expected).max() < 0.51  # to the nearest level


def test_a_sheet_shows_each_version_as_it_was_seen_and_how_much_was_hidden(monkeypatch: pytest.MonkeyPatch):
    """Both rows with the panels of their own scores, over their own picture."""
    texts: list[str] = []
    monkeypatch.setattr(overlay, "_write", lambda draw, at, text, *more, **style: texts.append(text))
    photo_HWC = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    keep_SS = np.ones((10, 10), np.uint8)
    keep_SS[:3] = 0
    places = [np.random.default_rng(number).random((2, 3)) for number in range(4)]
    rows = [
        Row(None, [Panel("a", True, places[0]), Panel("b", False, places[1])]),
        Row(keep_SS, [Panel("c", False, places[2]), Panel("d", True, places[3])]),
    ]
    sheet_HWC = np.asarray(draw_sheet("x.jpg", photo_HWC, rows, (9, 8, 7)))
    assert texts[:7] == ["x.jpg", "the whole image", "a", "b", "30 % hidden", "c", "d"]
    hidden_HWC = hide(photo_HWC, keep_SS, (9, 8, 7))
    assert (hidden_HWC[:12] == (9, 8, 7)).all() and np.array_equal(hidden_HWC[12:], photo_HWC[12:])
    across, down = 130 + 12, 40 + 22 + 12
    for number, seen_HWC in enumerate((photo_HWC, hidden_HWC)):
        top = 12 + 22 + number * down + 22
        shown = [seen_HWC, *(paint(seen_HWC, panel.place_score_HW) for panel in rows[number].panels)]
        for column, expected_HWC in enumerate(shown):
            left = 12 + column * across
            assert np.array_equal(sheet_HWC[top : top + 40, left : left + 60], expected_HWC)


@pytest.mark.parametrize("size", [(60, 30), (30, 60), (700, 20), (3000, 2000), (2, 900)])
def test_a_thumbnail_has_the_photographs_shape(size: tuple[int, int]):
    small = thumbnail(np.asarray(Image.new("RGB", size)))
    width, height = (max(1, round(PANEL_SIDE * side / max(size))) for side in size)
    assert small.shape == (height, width, 3)


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["p/a.jpg", "p/b.png"], ["a.jpg", "b.png.jpg"]),
        (["p/a/x.jpg", "p/b/x.jpg"], ["a/x.jpg", "b/x.jpg"]),
        (["p/a/x.jpg", "p/a/y.jpg", "p/z.jpg"], ["a/x.jpg", "a/y.jpg", "z.jpg"]),
        (["p/X.jpg", "p/x.JPG", "p/x.jpg.jpg"], ["X.jpg", "x-2.jpg", "x.jpg.jpg"]),
        (["shards/test#000", "shards/test#001"], ["000.jpg", "001.jpg"]),
        (["https://a.org/x.jpg?size=2", "https://a.org/../.y.jpg"], ["x.jpg", "image/y.jpg"]),
        (["one.jpg"], ["one.jpg"]),
        ([], []),
    ],
)
def test_a_sheet_is_where_its_photograph_lies_below_what_all_share(names: list[str], files: list[str]):
    assert _sheet_names(names) == dict(zip(names, files, strict=True))
