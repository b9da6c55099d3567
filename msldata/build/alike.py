"""Which photographs are to stay in one part of a divided dataset: copies, frames of one scene, those of one place."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

MOST_BITS = 4
"""Of 64, in which the looks of two frames of one scene differ; no two of 3,000 photographs of VOC2007 are so near."""
_LEAST_CONTRAST = 12
"""Standard deviation in grey levels below which a picture, such as the sky or the night, looks like any other."""
_BANDS = MOST_BITS + 1
"""Of two looks that differ in ``MOST_BITS`` bits, one of so many bands is the same."""
_SIDE = 64


def look_of(content: bytes) -> int | None:
    """How a photograph looks from afar, in 64 bits: whether each of 8 × 8 squares is brighter than the one before it
    (a difference hash). None where it cannot be read, or shows too little."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.draft("L", (_SIDE, _SIDE))  # a JPEG is decoded at an eighth of its size
            grey_HW = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    except Exception:  # whatever a damaged file makes Pillow raise; the build says what is wrong with it
        return None
    if grey_HW.std() < _LEAST_CONTRAST:
        return None
    return int.from_bytes(np.packbits(grey_HW[:, 1:] > grey_HW[:, :-1]).tobytes())


def alike(look_N: Sequence[int | None]) -> Iterator[tuple[int, np.ndarray]]:
    """Photographs that look nearly the same, by their positions: one, and int64 of others; a pair may come several
    times."""
    position_M = np.array([n for n, look in enumerate(look_N) if look is not None], dtype=np.int64)
    look_M = np.array([look for look in look_N if look is not None], dtype=np.uint64)
    for band in range(_BANDS):
        first, last = 64 * band // _BANDS, 64 * (band + 1) // _BANDS
        key_M = (look_M >> np.uint64(first)) & np.uint64(2 ** (last - first) - 1)
        order_M = np.argsort(key_M, kind="stable")
        bounds = np.flatnonzero(np.diff(key_M[order_M])) + 1
        for same in np.split(order_M, bounds):
            for start in range(len(same) - 1):
                distance = np.bitwise_count(look_M[same[start + 1 :]] ^ look_M[same[start]])
                if (is_near := distance <= MOST_BITS).any():
                    yield int(position_M[same[start]]), position_M[same[start + 1 :][is_near]]


def joined(num: int, groups: Iterable[tuple[int, Sequence[int] | np.ndarray]]) -> list[int]:
    """The set that each of ``num`` things is in when one and others of a group are in one: its smallest member's
    position."""
    root = list(range(num))

    def find(n: int) -> int:
        while root[n] != n:
            root[n] = root[root[n]]
            n = root[n]
        return n

    known_N = np.arange(num)  # equal ones are in one set; a camera that stands still has millions of pairs
    for one, several in groups:
        others = np.asarray(several, dtype=np.int64)
        for other in others[known_N[others] != known_N[one]].tolist():
            low, high = sorted((find(one), find(other)))
            root[high] = low
        known_N[others] = known_N[one]
    return [find(n) for n in range(num)]
