"""Two pictures of a keep-mask build: how its hole fractions are distributed, and what its masks look like."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msldata.contract.format import read_index
from msldata.contract.keepmask import decode_levels
from msldata.contract.manifest import Manifest
from msldata.masks.build import MaskBuild
from msldata.masks.subsets import BUCKETS
from msldata.storage import LocalStorage, Location, Storage, open_storage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HISTOGRAM_NAME = "hole-fractions.png"
CONTACT_SHEET_NAME = "contact-sheet.png"

_DOTS_PER_INCH = 150
_NUM_COLUMNS = 10
_BIN_PERCENT = 2
_INK, _MUTED, _FAINT = "#1c2430", "#5b6675", "#d4d9e0"
# Told apart in grey and with any kind of colour vision: orange is the lightest, blue the darkest.
_COLOURS = {"high": "#e08214", "low": "#2c5a8f", "heldout": "#5aa587"}


@dataclass(frozen=True, slots=True)
class _Stored:
    """The masks of one subset: where they are, and how much each one hides."""

    storage: Storage
    rows: tuple[tuple[str, int, int, float], ...]
    """Shard, offset, length and hole fraction of each, by hole fraction."""

    @classmethod
    def read(cls, storage: Storage, manifest: Manifest) -> _Stored:
        rows = []
        for shard in manifest.shards:
            table = read_index(storage, manifest, shard)
            rows += [(shard.name, row["offset"], row["length"], row["hole_fraction"]) for row in table.to_pylist()]
        return cls(storage, tuple(sorted(rows, key=lambda row: row[3])))

    def spread(self, count: int) -> list[tuple[np.ndarray, float]]:
        """At most ``count`` keep masks (255 = visible) and hole fractions, evenly from the lightest to the heaviest."""
        chosen = np.unique(np.linspace(0, len(self.rows) - 1, min(count, len(self.rows))).round().astype(int))
        found = []
        for shard, offset, length, fraction in (self.rows[number] for number in chosen):
            png = self.storage.read_ranges(shard, [offset], [length])[0]
            found.append((decode_levels(png, f"{self.storage.where(shard)} at byte {offset}"), fraction))
        return found


def write_mask_plots(folder: str | Path, build: MaskBuild, out: Location | Storage) -> tuple[Path, Path]:
    """Draw a finished build as ``hole-fractions.png`` and ``contact-sheet.png``.

    Args:
        folder: gets the two files; created when it does not exist.
        build: what ``write_masks`` returned.
        out: the folder it was given.

    Returns:
        The paths of the histogram and of the contact sheet.

    Raises:
        StorageError: a mask cannot be read back, or a file cannot be written.
    """
    folder, out = Path(folder), open_storage(out)
    stored = {name: _Stored.read(out.child(name), manifest) for name, manifest in build.manifests.items()}
    place = LocalStorage(folder)
    place.put(HISTOGRAM_NAME, _png(_draw_histogram(build, stored)))
    place.put(CONTACT_SHEET_NAME, _png(_draw_contact_sheet(build, stored)))
    return folder / HISTOGRAM_NAME, folder / CONTACT_SHEET_NAME


def _draw_histogram(build: MaskBuild, stored: Mapping[str, _Stored]) -> Figure:
    """All masks that were read, in grey, and in front of them those in high, low and heldout."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 5))
    axes = figure.add_axes((0.085, 0.19, 0.885, 0.66))
    threshold = build.manifests["high"].options.get("threshold")
    at = 100 * (threshold or 0.5)
    stop = 10 * int(np.ceil(max(10 * max(build.plan.hole_fractions) - 1e-9, at / 10)))
    edges = np.arange(0, stop + _BIN_PERCENT, _BIN_PERCENT)
    middles, all_read = edges[:-1] + _BIN_PERCENT / 2, _count(build.plan.hole_fractions, edges)
    entries: list[Any] = [axes.bar(middles, all_read, _BIN_PERCENT, color=_FAINT, label=f"all read: {sum(all_read):,}")]
    below = np.zeros_like(all_read)
    for name, colour in _COLOURS.items():
        if name in stored:
            count = _count([row[3] for row in stored[name].rows], edges)
            label = f"in {name}: {sum(count):,}"
            entries.append(axes.bar(middles, count, _BIN_PERCENT * 0.86, bottom=below, color=colour, label=label))
            below += count
    top = max(all_read) * 1.05
    for name in BUCKETS.keys() & stored.keys():
        low, high = (100 * edge for edge in BUCKETS[name])
        axes.plot([low + 0.4, high - 0.4], [top] * 2, color=_MUTED, linewidth=1.2, solid_capstyle="butt")
        text = f"{name}\n{len(stored[name].rows):,}"
        axes.text((low + high) / 2, top * 1.015, text, ha="center", va="bottom", fontsize=8, color=_MUTED)
    label = f"threshold: {100 * threshold:g} %" if threshold else "paper's threshold, not used: 50 %"
    entries.append(axes.axvline(at, color=_INK, linewidth=1.4, linestyle=(0, (4, 2)), label=label))
    axes.set_xlim(0, stop)
    axes.set_xticks(range(0, stop + 1, 10))
    axes.set_ylim(0, top * (1.13 if BUCKETS.keys() & stored.keys() else 1.0))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter("{x:g} %")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("hole fraction: share of an image that the mask hides", color=_INK)
    axes.set_ylabel(f"masks per bin of {_BIN_PERCENT} %", color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_MUTED)
    axes.tick_params(colors=_MUTED)
    axes.grid(axis="y", color="#eceff3")
    axes.set_axisbelow(True)
    axes.legend(
        handles=entries,
        loc="lower left",
        bbox_to_anchor=(0, 1.01),
        borderaxespad=0,
        ncols=len(entries),
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
        handlelength=1.4,
        columnspacing=1.4,
    )
    figure.text(0.085, 0.97, "Hole fractions of the keep masks", va="top", color=_INK, weight="bold", size=13)
    figure.text(0.085, 0.015, _origin(build, 140), va="bottom", size=7.5, color=_MUTED)
    return figure


