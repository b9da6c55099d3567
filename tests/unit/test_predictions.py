"""The predictions file: nothing is lost, equal content gives equal bytes, and a wrong file is said to be one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from msldata.errors import UserError
from msltrain.measures.predictions import LargestObjects, Origin, Predictions, read_predictions, write_predictions


@pytest.fixture
def predictions() -> Predictions:
    rng = np.random.default_rng(0)
    shape = (5, 3)
    return Predictions(
        keys=("000005", "000007", "ü-9", "b", "a"),
        logit_NK=rng.standard_normal(shape, dtype=np.float32),
        target_NK=np.uint8(rng.random(shape) < 0.5),
        ignore_NK=rng.random(shape) < 0.2,
        classes=("cat", "dog", "zèbre"),
        objects=LargestObjects(
            area_NK=rng.random(shape, dtype=np.float32),
            truncated_NK=rng.integers(-1, 2, shape, np.int8),
            occluded_NK=rng.integers(-1, 2, shape, np.int8),
            crowd_NK=rng.integers(-1, 2, shape, np.int8),
        ),
        origin=Origin(checkpoint="runs/a/best.pt", keep_masks=("masks/high",), hole_fraction=0.1 + 0.2, seed=3),
    )


def test_round_trip_is_exact(tmp_path, predictions):
    write_predictions(predictions, tmp_path / "p.parquet")
    again = read_predictions(tmp_path / "p.parquet")
    assert (again.keys, again.classes, again.origin) == (predictions.keys, predictions.classes, predictions.origin)
    for name in ("logit_NK", "target_NK", "ignore_NK"):
        assert getattr(again, name).dtype == getattr(predictions, name).dtype
        np.testing.assert_array_equal(getattr(again, name), getattr(predictions, name))
    assert predictions.objects is not None and again.objects is not None
    for name in ("area_NK", "truncated_NK", "occluded_NK", "crowd_NK"):
        np.testing.assert_array_equal(getattr(again.objects, name), getattr(predictions.objects, name))


def test_without_objects(tmp_path, predictions):
    write_predictions(replace(predictions, objects=None), tmp_path / "p.parquet")
    assert read_predictions(tmp_path / "p.parquet").objects is None


def test_equal_predictions_give_equal_bytes_and_leave_nothing_beside_them(tmp_path, predictions):
    write_predictions(predictions, tmp_path / "a.parquet")
    write_predictions(read_predictions(tmp_path / "a.parquet"), tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_any_parquet_reader_can_recompute_from_it(tmp_path, predictions):
    write_predictions(predictions, tmp_path / "p.parquet")
    table = pq.read_table(tmp_path / "p.parquet")
    np.testing.assert_array_equal(np.stack(table["logit"].to_pylist()).astype(np.float32), predictions.logit_NK)


@pytest.mark.parametrize("content", [b"", b"not parquet at all"])
def test_a_file_of_another_kind(tmp_path, content):
    (tmp_path / "p.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"p\.parquet: not a predictions file"):
        read_predictions(tmp_path / "p.parquet")


def test_a_parquet_file_of_another_kind(tmp_path):
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "index.parquet")
    with pytest.raises(UserError, match="not a predictions file"):
        read_predictions(tmp_path / "index.parquet")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.parquet"):
        read_predictions(tmp_path / "none.parquet")


def test_arrays_that_do_not_fit_are_refused(predictions):
    with pytest.raises(ValueError, match="logit_NK: float64"):
        replace(predictions, logit_NK=predictions.logit_NK.astype(np.float64))
    with pytest.raises(ValueError, match=r"target_NK: uint8 \(4, 3\), expected uint8 \(5, 3\)"):
        replace(predictions, target_NK=predictions.target_NK[:4])
