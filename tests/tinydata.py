"""Small generated datasets in the layouts of VOC2007 and COCO-2014, and helpers to compare built folders."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from msldata.contract.manifest import MANIFEST_NAME
from msldata.contract.records import VOC_CLASSES
from msldata.masks.build import MaskBuild, write_masks
from msldata.masks.plan import Progress, plan_masks
from msldata.masks.sources import MaskSource
from msldata.storage import Storage


def jpeg(seed: int, width: int = 24, height: int = 16, mode: str = "RGB") -> bytes:
    """A small noisy JPEG; the seed decides every byte."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels).convert(mode), "JPEG")


def encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def voc_object(name: str, box: Sequence[float] = (1, 1, 10, 8), **tags: int) -> str:
    """One ``<object>``; ``tags`` are difficult, truncated, occluded."""
    corners = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    flags = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags.items())
    return f"<object><name>{name}</name>{flags}<bndbox>{corners}</bndbox></object>"


def voc_xml(*objects: str) -> str:
    return f"<annotation><folder>VOC2007</folder>{''.join(objects)}</annotation>"


def make_voc(root: Path, num_images: int, split: str = "test") -> Path:
    """``root/VOCdevkit/VOC2007`` with ``num_images`` images in one list; returns the folder VOC2007."""
    folder = root / "VOCdevkit" / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    ids = [f"{number:06d}" for number in range(1, num_images + 1)]
    for number, image_id in enumerate(ids):
        (folder / "JPEGImages" / f"{image_id}.jpg").write_bytes(jpeg(number))
        objects = [
            voc_object(VOC_CLASSES[number % 20], truncated=number % 2, difficult=0),
            voc_object(VOC_CLASSES[(number * 7 + 3) % 20], difficult=int(number % 3 == 0)),
        ]
        (folder / "Annotations" / f"{image_id}.xml").write_text(voc_xml(*objects))
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
    return folder


def make_coco(
    root: Path,
    images: Sequence[dict],
    annotations: Sequence[dict],
    categories: Sequence[dict],
    split: str = "train2014",
) -> Path:
    """``root`` with ``annotations/instances_{split}.json`` and a JPEG for every image."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir()
    content = {"images": list(images), "annotations": list(annotations), "categories": list(categories)}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    for image in images:
        (root / split / Path(image["file_name"]).name).write_bytes(jpeg(image["id"]))
    return root


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, hidden ones too, by its name; of manifests not the command that was run."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: _without_command(data) if name.endswith(MANIFEST_NAME) else data for name, data in files.items()}


def _without_command(data: bytes) -> bytes:
    try:
        manifest = json.loads(data)
    except ValueError:
        return data
    manifest.get("provenance", {}).pop("command", None)
    return (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()


def build_masks(
    source: MaskSource,
    out: Storage,
    *,
    num_workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> MaskBuild:
    """What ``build-masks`` does: plan, with these options, and write."""
    plan = plan_masks(source, out, num_workers=num_workers, progress=progress, **options)
    return write_masks(plan, num_workers=num_workers, overwrite=overwrite, progress=progress)
