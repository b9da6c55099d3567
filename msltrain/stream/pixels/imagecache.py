"""ImageCache: decoded photographs in memory, so that later epochs need not read or decode them."""

from __future__ import annotations

import threading

import numpy as np


class ImageCache:
    """Whole decoded images up to a limit; the first ones are kept, and nothing is ever dropped.

    Crops differ from epoch to epoch, so the whole image is kept, as it was reduced in decoding: a large photograph
    whose crop asks for another reduction is decoded again. Dropping images for others would gain nothing: an epoch
    needs every image once, in an order that no eviction rule can predict. Safe to use from several threads.

    Args:
        limit: bytes of pixels that it may hold.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._lock = threading.Lock()
        self._images: dict[tuple[int, int], np.ndarray] = {}
        self.num_bytes = 0
        """Bytes of pixels held."""

    def __len__(self) -> int:
        return len(self._images)

    def find(self, index_N: np.ndarray, reduction_N: np.ndarray) -> dict[int, np.ndarray]:
        """Which of the samples ``index_N`` are cached: position in ``index_N`` to image_HWC, uint8, read-only."""
        if not self._images:
            return {}
        wanted = zip(index_N.tolist(), reduction_N.tolist(), strict=True)
        found = ((position, self._images.get(key)) for position, key in enumerate(wanted))
        return {position: image_HWC for position, image_HWC in found if image_HWC is not None}

    def offer(self, index: int, reduction: int, image_HWC: np.ndarray) -> None:
        """Keep a copy of the image of a sample, if it fits."""
        key = index, reduction
        with self._lock:
            if key in self._images or self.num_bytes + image_HWC.nbytes > self._limit:
                return
            self.num_bytes += image_HWC.nbytes
        self._images[key] = image_HWC.copy()
