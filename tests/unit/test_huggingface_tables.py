"""What ``datasets`` wrote, or somebody else in its name: labels of odd kinds, and metadata that describe others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from msldata.errors import BadInputError
from msldata.sources.tables.rows import read_table
from msldata.storage import LocalStorage


def described(names: Any) -> str:
    """The metadata of a column of lists of classes with these names."""
    label = {"_type": "Sequence", "feature": {"_type": "ClassLabel", "names": names}}
    return json.dumps({"info": {"features": {"label": label}}})


def labels(folder: Path, label: pa.Array, metadata: str, *more: str) -> list[Any]:
    """The labels as rows have them; ``more``: columns with the same content."""
    names = ["image", "label", *more]
    images = pa.array([f"{number}.jpg" for number in range(len(label))])
    table = pa.Table.from_arrays([images, *[label] * (1 + len(more))], names=names)
    pq.write_table(table.replace_schema_metadata({b"huggingface": metadata.encode()}), folder / "table.parquet")
    return [row["label"] for _, row in read_table(LocalStorage(folder), "table.parquet").rows]


GOOD = pa.array([[0], [1, 2]])


@pytest.mark.parametrize(
    ("label", "names", "says"),
    [
        (pa.array([[0.5], [1.0]]), ["a", "b"], "0.5 is not the index of a class"),
        (pa.array(["x", "b"]), ["a", "b"], "'x' is not the index of a class"),
        (pa.array([{"x": 1}, {"x": 0}]), ["a", "b"], "is not the index of a class"),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), ["a", "b"], "is not the index of a class"),
        (GOOD, ["a", "b"], "class index 2 of 2"),
        (pa.array([[0], [-2]]), ["a", "b"], "class index -2 of 2"),
        (GOOD, ["a", "b", "a"], "two classes are called 'a'"),
        (GOOD, "abc", "no list of names"),
        (GOOD, [None, "b", "c"], "no list of names"),
    ],
)
def test_labels_that_are_none_are_one_message(tmp_path: Path, label: pa.Array, names: Any, says: str):
    with pytest.raises(BadInputError, match=says):
        labels(tmp_path, label, described(names))


@pytest.mark.parametrize("metadata", ["[", "[" * 9000, "7", '{"info": {"features": []}}', '{"info": 7}'])
def test_metadata_that_describe_nothing_leave_the_indices(tmp_path: Path, metadata: str):
    assert labels(tmp_path, GOOD, metadata) == [[0], [1, 2]]


def test_names_are_taken_where_they_fit(tmp_path: Path):
    assert labels(tmp_path, GOOD, described(["a", "b", "c"])) == [["a"], ["b", "c"]]
    assert labels(tmp_path, pa.array(["b", "a"]).dictionary_encode(), described(["a", "b"])) == ["b", "a"]


def test_of_two_columns_with_one_name_none_is_chosen(tmp_path: Path):
    with pytest.raises(BadInputError, match="two columns are called 'label'"):
        labels(tmp_path, GOOD, "{}", "label")