def _draw_contact_sheet(build: MaskBuild, stored: Mapping[str, _Stored]) -> Figure:
    """A row per subset, from its lightest to its heaviest mask."""
    from matplotlib.figure import Figure

    # All in inches: names on the left, square cells with a line of text below each.
    margin, names, cell, pitch, row_height, head, foot = 0.15, 1.15, 1.06, 1.12, 1.36, 0.72, 0.42
    width, height = margin * 2 + names + pitch * _NUM_COLUMNS, head + foot + row_height * len(stored)
    figure = Figure(figsize=(width, height))
    for row, (name, subset) in enumerate(stored.items()):
        top = height - head - row * row_height
        masks = subset.spread(_NUM_COLUMNS)
        held = f"{len(subset.rows):,} mask{'s' * (len(subset.rows) != 1)}" if masks else "no mask"
        place = ((margin + names - 0.12) / width, (top - cell / 2) / height)
        figure.text(*place, f"{name}\n{held}", ha="right", va="center", color=_INK, size=10)
        for column, (level_HW, fraction) in enumerate(masks):
            left = margin + names + column * pitch
            axes = figure.add_axes((left / width, (top - cell) / height, cell / width, cell / height))
            axes.imshow(level_HW, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color("#9aa3ae")
            axes.set_xlabel(f"{100 * fraction:.1f} %", fontsize=9, color=_INK, labelpad=2)
    title = "Keep masks, from the lightest to the heaviest of each subset"
    key = "black = hole, white = visible; below each mask: its hole fraction, the share of an image that it hides"
    figure.text(margin / width, 1 - 0.12 / height, title, va="top", color=_INK, weight="bold", size=13)
    figure.text(margin / width, 1 - 0.42 / height, key, va="top", color=_MUTED, size=9)
    figure.text(margin / width, 0.1 / height, _origin(build, 190), va="bottom", color=_MUTED, size=7.5)
    return figure


def _count(hole_fractions: Sequence[float], edges_percent: np.ndarray) -> np.ndarray:
    """Masks per bin; a bin excludes its lower edge, but the first holds 0 as well."""
    number = np.searchsorted(edges_percent / 100, np.asarray(hole_fractions), side="left") - 1
    return np.bincount(np.clip(number, 0, None), minlength=len(edges_percent) - 1)


def _origin(build: MaskBuild, width: int) -> str:
    """Where the masks come from and how they were chosen: the caption of both pictures."""
    manifest = build.manifests["high"]
    options: Mapping[str, Any] = {"order": "seeded", **manifest.options}
    chosen = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in sorted(options.items()))
    text = f"source: {manifest.provenance['source']} ({len(build.plan.hole_fractions):,} masks read); {chosen}"
    return "\n".join(textwrap.wrap(text, width))


def _png(figure: Figure) -> bytes:
    """Draw with Agg, whatever display there is; without the library's version, so equal pictures have equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
