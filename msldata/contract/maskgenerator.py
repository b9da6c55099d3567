"""Irregular masks drawn by the program, for everyone who does not have a set of them.

They imitate the NVIDIA irregular-hole masks: strokes of changing width with bends and gaps, often side by
side, and some solid shapes; half of the masks keep clear of the border. A mask is the same on every machine: pixels
are set by whole numbers, chance is Python's ``random.random``, whose sequence is promised never to change, and of float
arithmetic only what IEEE 754 rounds in one way (+, -, *, /, square root) is used.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

MIN_SIZE = 32
MIN_HOLE_FRACTION = 0.01
MAX_HOLE_FRACTION = 0.75

_NUM_DIRECTIONS = 64
_UNIT = 1024
# cos and sin as whole numbers: their last float digit differs between platforms.
_DIRECTIONS = [
    (
        round(_UNIT * math.cos(2 * math.pi * i / _NUM_DIRECTIONS)),
        round(_UNIT * math.sin(2 * math.pi * i / _NUM_DIRECTIONS)),
    )
    for i in range(_NUM_DIRECTIONS)
]
_GOLDEN = (math.sqrt(5) - 1) / 2


def target_hole_fraction(seed: int, index: int) -> float:
    """The hole fraction that mask ``index`` aims for, in [0.01, 0.75).

    Steps by the golden ratio spread the first N masks evenly over the range for every N, so a mask need not know how
    many others there are.
    """
    start = random.Random(f"hole fraction {seed}").random()
    position = (start + index * _GOLDEN) % 1.0
    return MIN_HOLE_FRACTION + (MAX_HOLE_FRACTION - MIN_HOLE_FRACTION) * position


def generate_hole_mask(seed: int, index: int, size: int = 512) -> np.ndarray:
    """Draw mask ``index``: a function of (seed, index, size) only.

    Even indices never touch the border, odd ones are free to.

    Returns:
        hole_HW: uint8 of shape (size, size), 1 = hole; its mean is within 0.02 of ``target_hole_fraction``.
    """
    chance = random.Random(f"irregular mask {seed} {index} {size}")
    target = target_hole_fraction(seed, index)
    margin = 0
    if index % 2 == 0:
        # The frame leaves room for the holes: a tenth of them, and a sliver, stays visible inside it.
        widest = (1 - math.sqrt(min(1.0, target / 0.9 + 0.02))) / 2
        margin = max(1, int(size * min(widest, 0.04 + 0.07 * chance.random())))
    inner = size - 2 * margin
    canvas = _Canvas(np.zeros((inner, inner), dtype=bool), missing=round(target * size * size))
    style = _Style.draw(chance, size, target)
    while canvas.missing > 0:
        if chance.random() < style.solid_share:
            _draw_solid(canvas, chance, style)
        else:
            _draw_strokes(canvas, chance, style)
    return np.pad(canvas.hole_HW, margin).astype(np.uint8)


@dataclass(slots=True)
class _Canvas:
    """The part of a mask that may become a hole, and how many pixels are still missing."""

    hole_HW: np.ndarray
    missing: int

    @property
    def size(self) -> int:
        return self.hole_HW.shape[0]

    def stamp(self, shape_HW: np.ndarray, x: int, y: int) -> None:
        """Add a small odd-sized bool shape centred at (x, y), cut off at the edge."""
        reach = shape_HW.shape[0] // 2
        top, left = max(0, y - reach), max(0, x - reach)
        bottom, right = min(self.size, y + reach + 1), min(self.size, x + reach + 1)
        if top >= bottom or left >= right:
            return
        window = self.hole_HW[top:bottom, left:right]
        shape_HW = shape_HW[top - y + reach : bottom - y + reach, left - x + reach : right - x + reach]
        before = np.count_nonzero(window)
        window |= shape_HW
        self.missing -= int(np.count_nonzero(window) - before)


@dataclass(frozen=True, slots=True)
class _Style:
    """What the strokes of one mask have in common."""

    radius: int
    """Half the usual stroke width in pixels."""
    largest_radius: int
    """Small enough that one stamp more or less stays within the promised hole fraction."""
    square: bool
    """Brush shape: square corners or round ones."""
    solid_share: float
    gap_chance: float
    """Per step; a gap leaves separate dots."""
    bend: float
    """How strongly strokes wander."""
    corner_chance: float
    heading: int
    """The direction that most strokes of this mask take, of 64."""

    @classmethod
    def draw(cls, chance: random.Random, size: int, target: float) -> _Style:
        # Fine lines cannot fill a heavy mask in reasonable time, and in the real masks they do not.
        finest, widest = 0.02 * math.sqrt(target), 0.02 + 0.04 * math.sqrt(target)
        radius = size * (finest + (widest - finest) * _mostly_small(chance))
        return cls(
            radius=max(1, int(radius)),
            largest_radius=max(1, int(size * 0.06)),
            square=chance.random() < 0.6,
            solid_share=_mostly_small(chance) * 0.35,
            gap_chance=_mostly_small(chance) * 0.12,
            bend=chance.random() * 2.5,
            corner_chance=chance.random() * 0.08,
            heading=_below(chance, _NUM_DIRECTIONS),
        )


def _below(chance: random.Random, stop: int) -> int:
    """A whole number in [0, stop); unlike ``randrange``, ``random`` is promised never to change."""
    return int(chance.random() * stop)


def _mostly_small(chance: random.Random) -> float:
    """A number in [0, 1), below 1/4 half of the time; a product, since powers differ in their last digit."""
    number = chance.random()
    return number * number


@lru_cache(maxsize=256)
def _brush(radius: int, square: bool) -> np.ndarray:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return np.full((2 * radius + 1, 2 * radius + 1), True) if square else x * x + y * y <= radius * radius


def _draw_strokes(canvas: _Canvas, chance: random.Random, style: _Style) -> None:
    """One wandering stroke, or several copies side by side, as a moving object's outlines would leave."""
    x, y = _below(chance, canvas.size) * _UNIT, _below(chance, canvas.size) * _UNIT
    direction = style.heading if chance.random() < 0.6 else _below(chance, _NUM_DIRECTIONS)
    num_copies = 2 + _below(chance, 2) if chance.random() < 0.3 else 1
    side_x, side_y = _DIRECTIONS[(direction + _NUM_DIRECTIONS // 4) % _NUM_DIRECTIONS]
    distance = int(style.radius * (1.5 + 4 * chance.random()))
    radius, curve, gap = style.radius, (chance.random() - 0.5) * style.bend, 0
    turned = 0.0
    length = int(canvas.size * (0.15 + 1.2 * _mostly_small(chance)))
    while length > 0 and canvas.missing > 0:
        radius = max(radius + _below(chance, 3) - 1, style.radius * 3 // 5, 1)
        radius = min(radius, style.radius * 8 // 5, style.largest_radius)
        step = max(1, radius * 2 // 3)
        if gap == 0 and chance.random() < style.gap_chance:
            gap = 3 + _below(chance, 5)
        if chance.random() < style.corner_chance:
            direction += _below(chance, 33) - 16
            curve = (chance.random() - 0.5) * style.bend
        turned += curve + (chance.random() - 0.5) * style.bend
        step_x, step_y = _DIRECTIONS[(direction + int(turned)) % _NUM_DIRECTIONS]
        x, y, length = x + step_x * step, y + step_y * step, length - step
        if gap > 0:
            gap -= 1
            continue
        brush = _brush(radius, style.square)
        for copy in range(num_copies):
            if canvas.missing > 0:
                canvas.stamp(brush, (x + side_x * distance * copy) // _UNIT, (y + side_y * distance * copy) // _UNIT)


def _draw_solid(canvas: _Canvas, chance: random.Random, style: _Style) -> None:
    """An ellipse, a polygon or a blob, unless it would be larger than the missing area."""
    largest = min(canvas.size * 0.22, math.sqrt(canvas.missing * 0.6))
    reach = int(largest * (0.3 + 0.7 * chance.random()))
    if reach < 2:
        return
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    kind = _below(chance, 3)
    if kind == 0:
        cosine, sine = _DIRECTIONS[_below(chance, _NUM_DIRECTIONS)]
        across = max(1, int(reach * (0.2 + 0.6 * chance.random())))
        u, v = x * cosine + y * sine, y * cosine - x * sine
        shape_HW = (u * across) ** 2 + (v * reach) ** 2 <= (_UNIT * reach * across) ** 2
    elif kind == 1:
        shape_HW = np.full((2 * reach + 1, 2 * reach + 1), True)
        first, num_sides = _below(chance, _NUM_DIRECTIONS), 3 + _below(chance, 4)
        for side in range(num_sides):
            jitter = _below(chance, 7) - 3
            cosine, sine = _DIRECTIONS[(first + side * _NUM_DIRECTIONS // num_sides + jitter) % _NUM_DIRECTIONS]
            shape_HW &= x * cosine + y * sine <= int(_UNIT * reach * (0.3 + 0.6 * chance.random()))
    else:
        shape_HW = np.full((2 * reach + 1, 2 * reach + 1), False)
        for _ in range(3 + _below(chance, 4)):
            part = max(1, int(reach * (0.2 + 0.4 * chance.random())))
            centre_x, centre_y = (_below(chance, 2 * (reach - part) + 1) - (reach - part) for _ in range(2))
            shape_HW |= (x - centre_x) ** 2 + (y - centre_y) ** 2 <= part * part
    if np.count_nonzero(shape_HW) <= canvas.missing:
        canvas.stamp(shape_HW, _below(chance, canvas.size), _below(chance, canvas.size))
