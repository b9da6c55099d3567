"""A look at a dataset: some of its samples, spread evenly over it, as training will see them."""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from msldata.contract import keepmask
from msldata.contract.format import read_index
from msldata.contract.manifest import IMAGES, KEEP_MASKS, FormatError, Manifest, read_manifest
from msldata.contract.pixels import decode
from msldata.errors import BadInputError, UserError, counted
from msldata.inspect.tiles import Box, HeldMask, Label, Preview, Tile
from msldata.pages.colours import class_colour
from msldata.storage import LocalStorage, Location, Storage, open_storage

_SUFFIXES = (".png", ".html")


def write_preview(
    location: Location | Storage, out: str | Path, *, num: int = 24, keep_masks: Location | Storage | None = None
) -> int:
    """Draw samples of a dataset as a contact sheet (``.png``) or as one self-contained page (``.html``).

    The samples lie at equal distances, so the same dataset always gives the same picture.

    Args:
        location: a split of images or a subset of keep masks, local or remote.
        out: the file; its suffix decides.
        num: how many samples, or all when there are fewer.
        keep_masks: for images, also show a keep mask of this dataset and the masked image.

    Returns:
        How many samples are shown.

    Raises:
        UserError: another suffix, ``num`` below 1, or datasets of the wrong kind.
        FormatError: no dataset, or a sample that cannot be decoded. StorageError: ``out`` cannot be written.
    """
    out = Path(out)
    if out.suffix.lower() not in _SUFFIXES:
        raise UserError(f"{out}: a preview is a {' or '.join(_SUFFIXES)} file; give --out such a name")
    masks = None if keep_masks is None else open_storage(keep_masks)
    preview = load_preview(open_storage(location), num=num, keep_masks=masks)
    if out.suffix.lower() == ".html":
        from msldata.inspect.preview_page import draw_page

        data = draw_page(preview).encode()
    else:
        from msldata.inspect.preview_sheet import draw_sheet

        buffer = io.BytesIO()
        draw_sheet(preview).save(buffer, "PNG", optimize=True)
        data = buffer.getvalue()
    LocalStorage(out.parent).put(out.name, data)
    return len(preview.tiles)


def load_preview(folder: Storage, *, num: int, keep_masks: Storage | None = None) -> Preview:
    """Read and decode what ``write_preview`` draws; the same arguments and errors."""
    if num < 1:
        raise UserError(f"num is {num}; show at least one sample")
    manifest = _read_filled(folder)
    shown = min(num, manifest.num_samples)
    subtitle = f"{shown:,} of {counted(manifest.num_samples, 'sample')} at equal distances"
    title = f"{manifest.dataset} {manifest.split}"
    if manifest.kind == KEEP_MASKS:
        if keep_masks is not None:
            raise UserError(f"{folder.url}: these are keep masks themselves; leave --keep-masks out")
        masks = _load_masks(folder, manifest, shown)
        return Preview(title, f"{subtitle} · white = visible", tuple(Tile(mask.key, mask=mask) for mask in masks))
    tiles = tuple(_load_images(folder, manifest, shown))
    if keep_masks is not None:
        held = _read_filled(keep_masks)
        if held.kind != KEEP_MASKS:
            raise UserError(f"{keep_masks.url}: holds {held.kind}, not keep masks; build some with `msl build-masks`")
        masks = _load_masks(keep_masks, held, min(shown, held.num_samples))
        subtitle += f" · keep masks from {held.dataset} {held.split}"
        tiles = tuple(
            Tile(tile.key, tile.image, tile.labels, tile.boxes, masks[number % len(masks)])
            for number, tile in enumerate(tiles)
        )
    return Preview(title, subtitle, tiles)


def _read_filled(folder: Storage) -> Manifest:
    manifest = read_manifest(folder)
    if not manifest.num_samples:
        raise UserError(f"{folder.url}: has no samples, so there is nothing to show")
    return manifest


def spread(total: int, num: int) -> list[int]:
    """``num`` positions among ``total``, at equal distances and as far from both ends as from each other."""
    return [(2 * number + 1) * total // (2 * num) for number in range(num)]


def _rows(folder: Storage, manifest: Manifest, num: int) -> Iterator[tuple[dict, bytes, str]]:
    """(row of the index, bytes of the image, where it is) of the chosen samples; only their shards are opened."""
    wanted = spread(manifest.num_samples, num)
    start = 0
    for info in manifest.shards:
        numbers = [number - start for number in wanted if start <= number < start + info.num_samples]
        start += info.num_samples
        if not numbers:
            continue
        table = read_index(folder, manifest, info)
        rows = table.take(numbers).to_pylist()
        images = folder.read_ranges(info.name, [row["offset"] for row in rows], [row["length"] for row in rows])
        for row, data in zip(rows, images, strict=True):
            yield row, data, f"{folder.where(info.name)}, sample {row['key']}"


def _load_images(folder: Storage, manifest: Manifest, num: int) -> Iterator[Tile]:
    assert manifest.kind == IMAGES
    for row, data, where in _rows(folder, manifest, num):
        try:
            image = Image.fromarray(decode(data))
        except ValueError as error:
            raise FormatError(
                f"{where}: the image cannot be decoded ({error}); run msl verify {shlex.quote(folder.url)}"
            ) from None
        shown = [(index, column == "ignored") for column in ("positives", "ignored") for index in row[column]]
        labels = [Label(manifest.classes[index], class_colour(index), ignored) for index, ignored in shown]
        boxes = []
        for item in row["objects"]:
            index = item["class_index"]
            left, top, width, height = item["box"]
            faint = item["difficult"] or item["crowd"]
            boxes.append(Box(manifest.classes[index], class_colour(index), left, top, width, height, faint))
        yield Tile(row["key"], image, tuple(labels), tuple(boxes))


def _load_masks(folder: Storage, manifest: Manifest, num: int) -> list[HeldMask]:
    masks = []
    for row, data, where in _rows(folder, manifest, num):
        try:
            level_HW = keepmask.decode_levels(data, where)
        except BadInputError as error:
            raise FormatError(f"{where}: {error.reason}; run msl verify {shlex.quote(folder.url)}") from None
        masks.append(HeldMask(row["key"], level_HW, row["hole_fraction"]))
    return masks
