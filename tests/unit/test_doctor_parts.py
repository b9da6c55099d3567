"""Which shards `msl doctor` calls damaged: a tar that is cut or gone, or an index that is gone, each by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from msldata.inspect.doctor import _state, examine_shards
from tests.smallshards import write_images

TAR, INDEX = "small-train-000001.tar", "small-train-000001.parquet"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-512])


@pytest.mark.parametrize(
    ("name", "damage", "state"),
    [
        (TAR, cut, "damaged"),
        (TAR, Path.unlink, "damaged"),
        (INDEX, Path.unlink, "damaged"),
        ("_info.json", Path.unlink, "found"),
        ("dataset.json", Path.unlink, "unfinished"),
    ],
)
def test_either_file_of_a_shard_counts(tmp_path: Path, name: str, damage, state: str):
    place = tmp_path / "mine" / "train"
    write_images(place, [3, 2, 4])
    [check] = [one for one in examine_shards(str(tmp_path), []) if one.name == "mine/train"]
    assert (check.state, check.num_samples, check.problem) == ("found", 9, "")
    damage(place / name)
    [check] = [one for one in examine_shards(str(tmp_path), []) if one.name == "mine/train"]
    assert check.state == state and check.num_samples == (None if state == "unfinished" else 9)
    if state == "damaged":
        assert check.problem.startswith(f"{TAR} or its index is missing or not whole")


@pytest.mark.parametrize(
    ("count", "published", "state"), [(3, 4, "partial"), (4, 4, "complete"), (5, 4, "found"), (4, None, "found")]
)
def test_only_as_many_as_were_published_are_all(count: int, published: int | None, state: str):
    """More are another dataset under that name, whatever it holds."""
    assert _state(count, published) == state
