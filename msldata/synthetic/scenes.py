"""Drawn underwater scenes with exact labels: several overlapping creatures and things, each with known visible pixels.

A sketch is a list of polygons in its own frame (about -1 to 1, y down), each with a tone. Colours tend towards what is
usual for the class but are often random, so shape and surface decide: fins, ribs, spikes, suckers, planks. Everything
is painted at twice the size and reduced, which smooths the edges; what stays visible of an object is counted on the
painted pixels, so labels and flags are true by construction.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from msldata.synthetic.shapes import SHAPES, Shape

CLASSES = tuple(SHAPES)
"""Names of everything that can be drawn, alphabetical."""

SUPERSAMPLING = 2
NUM_VARIANTS = 32
"""Different sketches per class; they are rotated, stretched and coloured anew each time."""

_UPRIGHT = frozenset({"coral", "seaweed"})
"""Classes that grow from the ground: tilted a little, never upside down."""

_HABITATS = (
    {"fish": 3, "jellyfish": 2, "turtle": 2, "octopus": 0.5},
    {"starfish": 2, "shell": 2, "crab": 1.5, "urchin": 1.5, "seaweed": 1},
    {"coral": 2.5, "fish": 1.5, "urchin": 1, "seaweed": 1, "octopus": 1, "turtle": 0.7},
    {"anchor": 2, "barrel": 2, "octopus": 1, "crab": 1, "fish": 0.7, "coral": 0.7},
)
"""Which classes occur together and how often (open water, sea floor, reef, wreck): context, as in photographs."""

_SMALLEST, _LARGEST = 0.24, 0.66
"""Range of the objects' usual extent, as a share of half the image's side."""

_STRAY = 0.06
"""Weight of a class that is not at home in the habitat."""

_USUAL_SHARE = 0.7
"""Share of objects with roughly the usual hue of their class; the others may have any hue."""

_USUAL_HUES = {
    "anchor": 0.6,
    "barrel": 0.08,
    "coral": 0.93,
    "crab": 0.02,
    "fish": 0.13,
    "jellyfish": 0.8,
    "octopus": 0.9,
    "seaweed": 0.33,
    "shell": 0.05,
    "starfish": 0.07,
    "turtle": 0.27,
    "urchin": 0.75,
}

_SHADOW = [value * 2 // 5 for value in range(256)]


@dataclass(frozen=True, slots=True)
class Creature:
    """One drawn object with at least one visible pixel."""

    name: str
    box: tuple[int, int, int, int]
    """The box of the visible pixels: left, top, right, bottom; right and bottom excluded."""
    visible_area: float
    """Visible area in pixels of the finished image."""
    visible_fraction: float
    """Visible area over the area it would have with nothing in front of it and no border."""
    covered_fraction: float
    """Share of its pixels inside the image that other objects hide."""
    truncated: bool
    """The border cuts off more than 3 % of it."""


def draw_scene(size: int, rng: np.random.Generator) -> tuple[Image.Image, tuple[Creature, ...]]:
    """Paint one scene; equal generators give equal scenes.

    Args:
        size: side of the square image in pixels.
        rng: every choice comes from it.

    Returns:
        The RGB image, and its creatures from back to front, without those that are entirely hidden.
    """
    side = size * SUPERSAMPLING
    canvas = _background(size, rng).resize((side, side), Image.Resampling.BILINEAR)
    owner = Image.new("L", (side, side), 0)
    names = _choose_classes(rng)
    whole: list[int] = []
    inside: list[int] = []
    centres: list[np.ndarray] = []
    for number, name in enumerate(names, start=1):
        radius = 0.5 * side * float(np.exp(rng.uniform(np.log(_SMALLEST), np.log(_LARGEST))))
        centre = rng.uniform(0.08, 0.92, 2) * side
        if centres and rng.random() < 0.45:  # near another one, so that many are partly covered
            centre = centres[rng.integers(len(centres))] + rng.normal(0, 0.9, 2) * radius
            centre = np.clip(centre, 0.05 * side, 0.95 * side)
        centres.append(centre)
        patch, cover, (left, top) = _paint(name, centre, radius, rng)
        shadow = cover.filter(ImageFilter.BoxBlur(2)).point(_SHADOW)
        canvas.paste((8, 14, 20), (left + side // 90, top + side // 60), shadow)
        canvas.paste(patch, (left, top), cover)
        owner.paste(number, (left, top), cover)
        whole.append(cover.histogram()[255])
        seen = cover.crop((max(-left, 0), max(-top, 0), min(side - left, cover.width), min(side - top, cover.height)))
        inside.append(seen.histogram()[255])
    return _develop(canvas.reduce(SUPERSAMPLING), rng), _account(names, np.asarray(owner), whole, inside)


def _account(names: list[str], owner_HW: np.ndarray, whole: list[int], inside: list[int]) -> tuple[Creature, ...]:
    """The visible part of each object, from the map of which object owns which painted pixel."""
    creatures = []
    for number, name in enumerate(names, start=1):
        mine_HW = owner_HW == number
        area = int(np.count_nonzero(mine_HW))
        if area == 0:
            continue
        rows, columns = np.flatnonzero(mine_HW.any(axis=1)), np.flatnonzero(mine_HW.any(axis=0))
        low = (int(columns[0]) // SUPERSAMPLING, int(rows[0]) // SUPERSAMPLING)
        high = (int(columns[-1]) // SUPERSAMPLING + 1, int(rows[-1]) // SUPERSAMPLING + 1)
        creatures.append(
            Creature(
                name=name,
                box=(*low, *high),
                visible_area=area / SUPERSAMPLING**2,
                visible_fraction=area / whole[number - 1],
                covered_fraction=1 - area / inside[number - 1],
                truncated=inside[number - 1] < 0.97 * whole[number - 1],
            )
        )
    return tuple(creatures)


def _choose_classes(rng: np.random.Generator) -> list[str]:
    habitat = _HABITATS[rng.integers(len(_HABITATS))]
    weight = np.array([habitat.get(name, _STRAY) for name in CLASSES])
    chosen = rng.choice(len(CLASSES), int(rng.integers(3, 7)), p=weight / weight.sum())
    return [CLASSES[index] for index in chosen]


@cache
def _sketch(name: str, variant: int) -> tuple[np.ndarray, list[tuple[int, int, str]]]:
    """All corner points (N, 2) of one variant and, per polygon, where its first and last points are, and its tone."""
    shapes: list[Shape] = SHAPES[name](np.random.default_rng([CLASSES.index(name), variant]))
    ends = np.cumsum([len(points) for points, _ in shapes]).tolist()
    spans = [(end - len(points), end, tone) for end, (points, tone) in zip(ends, shapes, strict=True)]
    return np.concatenate([points for points, _ in shapes]), spans


def _paint(
    name: str, centre: np.ndarray, radius: float, rng: np.random.Generator
) -> tuple[Image.Image, Image.Image, tuple[int, int]]:
    """Rotate, stretch, colour and light a sketch: an RGB patch, its cover (L, 0 or 255) and its top left corner."""
    corners, spans = _sketch(name, int(rng.integers(NUM_VARIANTS)))
    turn = rng.normal(0, 0.2) if name in _UPRIGHT else rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    placed = corners @ (rotation * rng.uniform(0.8, 1.15, 2)[:, None] * radius) + centre
    low = np.floor(placed.min(axis=0))
    width, height = (np.ceil(placed.max(axis=0)) - low + 1).astype(int).tolist()
    flat = (placed - low).ravel().tolist()
    tones = _choose_tones(_USUAL_HUES[name], rng)
    patch, cover = Image.new("RGB", (width, height)), Image.new("L", (width, height))
    paint, stencil = ImageDraw.Draw(patch), ImageDraw.Draw(cover)
    for start, end, tone in spans:
        outline = flat[2 * start : 2 * end]
        paint.polygon(outline, fill=tones[tone])
        stencil.polygon(outline, fill=255)
    light = _lamp().resize((width, height), Image.Resampling.BILINEAR)
    return ImageChops.multiply(patch, light), cover, (int(low[0]), int(low[1]))


def _choose_tones(usual_hue: float, rng: np.random.Generator) -> dict[str, tuple[int, int, int]]:
    hue = usual_hue + rng.normal(0, 0.06) if rng.random() < _USUAL_SHARE else rng.random()
    saturation, value = rng.uniform(0.35, 0.9), rng.uniform(0.55, 0.95)
    return {
        "body": _colour(hue, saturation, value),
        "dark": _colour(hue, saturation, value * 0.55),
        "light": _colour(hue, saturation * 0.45, min(value * 1.25, 1)),
        "accent": _colour(rng.random(), rng.uniform(0.4, 0.9), rng.uniform(0.5, 0.95)),
        "white": (245, 245, 240),
        "black": (15, 15, 20),
    }


def _colour(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return int(255 * red), int(255 * green), int(255 * blue)


@lru_cache(maxsize=1)
def _lamp() -> Image.Image:
    """Light from the upper left as an RGB factor: 255 where it shines, darker to the lower right and the rim."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    light = (255 * np.clip(1.02 - 0.2 * (x + y) - 0.12 * (x**2 + y**2), 0.45, 1)).astype(np.uint8)
    return Image.fromarray(np.stack([light, light, light], axis=2))


