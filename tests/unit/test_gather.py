"""Which of the predictions in a run's folder a report takes, and which test shards unasked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from msldata.errors import UserError
from msltrain.config import DataConfig, TrainConfig, to_json
from msltrain.measures.predictions import Origin, Predictions, write_predictions
from msltrain.report import gather
from msltrain.report.gather import _only_dataset, _own_test_shards, _Stored
from msltrain.stream.config import StreamConfig
from msltrain.stream.samples.shardset import open_shard_set
from tests.smallshards import write_images


def predictions(data: str = "f" * 64, **origin: object) -> Predictions:
    return Predictions(
        keys=("a", "b"),
        logit_NK=np.float32([[1, -1], [-1, 1]]),
        target_NK=np.uint8([[1, 0], [0, 1]]),
        ignore_NK=np.zeros((2, 2), bool),
        classes=("x", "y"),
        origin=Origin(checkpoint_sha256="a" * 64, dataset_fingerprint=data, **origin),  # type: ignore[arg-type]
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


def test_predictions_of_weights_that_the_run_had_before_are_not_its_own(run: Path, monkeypatch: pytest.MonkeyPatch):
    write_predictions(predictions(), run / "predictions" / "a.parquet")
    monkeypatch.setattr(gather, "open_checkpoint", lambda place: place)
    for sha256, file in (("a" * 64, run / "predictions" / "a.parquet"), ("b" * 64, None)):
        monkeypatch.setattr(gather, "read_meta", lambda checkpoint, sha256=sha256: ({"weights_sha256": sha256}, b""))
        stored = _Stored.of(run)
        assert stored.sha256 == sha256 and stored.find("f" * 64, ()) == file
        assert ("trained further since" in str(stored.missing("whole"))) == (file is None)
    assert _Stored.of(run).find("e" * 64, ()) is None, "of other data"


@pytest.fixture
def beside(run: Path) -> Path:
    """A run of ``mine/train``; its test shards."""
    config = TrainConfig(stream=StreamConfig(image_size=32), data=DataConfig(train=str(run / "mine" / "train")))
    (run / "config.json").write_text(to_json(config))
    for name in ("train", "test"):
        write_images(run / "mine" / name, [2, 2, 3])
    return run / "mine" / "test"


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("is_there", [True, False])
def test_test_shards_are_taken_unasked_where_all_of_them_are_whole(
    run: Path, beside: Path, number: int, is_there: bool
):
    """Else a page would break off at a photograph."""
    assert _own_test_shards([_Stored.of(run)]) == str(beside)
    tar = beside / f"small-train-00000{number}.tar"
    tar.write_bytes(tar.read_bytes()[:-512]) if is_there else tar.unlink()
    assert _own_test_shards([_Stored.of(run)]) is None


def test_test_shards_are_taken_unasked_where_no_predictions_are_of_others(run: Path, beside: Path, tmp_path: Path):
    fingerprint = open_shard_set(beside).manifest.fingerprint
    write_predictions(predictions(data=fingerprint), run / "predictions" / "a.parquet")
    stored = _Stored.of(run)
    assert _own_test_shards([stored]) == str(beside)
    write_predictions(predictions(), run / "predictions" / "b.parquet")
    assert _own_test_shards([_Stored.of(run)]) is None
    assert _own_test_shards([stored, _Stored.of(run)]) is None, "of another run's"


def test_predictions_of_a_dataset_that_was_built_anew_are_told_apart(tmp_path: Path):
    stored = []
    for name, classes in (("before", ("x", "y")), ("after", ("x", "z"))):
        folder = tmp_path / name / "predictions"
        folder.mkdir(parents=True)
        (folder.parent / "config.json").write_text(to_json(TrainConfig(stream=StreamConfig(image_size=32))))
        one = predictions(data=name, dataset="mine", split="test")
        write_predictions(replace(one, classes=classes), folder / "a.parquet")
        stored.append(_Stored.of(folder.parent))
    with pytest.raises(UserError, match=r"mine/test .2 photographs, 2 classes., mine/test .*other classes have no"):
        _only_dataset(stored)
