"""What is said of a run on one's own photographs is not chosen, whichever field it is."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from msltrain.config import TrainConfig
from msltrain.recipes import own_fit
from msltrain.recipes.own_fit import fit_own
from tests.smallshards import write_images

SAID = {
    "stream.image_size": 96,
    "stream.batch_size": 4,
    "optim.num_epochs": 7,
    "optim.warmup_epochs": 0.25,
    "optim.precise_bn_images": 33,
    "run.amp": True,
    "run.log_every": 3,
    "keep_mask.kind": "stored",
    "data.validation_fraction": 0.25,
    "optim.lr": 0.02,
    "loss.masked_weight": 0.75,
    "optim.twin_share": 0.125,
}
"""Most of them are chosen by the photographs or the machine, where nothing is said."""


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(own_fit, "is_cached", lambda name: name == "resnet18.tv_in1k")
    monkeypatch.setattr(own_fit, "is_reachable", lambda name: False)
    write_images(tmp_path / "train", [14, 10])
    return str(tmp_path / "train")


def value_of(config: TrainConfig, name: str) -> object:
    section, _, field = name.partition(".")
    return getattr(getattr(config, section), field)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("weights", [None, ""])
@pytest.mark.parametrize("name", SAID)
def test_one_field_that_is_said_stays_as_it_was_said(shards: str, name: str, weights: str | None, on_gpu: bool):
    free, _ = fit_own(shards, weights=weights, on_gpu=on_gpu)
    config, _ = fit_own(shards, weights=weights, settings=[f"{name}={SAID[name]}"], on_gpu=on_gpu)
    assert value_of(config, name) == SAID[name]
    assert config.data.train == free.data.train == shards and config.model.backbone == free.model.backbone
    assert config.model.weights == free.model.weights == ("tv_in1k" if weights is None else "")


def test_fields_that_are_said_together_stay_so(shards: str):
    config, reasons = fit_own(shards, settings=[f"{name}={value}" for name, value in SAID.items()], on_gpu=False)
    assert {name: value_of(config, name) for name in SAID} == SAID
    assert any("as asked" in reason for reason in reasons)


def test_what_follows_from_what_was_said_follows(shards: str):
    """A tenth of the epochs is warm-up; masks that are named are those that are used."""
    config, _ = fit_own(shards, settings=["optim.num_epochs=20"], keep_masks=["shards/masks/high"], on_gpu=False)
    assert config.optim.warmup_epochs == 2 and config.keep_mask.kind == "stored"
    assert config.data.keep_masks == ("shards/masks/high",)
    again, _ = fit_own(shards, settings=["optim.num_epochs=20"], on_gpu=False)
    assert again == replace(
        config,
        data=replace(config.data, keep_masks=()),
        keep_mask=replace(config.keep_mask, kind="generated"),
    )


def test_statistics_are_measured_anew_where_there_are_photographs_enough(shards: str, monkeypatch: pytest.MonkeyPatch):
    _, [photographs, *_] = fit_own(shards, on_gpu=False)
    num_train = int(re.findall(r"\d+", photographs)[0])
    for at_least, is_measured in ((num_train + 1, False), (num_train, True)):
        monkeypatch.setattr(own_fit, "PRECISE_BN_FROM", at_least)
        config, _ = fit_own(shards, on_gpu=False)
        assert (config.optim.precise_bn_images > 0) is is_measured
