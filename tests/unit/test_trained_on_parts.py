"""How many of the photographs that a model is measured on it was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from msldata.contract.manifest import read_manifest
from msltrain.config import DataConfig
from msltrain.evaluation.trained_on import trained_behind_notes, trained_on_notes
from msltrain.runs.folder import DatasetIdentity
from msltrain.stream.samples.holdout import hold_out
from msltrain.stream.samples.shardset import open_shard_set
from tests.smallshards import photo, write_images, write_keep_masks


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
    monkeypatch.setattr(
        "msltrain.evaluation.trained_on.training_data",
        lambda checkpoint, role="train": [identity] if role == "train" else [],
    )
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


def test_masks_that_were_trained_behind_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Subsets that were cut in two ways share masks, under other keys."""
    rng = np.random.default_rng(0)
    masks = [(rng.random((16, 16)) > 0.6).astype(np.uint8) for _ in range(9)]
    for name, some in {"trained": masks[:6], "part": masks[4:], "others": masks[6:]}.items():
        write_keep_masks(tmp_path / name, some)
    place = {name: str(tmp_path / name) for name in ("trained", "part", "others")}
    fingerprint = {name: read_manifest(one).fingerprint for name, one in place.items()}
    identity = DatasetIdentity.of(place["trained"], read_manifest(place["trained"]))
    monkeypatch.setattr(
        "msltrain.evaluation.trained_on.training_data", lambda checkpoint, role: [identity][: role == "keep_masks"]
    )

    def said(name: str) -> list[str]:
        return trained_behind_notes("run", {place[name]: fingerprint[name]})

    [same], [part] = said("trained"), said("part")
    assert same.startswith(f"the masks in {place['trained']} were trained behind, so what is measured behind them")
    assert part.startswith(f"2 of the 5 masks in {place['part']} were trained behind (they are in {place['trained']}")
    assert said("others") == []
    # Elsewhere, or gone: the fingerprint tells all the same.
    assert trained_behind_notes("run", {"s3://bucket/masks": fingerprint["trained"]})
    assert trained_behind_notes("run", {str(tmp_path / "gone"): "other"}) == []
