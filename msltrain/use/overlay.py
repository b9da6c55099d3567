"""Pictures of where a recogniser sees its classes: place scores in colour over the photograph, classes side by side.

H, W height and width in pixels, or positions of a feature map; S side of the square that the network sees.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from msldata.console import on_one_line
from msldata.contract.keepmask import resize_nearest
from msldata.storage import LocalStorage

PANEL_SIDE = 300
"""Longest side of a photograph on the sheet, in pixels."""
RAMP = ((38, 12, 81), (119, 28, 109), (206, 68, 70), (249, 141, 10), (252, 246, 150))
"""Colours of the scores 0, 0.25 … 1; their lightness rises evenly, so that they order themselves without hue."""
STRONGEST = 0.65
"""Opacity of the colour at score 1; at score 0 the photograph, made grey, is all there is."""
_GREYNESS = 0.8
_MARGIN, _TITLE, _FOOT = 12, 22, 40
_INK, _MUTED, _PAPER = (28, 27, 25), (110, 105, 96), (253, 252, 249)


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """One class on one photograph."""

    title: str
    is_predicted: bool
    place_score_HW: np.ndarray
    """float, 0 to 1"""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One version of a photograph, and its classes."""

    keep_mask_SS: np.ndarray | None
    """uint8, 0 hole; None: the photograph is whole."""
    panels: Sequence[Panel]


def thumbnail(image_HWC: np.ndarray) -> np.ndarray:
    """The photograph as large as the sheet shows it, uint8."""
    image = Image.fromarray(image_HWC)
    scale = PANEL_SIDE / max(image.size)
    width, height = (max(1, round(scale * side)) for side in image.size)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0))


