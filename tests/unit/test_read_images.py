"""Images that a caller holds in memory, and how much is taken from a server."""

from __future__ import annotations

import io
import urllib.request

import numpy as np
import pytest

from msldata.errors import BadInputError
from msltrain.use import read_images
from msltrain.use.read_images import find_images, given_pictures, read_photo, read_pixels, read_square


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


@pytest.mark.parametrize(("num_bytes", "is_refused"), [(1000, False), (1001, True), (5000, True)])
def test_a_download_that_is_too_large_is_refused_and_not_cut(monkeypatch, num_bytes, is_refused):
    monkeypatch.setattr(read_images, "MAX_DOWNLOAD", 1000)
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: io.BytesIO(bytes(num_bytes)))
    [picture] = find_images(["http://127.0.0.1/a.jpg"])
    if is_refused:
        with pytest.raises(BadInputError, match="larger than 0 MiB"):
            read_photo(picture)
    else:
        assert picture.read() == bytes(num_bytes)
