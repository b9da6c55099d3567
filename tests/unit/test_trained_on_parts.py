"""How many of the photographs that a model is measured on it was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from msldata.contract.manifest import read_manifest
from msltrain.config import DataConfig
from msltrain.evaluation.trained_on import trained_on_notes
from msltrain.runs.folder import DatasetIdentity
from msltrain.stream.samples.holdout import hold_out
from msltrain.stream.samples.shardset import open_shard_set
from tests.smallshards import photo, write_images


@pytest.mark.parametrize(
    ("settings", "is_part"),
    [
        ({"validation_fraction": 0.3}, True),
        ({"validation_fraction": 0.0}, False),
        ({"validation": "elsewhere", "validation_fraction": 0.3}, False),  # then nothing is set aside
    ],
)
def test_photographs_that_were_set_aside_are_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict, is_part: bool
):
    """Twenty photographs, measured once more beside three others, by other keys and in other shards."""
    write_images(tmp_path / "train", [20], size=(60, 40))
    again = {f"s{number:06d}": photo((number + 7) % 23, 60, 40) for number in range(23)}
    write_images(tmp_path / "again", [9, 14], again, size=(60, 40))
    write_images(tmp_path / "others", [3], {f"s{number:06d}": photo(90 + number, 60, 40) for number in range(3)})
    place = str(tmp_path / "train")
    identity = DatasetIdentity.of(place, read_manifest(place))
    monkeypatch.setattr("msltrain.evaluation.trained_on.training_data", lambda checkpoint: [identity])
    kept, aside = hold_out(place, 0.3)
    assert aside.num_samples > 2
    data = DataConfig(train=place, **settings)
    [note] = trained_on_notes("run", data, open_shard_set(tmp_path / "again"), "again")
    number = kept.num_samples if is_part else 20
    assert note.startswith(f"again: {number} of the 23 photographs were trained on (they are in ")
    assert trained_on_notes("run", data, open_shard_set(tmp_path / "others"), "others") == []
    [itself] = trained_on_notes("run", data, open_shard_set(place), "train")
    assert itself.startswith("train is what this model was trained on")
    assert trained_on_notes("run", data, open_shard_set(place), "train", held_out=True) == []