def _background(size: int, rng: np.random.Generator) -> Image.Image:
    """Water above, ground below, in random colours, with cloudy texture at three scales."""
    hue = rng.normal(0.54, 0.09)
    top = np.array(_colour(hue, rng.uniform(0.3, 0.7), rng.uniform(0.5, 0.9)), np.float32)
    bottom = np.array(_colour(hue, rng.uniform(0.5, 0.9), rng.uniform(0.15, 0.45)), np.float32)
    sand = np.array(_colour(rng.normal(0.11, 0.04), rng.uniform(0.2, 0.5), rng.uniform(0.4, 0.8)), np.float32)
    depth_H1 = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    horizon_W = rng.uniform(0.5, 1.2) + 0.06 * _noise(size, 4, rng)[size // 2]
    ground_HW1 = np.clip((depth_H1 - horizon_W) * size / 3, 0, 1)[:, :, None]
    water_H13 = (top + (bottom - top) * depth_H1)[:, None, :]
    texture_HW = 0.10 * _noise(size, 4, rng) + 0.07 * _noise(size, 11, rng) + 0.06 * _noise(size, 32, rng)
    scene_HW3 = (water_H13 + (sand - water_H13) * ground_HW1) * (1 + texture_HW[:, :, None] * (1 + 0.8 * ground_HW1))
    return Image.fromarray(np.clip(scene_HW3, 0, 255).astype(np.uint8))


def _noise(size: int, num_cells: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise, float32 of shape (size, size), about standard normal, with ``num_cells`` bumps along a side."""
    coarse = Image.fromarray(rng.standard_normal((num_cells, num_cells), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _develop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Murk, exposure and grain of a photograph under water."""
    pixels_HW3 = np.asarray(image).astype(np.float32)
    murk, exposure, grain = rng.uniform(0, 0.3), rng.uniform(0.8, 1.15), rng.uniform(2, 7)
    haze = pixels_HW3.mean(axis=(0, 1)) * murk * exposure
    pixels_HW3 *= (1 - murk) * exposure
    pixels_HW3 += haze + grain * rng.standard_normal((*pixels_HW3.shape[:2], 1), dtype=np.float32)
    return Image.fromarray(np.clip(pixels_HW3, 0, 255).astype(np.uint8))
