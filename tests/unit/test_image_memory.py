"""Decoded photographs that are kept in memory: copies, of each as it was reduced, up to the limit."""

from __future__ import annotations

import numpy as np

from msltrain.stream.pixels.imagecache import ImageCache


def image(value: int, height: int = 4) -> np.ndarray:
    return np.full((height, 5, 3), value, np.uint8)


def found(cache: ImageCache, *wanted: tuple[int, int]) -> dict[int, int]:
    """The value of each image that is found, by its position among what is wanted."""
    index_N, reduction_N = np.array(wanted).T
    return {position: int(pixels[0, 0, 0]) for position, pixels in cache.find(index_N, reduction_N).items()}


def test_what_is_kept_does_not_change_with_the_memory_that_it_was_decoded_into():
    cache, scratch = ImageCache(1000), image(1)
    cache.offer(7, 1, scratch)
    scratch[:] = 2
    cache.offer(8, 1, scratch)
    scratch[:] = 3
    assert found(cache, (7, 1), (8, 1)) == {0: 1, 1: 2}


def test_an_image_reduced_is_another_one():
    cache = ImageCache(1000)
    assert found(cache, (7, 1)) == {}
    cache.offer(7, 2, image(1))
    assert found(cache, (7, 1), (2, 7), (7, 2)) == {2: 1}
    cache.offer(7, 1, image(5))
    cache.offer(7, 2, image(9))
    assert found(cache, (7, 2), (7, 1)) == {0: 1, 1: 5} and len(cache) == 2, "what is there stays as it is"


def test_the_first_ones_are_kept_up_to_the_limit_and_a_smaller_one_may_still_fit():
    cache = ImageCache(4 * 5 * 3 + 2 * 5 * 3)
    cache.offer(0, 1, image(1))
    cache.offer(1, 1, image(2))
    assert found(cache, (0, 1), (1, 1)) == {0: 1} and cache.num_bytes == 60
    cache.offer(2, 1, image(3, height=2))
    cache.offer(3, 1, image(4, height=1))
    assert found(cache, (0, 1), (1, 1), (2, 1), (3, 1)) == {0: 1, 2: 3}
    assert cache.num_bytes == 90 and len(cache) == 2
