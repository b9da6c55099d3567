"""A preview as one self-contained page: pictures inside the file, boxes that name their object under the pointer."""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from msldata.contract.keepmask import encode_level_png, encode_png
from msldata.inspect.tiles import Box, Label, Preview, Tile

_LONGEST_SIDE = 640
_JPEG_QUALITY = 82

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2430; --muted: #5b6675; --faint: #d4d9e0; --mat: #f1f3f6 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14181d; --ink: #e8ebef; --muted: #98a2b0; --faint: #3a434f; --mat: #20262d }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2.5rem; max-width: 110rem; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", sans-serif }
h1 { margin: 0; font-size: 1.9rem; font-weight: 600 }
header p { margin: .2rem 0 2rem; color: var(--muted) }
main { display: grid; gap: 2rem; grid-template-columns: repeat(auto-fill, minmax(min(var(--tile), 100%), 1fr)) }
figure { margin: 0 }
.panels { display: flex; gap: 6px }
.panel { flex: 1; min-width: 0; position: relative; aspect-ratio: var(--shape); background: var(--mat) }
.panel > * { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain }
.mask { border: 1px solid var(--faint) }
rect { fill: transparent; stroke-width: 2; vector-effect: non-scaling-stroke }
rect:hover { fill: rgb(255 255 255 / .25); stroke-width: 4 }
.faint { stroke-dasharray: 5 4 }
figcaption { margin-top: .5rem }
.key { display: flex; justify-content: space-between; gap: 1rem; color: var(--muted); font-size: .85rem;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.label { display: inline-block; margin: .3rem .3rem 0 0; padding: .1rem .55rem; border-radius: .4rem; color: #fff;
  font-size: .88rem; overflow-wrap: anywhere }
.ignored { color: var(--muted); border: 1px solid var(--faint) }
"""


def draw_page(preview: Preview) -> str:
    """One HTML document without scripts and without anything to load."""
    first = preview.tiles[0]
    with_both = first.image is not None and first.mask is not None
    tile, shape = ("36rem", "1") if with_both else ("12rem", "1") if first.image is None else ("19rem", "4 / 3")
    tiles = "\n".join(_tile(tile) for tile in preview.tiles)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(preview.title)}</title>
<style>{_STYLE}</style>
</head>
<body style="--tile: {tile}; --shape: {shape}">
<header>
<h1>{escape(preview.title)}</h1>
<p>{escape(preview.subtitle)}</p>
</header>
<main>
{tiles}
</main>
</body>
</html>
"""


def _tile(tile: Tile) -> str:
    panels = []
    if tile.image is not None:
        picture = f'<img src="{_photo(tile.image)}" alt="{escape(tile.key)}">'
        panels.append(f'<div class="panel">{picture}{_outlines(tile.image, tile.boxes)}</div>')
    if tile.mask is not None:
        source = _data_url("png", _mask_png(tile.mask.level_HW))
        name = f"keep mask {escape(tile.mask.key)}"
        panels.append(f'<div class="panel"><img class="mask" src="{source}" alt="{name}"></div>')
    masked = tile.masked_image()
    if masked is not None:
        panels.append(f'<div class="panel"><img src="{_photo(masked)}" alt="masked image"></div>')
    hole = f"<span>hole {tile.mask.hole_fraction:.1%}</span>" if tile.mask else ""
    labels = "".join(_label(label) for label in tile.labels)
    return (
        f'<figure><div class="panels">{"".join(panels)}</div>'
        f'<figcaption><div class="key"><span>{escape(tile.key)}</span>{hole}</div>{labels}</figcaption></figure>'
    )


def _mask_png(level_HW: np.ndarray) -> bytes:
    binary_HW = level_HW > 127
    grey = not np.array_equal(level_HW, binary_HW * np.uint8(255))
    return encode_level_png(level_HW) if grey else encode_png(binary_HW)


def _label(label: Label) -> str:
    if label.ignored:
        return f'<span class="label ignored">{escape(label.name)} ignored</span>'
    return f'<span class="label" style="background: {label.colour}">{escape(label.name)}</span>'


def _outlines(image: Image.Image, boxes: tuple[Box, ...]) -> str:
    """The boxes in the image's own pixels; large ones first, so that the pointer reaches those inside them."""
    rects = "".join(
        f'<rect x="{box.left:g}" y="{box.top:g}" width="{box.width:g}" height="{box.height:g}" stroke="{box.colour}"'
        f' class="{"faint" if box.faint else "firm"}"><title>{escape(box.name)}</title></rect>'
        for box in sorted(boxes, key=lambda box: -box.width * box.height)
    )
    return f'<svg viewBox="0 0 {image.width} {image.height}">{rects}</svg>'


def _photo(image: Image.Image) -> str:
    smaller = image.copy()
    smaller.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    smaller.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return _data_url("jpeg", buffer.getvalue())


def _data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
