"""The predictions file: nothing is lost, equal content gives equal bytes, and a wrong file is said to be one."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from msldata.errors import UserError
from msltrain.measures.predictions import (
    LargestObjects,
    Origin,
    Predictions,
    read_predictions,
    write_predictions,
    write_predictions_table,
)


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
        objects=LargestObjects.of_arrays(
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
    for name in ("area", "truncated", "occluded", "crowd"):
        np.testing.assert_array_equal(again.objects.dense(name), predictions.objects.dense(name))


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


def test_a_file_is_written_a_part_at_a_time(tmp_path, predictions, monkeypatch):
    write_predictions(predictions, tmp_path / "whole.parquet")
    monkeypatch.setattr("msltrain.measures.predictions._ROWS_TOGETHER", 6)
    write_predictions(predictions, tmp_path / "parts.parquet")
    assert pq.ParquetFile(tmp_path / "parts.parquet").num_row_groups == 3
    one, other = (read_predictions(tmp_path / name) for name in ("whole.parquet", "parts.parquet"))
    assert one.keys == other.keys and (one.logit_NK == other.logit_NK).all()
    np.testing.assert_array_equal(one.objects.dense("area"), other.objects.dense("area"))


def test_files_of_version_1_are_read(tmp_path, predictions):
    """They hold the largest objects as lists of K values."""
    lists = {"logit": predictions.logit_NK, "target": predictions.target_NK, "ignore": predictions.ignore_NK}
    names = ("area", "truncated", "occluded", "crowd")
    lists |= {f"largest_{name}": predictions.objects.dense(name) for name in names}
    columns = {
        name: pa.array(list(array_NK), pa.list_(pa.array(array_NK[0]).type, 3)) for name, array_NK in lists.items()
    }
    content = {"version": 1, "classes": list(predictions.classes), "origin": {"checkpoint": "runs/a/best.pt"}}
    table = pa.table({"key": list(predictions.keys), **columns})
    table = table.replace_schema_metadata({b"msl.predictions": json.dumps(content).encode()})
    pq.write_table(table, tmp_path / "p.parquet")
    again = read_predictions(tmp_path / "p.parquet")
    for name in names:
        np.testing.assert_array_equal(again.objects.dense(name), predictions.objects.dense(name))


def test_thousands_of_classes_take_the_room_of_their_logits(tmp_path):
    """Targets, ignored pairs and objects are few; a file of whole arrays of them would be twice as large."""
    rng, shape = np.random.default_rng(0), (40, 3000)
    target_NK = np.uint8(rng.random(shape) < 0.001)
    many = Predictions(
        keys=tuple(map(str, range(40))),
        logit_NK=rng.standard_normal(shape, dtype=np.float32) - 6,
        target_NK=target_NK,
        ignore_NK=np.zeros(shape, bool),
        classes=tuple(map(str, range(3000))),
        objects=LargestObjects.of_arrays(
            **{f"{name}_NK": np.int8(target_NK) * 2 - 1 for name in ("truncated", "occluded", "crowd")},
            area_NK=target_NK * rng.random(shape, dtype=np.float32),
        ),
    )
    write_predictions(many, tmp_path / "p.parquet")
    assert (tmp_path / "p.parquet").stat().st_size < many.logit_NK.nbytes


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


def fixed(array_NK: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(array_NK.reshape(-1)), array_NK.shape[1])


def lists(value: object, kind: pa.DataType) -> pa.Array:
    return pa.array([[value]] * 5, pa.list_(kind))


@pytest.mark.parametrize(
    ("columns", "origin", "words"),
    [
        ({"key": pa.array([None] * 5, pa.string())}, {}, "keys are not texts"),
        ({"key": pa.array(range(5))}, {}, "keys are not texts"),
        ({"logit": fixed(np.full((5, 3), np.nan, np.float32))}, {}, "logits are no numbers"),
        ({"visible": fixed(np.full((5, 3), np.nan, np.float32))}, {}, "visible shares"),
        ({"visible": fixed(np.zeros((5, 2), np.float32))}, {}, "visible shares"),
        ({"largest_class": lists(0.5, pa.float32())}, {}, "lists of objects do not fit together"),
        ({"largest_class": lists(3, pa.int16())}, {}, "do not name each class once, in order"),
        ({"largest_area": lists(math.nan, pa.float32())}, {}, "a largest_area that cannot be"),
        ({"largest_area": lists(-1.0, pa.float32())}, {}, "a largest_area that cannot be"),
        ({"largest_covered": lists(9.0, pa.float32())}, {}, "a largest_covered that cannot be"),
        ({"largest_truncated": lists(77, pa.int8())}, {}, "a largest_truncated that cannot be"),
        ({}, {"hole_fraction": "x"}, "hole_fraction: expected a number"),
        ({}, {"hole_fraction": math.nan}, "a hole fraction of nan"),
        ({}, {"keep_masks": "high"}, "keep_masks: expected several values"),
        ({}, {"dataset": None}, "dataset: expected text"),
        ({}, {"skipped": [1, 2]}, "skipped: expected text"),
        ({}, {"unheard": 1}, "no field 'unheard'"),
    ],
)
def test_what_no_evaluation_writes_is_refused(tmp_path, predictions, columns, origin, words):
    one_each = LargestObjects(
        shape=(5, 3),
        row_M=np.arange(5),
        class_M=np.zeros(5, np.int64),
        area_M=np.ones(5, np.float32),
        covered_M=np.zeros(5, np.float32),
        **{f"{name}_M": np.zeros(5, np.int8) for name in ("truncated", "occluded", "crowd")},
    )
    file = tmp_path / "p.parquet"
    write_predictions(replace(predictions, objects=one_each, origin=Origin()), file)
    table = pq.read_table(file)
    content = json.loads(table.schema.metadata[b"msl.predictions"])
    content["origin"] |= origin
    changed = pa.table({name: table[name] for name in table.column_names} | columns)
    pq.write_table(changed.replace_schema_metadata({b"msl.predictions": json.dumps(content)}), file)
    with pytest.raises(UserError, match=rf"p\.parquet: a damaged predictions file \(.*{words}"):
        read_predictions(file)


def test_arrays_that_do_not_fit_are_refused(predictions):
    with pytest.raises(ValueError, match="logit_NK: float64"):
        replace(predictions, logit_NK=predictions.logit_NK.astype(np.float64))
    with pytest.raises(ValueError, match=r"target_NK: uint8 \(4, 3\), expected uint8 \(5, 3\)"):
        replace(predictions, target_NK=predictions.target_NK[:4])


def test_objects_of_other_classes_in_another_order(tmp_path):
    """Three of five classes: what is said of each object goes with it, and the file stays one that can be read."""
    area_NK = np.float32([[1, 2, 3, 4, 5], [0, 6, 0, 7, 8], [0, 0, 9, 0, 0], [10, 0, 0, 0, 11]])
    flags = {
        f"{name}_NK": np.where(area_NK > 0, np.int8([[k % 2 ^ n] * 5 for n in (0, 1, 0, 1)]), np.int8(-1))
        for k, name in enumerate(("truncated", "occluded", "crowd"))
    }
    objects = LargestObjects.of_arrays(
        area_NK=area_NK, relative_area_NK=area_NK / 100, covered_NK=np.where(area_NK > 0, area_NK / 20, -1), **flags
    )
    column_K = np.array([4, 1, 3])
    part = objects.of_classes(column_K)
    assert part.shape == (4, 3) and part.row_M.tolist() == [0, 0, 0, 1, 1, 1, 3]
    assert part.class_M.tolist() == [0, 1, 2, 0, 1, 2, 0] and part.area_M.tolist() == [5, 2, 4, 8, 6, 7, 11]
    for name in ("area", "relative_area", "covered", "truncated", "occluded", "crowd"):
        np.testing.assert_array_equal(part.dense(name), objects.dense(name)[:, column_K])
    three = Predictions(
        keys=tuple("wxyz"),
        logit_NK=np.zeros((4, 3), np.float32),
        target_NK=np.zeros((4, 3), np.uint8),
        ignore_NK=np.zeros((4, 3), bool),
        classes=("e", "b", "d"),
        objects=part,
    )
    write_predictions(three, tmp_path / "three.parquet")
    again = read_predictions(tmp_path / "three.parquet").objects
    assert again is not None and again.area_M.tolist() == part.area_M.tolist()


def test_a_table_for_a_spreadsheet(tmp_path):
    two = Predictions(
        keys=("a", "=b"),
        logit_NK=np.float32([[0.5, -2], [1.25, 3]]),
        target_NK=np.uint8([[1, 0], [0, 1]]),
        ignore_NK=np.array([[False, True], [False, False]]),
        classes=("cat", "dog"),
    )
    write_predictions_table(two, tmp_path / "two.csv")
    assert (tmp_path / "two.csv").read_text().splitlines() == [
        "key,logit cat,logit dog,target cat,target dog,ignore cat,ignore dog",
        "a,0.5,-2.0,1,0,0,1",
        "'=b,1.25,3.0,0,1,0,0",
    ]
    write_predictions_table(two, tmp_path / "two.csv", decimal_comma=True)
    text = (tmp_path / "two.csv").read_text(encoding="utf-8")
    assert text.startswith("\ufeffkey;logit cat;") and "'=b;1,25;3,0;0;1;0;0" in text.splitlines()
