"""The pictures of a keep-mask build: what they are drawn from, and that every build has them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from msldata.errors import StorageError
from msldata.masks.plots import _count, _draw_contact_sheet, _draw_histogram, _Stored, write_mask_plots
from msldata.masks.sources import GeneratedMasks
from msldata.storage import open_storage
from tests.tinydata import build_masks


def made(folder, **options):
    out = open_storage(folder)
    return build_masks(GeneratedMasks(24, size=32), out, num_workers=1, **options), out


def stored(build, out):
    return {name: _Stored.read(out.child(name), manifest) for name, manifest in build.manifests.items()}


def test_writes_two_pictures_that_are_not_blank(tmp_path):
    build, out = made(tmp_path / "masks")
    paths = write_mask_plots(tmp_path / "plots", build, out)
    assert [path.name for path in paths] == ["hole-fractions.png", "contact-sheet.png"]
    for path in paths:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            assert image.width > 1000 and image.height > 500
            assert np.asarray(image.convert("L")).std() > 20
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_mask_plots(tmp_path / "plots", build, out)] == before


def test_histogram_says_what_there_is(tmp_path):
    build, out = made(tmp_path / "masks", per_subset=6, threshold=0.4)
    figure = _draw_histogram(build, stored(build, out))
    (axes,) = figure.axes
    entries = [text.get_text() for text in axes.get_legend().get_texts()]
    assert entries == ["all read: 24", "in high: 6", "in low: 6", "threshold: 40 %"]
    assert axes.lines[0].get_xdata()[0] == pytest.approx(40)
    grey, high, low = axes.containers
    for bars, fractions in (
        (grey, build.plan.hole_fractions),
        (high, [row[3] for row in stored(build, out)["high"].rows]),
    ):
        assert sum(bar.get_height() for bar in bars) == len(fractions)
        for bar in bars:
            middle = (bar.get_x() + bar.get_width() / 2) / 100
            assert bar.get_height() == sum(middle - 0.01 < fraction <= middle + 0.01 for fraction in fractions)
    assert all(bar.get_height() == 0 for bar in low if bar.get_x() > 40)
    assert "generated (24 masks read)" in figure.texts[-1].get_text()
    assert "%" in axes.xaxis.get_major_formatter()(10)


def test_bins_exclude_their_lower_edge():
    assert _count([0.0, 0.02, 0.0200001, 0.04, 0.06], np.array([0, 2, 4, 6])).tolist() == [2, 2, 1]


def test_contact_sheet_shows_stored_masks_with_their_hole_fractions(tmp_path):
    build, out = made(tmp_path / "masks", threshold=0.7)  # one or two masks are high
    figure = _draw_contact_sheet(build, stored(build, out))
    few = build.manifests["high"].num_samples
    assert 0 < few < 10
    assert len(figure.axes) == few + 10
    percent = []
    for axes in figure.axes:
        keep_mask = axes.images[0].get_array()
        assert axes.get_xlabel() == f"{100 * (1 - keep_mask.mean() / 255):.1f} %"
        percent.append(1 - keep_mask.mean() / 255)
    assert percent[:few] == sorted(percent[:few]) and percent[few:] == sorted(percent[few:])
    low = [fraction for fraction in build.plan.hole_fractions if fraction <= 0.7]
    assert (percent[few], percent[-1]) == pytest.approx((min(low), max(low)))


def test_an_empty_subset_has_an_empty_row(tmp_path):
    build, out = made(tmp_path / "masks", threshold=0.95)
    figure = _draw_contact_sheet(build, stored(build, out))
    assert "high\nno mask" in [text.get_text() for text in figure.texts]
    write_mask_plots(tmp_path / "plots", build, out)


def test_a_place_that_is_no_folder_is_one_clear_message(tmp_path):
    build, out = made(tmp_path / "masks")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"file/hole-fractions\.png: "):
        write_mask_plots(tmp_path / "file", build, out)