def paint(photo_HWC: np.ndarray, place_score_HW: np.ndarray) -> np.ndarray:
    """The photograph in grey with the scores over it in colour, uint8 (H, W, 3)."""
    height, width = photo_HWC.shape[:2]
    # Bilinear in score, then colour: between two places lies what lies between their scores.
    score = Image.fromarray(np.asarray(place_score_HW, np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    score_HW1 = np.clip(np.asarray(score), 0, 1)[..., None]
    values = np.linspace(0, 1, len(RAMP))
    colour_HWC = np.stack([np.interp(score_HW1[..., 0], values, channel) for channel in zip(*RAMP)], axis=-1)
    grey_HW1 = photo_HWC @ np.array([0.299, 0.587, 0.114])[:, None]
    below_HWC = _GREYNESS * grey_HW1 + (1 - _GREYNESS) * photo_HWC
    opacity_HW1 = STRONGEST * score_HW1
    return np.rint((1 - opacity_HW1) * below_HWC + opacity_HW1 * colour_HWC).astype(np.uint8)


def hide(photo_HWC: np.ndarray, keep_mask_SS: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The photograph with its holes filled, uint8 (H, W, 3)."""
    visible_HW1 = resize_nearest(keep_mask_SS, *photo_HWC.shape[:2])[..., None]
    return np.where(visible_HW1 == 1, photo_HWC, np.array(colour, np.uint8))


def draw_sheet(name: str, photo_HWC: np.ndarray, rows: Sequence[Row], hole_colour: tuple[int, int, int]) -> Image.Image:
    """A row per version: the photograph, then a panel per class.

    Args:
        name: of the photograph, written above.
        photo_HWC: uint8, as `thumbnail` gives it.
        rows: the whole photograph, and perhaps the masked one.
        hole_colour: RGB of what the network sees in a hole.
    """
    height, width = photo_HWC.shape[:2]
    num_columns = 1 + max(len(row.panels) for row in rows)
    step_x, step_y = max(width, 130) + _MARGIN, height + _TITLE + _MARGIN
    size = (_MARGIN + num_columns * step_x, _MARGIN + _TITLE + len(rows) * step_y + _FOOT)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (_MARGIN, _MARGIN), on_one_line(name), size[0] - 2 * _MARGIN, _INK, bold=True)
    for number, row in enumerate(rows):
        top = _MARGIN + _TITLE + number * step_y
        shown_HWC, title = photo_HWC, "the whole image"
        if row.keep_mask_SS is not None:
            shown_HWC = hide(photo_HWC, row.keep_mask_SS, hole_colour)
            title = f"{100 * (1 - row.keep_mask_SS.mean()):.0f} % hidden"
        _write(draw, (_MARGIN, top), title, step_x - _MARGIN, _MUTED)
        sheet.paste(Image.fromarray(shown_HWC), (_MARGIN, top + _TITLE))
        for column, panel in enumerate(row.panels, start=1):
            left = _MARGIN + column * step_x
            colour = _INK if panel.is_predicted else _MUTED
            _write(draw, (left, top), on_one_line(panel.title), step_x - _MARGIN, colour, bold=panel.is_predicted)
            sheet.paste(Image.fromarray(paint(shown_HWC, panel.place_score_HW)), (left, top + _TITLE))
    _draw_ramp(sheet, draw, size[1] - _FOOT + 4, size[0] - 2 * _MARGIN)
    return sheet


class OverlayFolder:
    """A folder that gets a sheet per photograph, in the folders that the photographs lie in.

    Args:
        path: the folder; it need not exist.
        names: of all photographs; what their places have in common is left out.
    """

    def __init__(self, path: Path, names: Sequence[str]):
        self._files = LocalStorage(path)
        self._file_of = _sheet_names(names)

    def write(self, name: str, sheet: Image.Image) -> Path:
        """Write the sheet of the photograph called ``name``. Raises StorageError if it cannot be written."""
        data = io.BytesIO()
        sheet.save(data, "JPEG", quality=90)
        self._files.put(self._file_of[name], data.getvalue())
        return self._files.path(self._file_of[name])


def _sheet_names(names: Sequence[str]) -> dict[str, str]:
    """``a/x.png`` and ``b/x.jpg`` → ``a/x.png.jpg`` and ``b/x.jpg``; none twice, also where case does not count."""
    parts = {name: [_plain(part) for part in re.split(r"[/\\#]+", name.split("?")[0].strip("/"))] for name in names}
    folders = [path[:-1] for path in parts.values()]
    shortest = min(map(len, folders), default=0)
    common = next((depth for depth in range(shortest) if len({path[depth] for path in folders}) > 1), shortest)
    files: dict[str, str] = {}
    taken: set[str] = set()
    for name, path in parts.items():
        stem = "/".join(path[common:])
        stem = stem[:-4] if stem.lower().endswith(".jpg") else stem
        file, number = f"{stem}.jpg", 1
        while file.lower() in taken:
            number += 1
            file = f"{stem}-{number}.jpg"
        taken.add(file.lower())
        files[name] = file
    return files


def _plain(part: str) -> str:
    """A part of a path that every file system takes; never hidden, never ``..``."""
    return re.sub(r"[^\w.-]+", "_", part).lstrip(".")[-80:] or "image"


def _draw_ramp(sheet: Image.Image, draw: ImageDraw.ImageDraw, top: int, width: int) -> None:
    ramp = paint(np.full((10, 120, 3), 128, np.uint8), np.linspace(0, 1, 120)[None].repeat(10, axis=0))
    _write(draw, (_MARGIN, top), "0 %", 40, _MUTED)
    sheet.paste(Image.fromarray(ramp), (_MARGIN + 30, top + 4))
    words = "100 %: the score if all of the image looked like this place"
    _write(draw, (_MARGIN + 156, top), words, width - 156, _MUTED)


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    width: int,
    colour: tuple[int, int, int],
    *,
    bold: bool = False,
) -> None:
    """Write on one line; what does not fit is cut off with an ellipsis."""
    font = _font(bold)
    if font.getlength(text) > width:
        while text and font.getlength(f"{text}…") > width:
            text = text[:-1]
        text += "…"
    draw.text(at, text, fill=colour, font=font)


@functools.cache
def _font(bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has the letters of most languages."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, 13)
