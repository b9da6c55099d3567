"""Images that a caller holds in memory."""

from __future__ import annotations

import numpy as np
import pytest

from msltrain.use.read_images import given_pictures, read_pixels, read_square


@pytest.mark.parametrize("shape", [(6, 4, 3), (6, 4)])
def test_an_array_is_seen_as_it_was_when_it_was_given(shape):
    array = np.zeros(shape, np.uint8)
    [picture] = given_pictures(array)
    array[:] = 255  # as a caller does who reads one photograph after the other into it
    assert not read_pixels(picture).any()


def test_a_mirrored_view_of_an_array_is_an_image_too():
    array = np.zeros((6, 4, 3), np.uint8)
    array[:, :2] = 200
    square_1CSS = read_square(given_pictures(array[:, ::-1])[0], 4)
    assert square_1CSS[0, :, :, 3].min() > 100 and not square_1CSS[0, :, :, 0].any()
