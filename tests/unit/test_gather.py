"""Which of the predictions in a run's folder a report takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from msltrain.config import TrainConfig, to_json
from msltrain.measures.predictions import Origin, Predictions, write_predictions
from msltrain.report.gather import _Stored
from msltrain.stream.config import StreamConfig


def predictions(**origin: object) -> Predictions:
    return Predictions(
        keys=("a", "b"),
        logit_NK=np.float32([[1, -1], [-1, 1]]),
        target_NK=np.uint8([[1, 0], [0, 1]]),
        ignore_NK=np.zeros((2, 2), bool),
        classes=("x", "y"),
        origin=Origin(checkpoint_sha256="a" * 64, dataset_fingerprint="f" * 64, **origin),  # type: ignore[arg-type]
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose weights are gone."""
    (tmp_path / "predictions").mkdir()
    (tmp_path / "config.json").write_text(to_json(TrainConfig(stream=StreamConfig(image_size=32))))
    return tmp_path


@pytest.mark.parametrize("odd", [{"test_time": "flip"}, {"seed": 3}, {"test_time": "scale 0.75", "seed": 3}])
def test_what_nobody_asked_anything_special_of_is_taken(run: Path, odd: dict[str, object]):
    """Whatever the files are called; another, where there is nothing else."""
    masks = {"keep_masks": ("masks",), "keep_mask_fingerprints": ("m" * 64,)}
    for place in ((), ("m" * 64,)):
        hidden = masks if place else {}
        odd_file, plain = (run / "predictions" / f"{first}-{len(place)}.parquet" for first in "az")
        write_predictions(predictions(**odd, **hidden), odd_file)
        assert _Stored.of(run).find("f" * 64, place) == odd_file
        write_predictions(predictions(**hidden), plain)
        assert _Stored.of(run).find("f" * 64, place) == plain


def test_averaged_views_are_odder_than_other_masks(run: Path):
    for name, origin in (("a", {"test_time": "flip"}), ("b", {"seed": 3})):
        write_predictions(predictions(**origin), run / "predictions" / f"{name}.parquet")
    assert _Stored.of(run).find("f" * 64, ()) == run / "predictions" / "b.parquet"


def test_of_a_part_of_the_data_or_behind_masks_that_nothing_tells_is_nothing(run: Path):
    write_predictions(predictions(part="held out"), run / "predictions" / "a.parquet")
    write_predictions(predictions(keep_masks=("masks",)), run / "predictions" / "b.parquet")
    stored = _Stored.of(run)
    assert stored.predictions == {} and stored.find("f" * 64, ()) is None
