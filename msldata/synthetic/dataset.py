"""A synthetic dataset in VOC's own layout: drawn scenes as JPEG, XML with flags, split lists and a class list.

With it, everything after the raw files can be tried without a download, through the code that reads the real VOC2007.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msldata.errors import UserError
from msldata.storage import clear_local_errors
from msldata.synthetic.scenes import CLASSES, Creature, draw_scene
from msldata.workers.engine import run_tasks

OCCLUDED_FROM = 0.2
"""An object is flagged occluded when others hide at least this share of its pixels inside the image."""
DIFFICULT_BELOW = 0.15
"""An object is difficult when less than this share of it is visible …"""
DIFFICULT_AREA = 0.0015
"""… or when its visible pixels are fewer than this share of the image."""

_VAL_SHARE = 0.2
_CHUNK = 50
_JPEG_QUALITY = 92
_STAMP = "synthetic.json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Images ``start`` to ``stop`` (excluded), numbered from 1 over training and test together."""

    folder: str
    start: int
    stop: int
    image_size: int
    seed: int


def write_synthetic_voc(
    root: str | Path,
    *,
    num_train: int,
    num_test: int,
    image_size: int,
    seed: int,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write ``root/VOCdevkit/VOC2007``: images, XML and, in ImageSets/Main, train, val, trainval, test and classes.

    Image i is a function of (seed, i, image_size). The folder appears only when it is complete; if it already exists,
    made with the same options, nothing is done.

    Args:
        root: the folder that gets VOCdevkit.
        num_train: images in trainval, a fifth of which are val.
        num_test: images of test.
        image_size: side of the square images in pixels, 32 or more.
        seed: seed of everything that is drawn.
        num_workers: processes; default: one per available processor.
        progress: called with (images done, images in all).

    Raises:
        UserError: another dataset is in the way, or a size or count is impossible. StorageError: ``root`` cannot be
            written.
    """
    if num_train < 2 or num_test < 1 or image_size < 32:
        raise UserError(
            f"cannot synthesize {num_train} training and {num_test} test images of {image_size} pixels; "
            "at least 2 and 1 images of 32 pixels are needed"
        )
    final = Path(root) / "VOCdevkit" / "VOC2007"
    options = {
        "num_train": num_train,
        "num_test": num_test,
        "image_size": image_size,
        "seed": seed,
        "version": _VERSION,
    }
    if final.exists():
        _check_same(final, options)
        return
    staged = final.with_name("VOC2007.part")
    last = num_train + num_test + 1
    chunks = [
        _Chunk(str(staged), start, min(start + _CHUNK, last), image_size, seed) for start in range(1, last, _CHUNK)
    ]
    done = 0

    def count(num_written: int) -> None:
        nonlocal done
        done += num_written
        if progress is not None:
            progress(done, num_train + num_test)

    with clear_local_errors(str(final)):
        shutil.rmtree(staged, ignore_errors=True)
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (staged / name).mkdir(parents=True)
        run_tasks(_write_chunk, chunks, num_workers, count)
        _write_lists(staged / "ImageSets" / "Main", num_train, num_test)
        (staged / _STAMP).write_text(json.dumps(options, indent=2) + "\n")
        os.replace(staged, final)


def image_id(number: int) -> str:
    """The id of an image: six digits, as in VOC."""
    return f"{number:06d}"


def is_difficult(creature: Creature, image_size: int) -> bool:
    """Whether too little of an object is visible for it to count as a label."""
    return creature.visible_fraction < DIFFICULT_BELOW or creature.visible_area < DIFFICULT_AREA * image_size**2


def annotation_xml(number: int, image_size: int, creatures: tuple[Creature, ...]) -> str:
    """VOC's XML: boxes count pixels from 1 and include both corners."""
    objects = "".join(_object_xml(creature, image_size) for creature in creatures)
    return (
        "<annotation>\n"
        f"\t<folder>VOC2007</folder>\n\t<filename>{image_id(number)}.jpg</filename>\n"
        "\t<source>\n\t\t<database>synthetic reef</database>\n\t</source>\n"
        f"\t<size>\n\t\t<width>{image_size}</width>\n\t\t<height>{image_size}</height>\n\t\t<depth>3</depth>\n\t</size>\n"
        f"\t<segmented>0</segmented>\n{objects}</annotation>\n"
    )


def _object_xml(creature: Creature, image_size: int) -> str:
    left, top, right, bottom = creature.box
    return (
        f"\t<object>\n\t\t<name>{creature.name}</name>\n\t\t<pose>Unspecified</pose>\n"
        f"\t\t<truncated>{int(creature.truncated)}</truncated>\n"
        f"\t\t<occluded>{int(creature.covered_fraction >= OCCLUDED_FROM)}</occluded>\n"
        f"\t\t<difficult>{int(is_difficult(creature, image_size))}</difficult>\n"
        f"\t\t<bndbox>\n\t\t\t<xmin>{left + 1}</xmin>\n\t\t\t<ymin>{top + 1}</ymin>\n"
        f"\t\t\t<xmax>{right}</xmax>\n\t\t\t<ymax>{bottom}</ymax>\n\t\t</bndbox>\n\t</object>\n"
    )


def _write_chunk(chunk: _Chunk) -> int:
    folder = Path(chunk.folder)
    for number in range(chunk.start, chunk.stop):
        image, creatures = draw_scene(chunk.image_size, np.random.default_rng([chunk.seed, number]))
        image.save(folder / "JPEGImages" / f"{image_id(number)}.jpg", quality=_JPEG_QUALITY)
        xml = annotation_xml(number, chunk.image_size, creatures)
        (folder / "Annotations" / f"{image_id(number)}.xml").write_text(xml, encoding="utf-8")
    return chunk.stop - chunk.start


def _write_lists(folder: Path, num_train: int, num_test: int) -> None:
    ids = [image_id(number) for number in range(1, num_train + num_test + 1)]
    first_val = num_train - max(1, round(_VAL_SHARE * num_train))
    lists = {
        "train": ids[:first_val],
        "val": ids[first_val:num_train],
        "trainval": ids[:num_train],
        "test": ids[num_train:],
        "classes": CLASSES,
    }
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _check_same(folder: Path, options: dict[str, int]) -> None:
    try:
        found = json.loads((folder / _STAMP).read_text())
    except (OSError, ValueError):
        raise UserError(
            f"{folder}: something else is here, not a synthetic dataset; choose another folder with --out"
        ) from None
    if found != options:
        raise UserError(
            f"{folder}: a synthetic dataset made with other options is here ({found}, asked for {options}); "
            "delete it, or choose another folder with --out"
        )
