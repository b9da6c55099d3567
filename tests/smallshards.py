"""Small image and keep-mask datasets for the stream's tests, written through the shard contract itself."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from msldata.build.writer import ShardWriter
from msldata.contract.format import encode_target
from msldata.contract.keepmask import encode_png, hole_fraction
from msldata.contract.manifest import IMAGES, KEEP_MASKS, Manifest, shard_name
from msldata.contract.publish import write_manifest
from msldata.storage import LocalStorage

CLASSES = ("bird", "boat", "cat")


def photo(seed: int, width: int = 60, height: int = 40, mode: str = "RGB") -> bytes:
    """A JPEG with smooth structure, different for every seed."""
    y, x = np.mgrid[0:height, 0:width] / 20.0
    waves = np.stack([np.sin(x * (1 + seed % 5) + c + seed) * np.cos(y + c * seed) for c in range(3)], axis=-1)
    image = Image.fromarray((127 + 120 * waves).astype(np.uint8)).convert(mode)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return data.getvalue()


def thing(class_index: int, *box: float, **flags: bool) -> dict[str, Any]:
    """An object of a row; its flags are false or unknown where they are not given."""
    known = {"difficult": False, "truncated": None, "occluded": None, "crowd": False}
    return {"class_index": class_index, "area": box[2] * box[3], "box": list(box), **known, **flags}


def write_images(
    folder: Path,
    counts: Sequence[int],
    photos: dict[str, bytes] | None = None,
    size: tuple[int, int] | None = None,
    with_objects: bool = False,
    objects: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Manifest:
    """A dataset with ``counts`` samples per shard and keys ``s000000`` …; ``photos`` replaces those of some keys.

    ``size`` (width, height) is the one of all photographs; None: it differs. ``with_objects``: sample n has one object,
    of its positive class, in the upper left quarter, and n + 1 pixels large; ``objects`` are those of some keys.
    """
    storage = LocalStorage(folder)
    shards = []
    number = 0
    for shard, count in enumerate(counts):
        with ShardWriter(storage, shard_name("small", "train", shard), kind=IMAGES, plan="test") as writer:
            for _ in range(count):
                key = f"s{number:06d}"
                width, height = size or (40 + number % 37, 36 + number % 23)
                data = (photos or {}).get(key) or photo(number, width, height)
                positives, ignored = [number % 3], [(number + 1) % 3] if number % 4 == 0 else []
                thing = {"class_index": positives[0], "area": number + 1.0, "box": [0, 0, width / 2, height / 2]} | {
                    "difficult": False,
                    "truncated": None,
                    "occluded": None,
                    "crowd": False,
                }
                row = {"width": width, "height": height, "positives": positives, "ignored": ignored}
                row["objects"] = list((objects or {}).get(key, [thing] if with_objects else []))
                writer.add(key, [(".jpg", data), (".json", b"{}"), (".target.npy", encode_target(positives, 3))], row)
                number += 1
            shards.append(writer.publish())
    manifest = Manifest(kind=IMAGES, dataset="small", split="train", classes=CLASSES, shards=tuple(shards))
    write_manifest(storage, manifest)
    return manifest


def write_keep_masks(folder: Path, masks: Sequence[np.ndarray], per_shard: int = 3) -> Manifest:
    """A keep-mask dataset of the given uint8 0/1 masks, in order."""
    storage = LocalStorage(folder)
    shards = []
    for shard, start in enumerate(range(0, len(masks), per_shard)):
        with ShardWriter(storage, shard_name("masks", folder.name, shard), kind=KEEP_MASKS, plan="test") as writer:
            for number, mask in enumerate(masks[start : start + per_shard], start):
                row = {
                    "width": mask.shape[1],
                    "height": mask.shape[0],
                    "hole_fraction": hole_fraction(mask),
                    "source": f"{number}.png",
                }
                writer.add(f"m{number:05d}", [(".png", encode_png(mask)), (".json", b"{}")], row)
            shards.append(writer.publish())
    manifest = Manifest(kind=KEEP_MASKS, dataset="masks", split=folder.name, shards=tuple(shards))
    write_manifest(storage, manifest)
    return manifest
