"""Heads, losses and augmentations of one's own in one process: names, contracts, and what they are given."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata

import pytest
import torch
from torch import nn

import msltrain
from msldata.errors import UserError
from msltrain import registered
from msltrain.config import LossConfig, ModelConfig, from_json, to_json
from msltrain.models.build import build_model
from msltrain.models.own_weights import OwnWeights, _fill_head
from msltrain.recipes import recipe
from msltrain.recipes.fields import fields_of
from msltrain.settings import override
from msltrain.stream.config import AugmentConfig, StreamConfig
from msltrain.training.losses import own_loss, recognition_loss
from tests.unit.test_learner import batch


def cross_entropy(logit_BK, target_BK):
    return nn.functional.binary_cross_entropy_with_logits(logit_BK, target_BK, reduction="none")


def test_an_own_loss_is_weighted_ignored_and_averaged_like_ours():
    msltrain.register_loss("same-as-bce")(cross_entropy)
    generator = torch.Generator().manual_seed(0)
    logit_BK, weight_BK = torch.randn(4, 3, generator=generator), torch.rand(4, 3, generator=generator)
    target_BK, ignore_BK = (logit_BK > 0.3).float(), logit_BK > 1
    for pairs in ((None, None), (ignore_BK, None), (None, weight_BK), (ignore_BK, weight_BK)):
        own = own_loss("same-as-bce", logit_BK, target_BK, *pairs)
        torch.testing.assert_close(own, recognition_loss(logit_BK, target_BK, *pairs))
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images = torch.randn(4, 3, 2, 2, generator=generator), torch.ones(4, 1, 2, 2), target_BK
    for masked_target in ("labels", "whole_image"):
        ours = LossConfig(masked_target=masked_target, class_weights=(1, 2, 3), label_smoothing=0.1)
        expected = msltrain.SiameseStep(network, ours)(*images)
        found = msltrain.SiameseStep(network, replace(ours, recognition="same-as-bce"))(*images)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("gives", "found"), [(lambda a, b: (a - b).mean(), r"\(\)"), (lambda a, b: 1.0, "float")])
def test_an_own_loss_that_gives_something_else_is_refused(gives, found):
    msltrain.register_loss("wrong")(gives)
    with pytest.raises(UserError, match=rf"loss\.recognition=wrong: gives {found} for logits \(2, 3\); it must give"):
        own_loss("wrong", torch.zeros(2, 3), torch.zeros(2, 3))


def test_an_own_head_is_built_and_one_that_is_no_module_refused():
    msltrain.register_head("pooled")(lambda channels, classes: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()))
    msltrain.register_head("nothing")(lambda channels, classes: None)
    config = ModelConfig(backbone="test_efficientnet", head="pooled")
    model = build_model(config, 3, image_size=32).eval()
    image_BCHW = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(image_BCHW), model.backbone(image_BCHW).amax((2, 3)))
    with pytest.raises(UserError, match=r"model\.head=nothing: makes a NoneType; it must make a torch\.nn\.Module"):
        build_model(replace(config, head="nothing"), 3, image_size=32)


def test_rows_of_an_own_head_are_never_mistaken_for_classes():
    """Its tensors may have as many rows as there are classes, or a multiple: only the same classes take it over."""
    msltrain.register_head("two-layers")(lambda d, k: nn.Sequential(nn.Linear(d, 6), nn.Linear(6, k)))
    config = ModelConfig(backbone="test_efficientnet", head="two-layers")
    before, now = (build_model(config, 3, image_size=32).classifier for _ in range(2))
    tensors = {f"classifier.{name}": tensor for name, tensor in before.state_dict().items()}
    own = OwnWeights(source="it", tensors=tensors, classes=("a", "b", "c"))
    assert _fill_head(now, own, ("b", "a", "c")).startswith("head not taken: its weights are shared by classes")
    assert _fill_head(now, own, ("a", "b", "c")) == "the head with all its classes"
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in now.state_dict().items())


def test_an_own_augmentation_comes_last_and_gives_a_batch():
    @msltrain.register_augmentation("darker")
    def darker(given, *, seed: int, epoch: int):
        return replace(given, image_BCHW=given.image_BCHW * (seed + epoch))

    msltrain.register_augmentation("wrong")(lambda given, *, seed, epoch: given.image_BCHW)
    one, stream = batch(), StreamConfig(image_size=32)
    mixed = msltrain.Augment(AugmentConfig(mix="cutmix"), stream)(one, seed=2, epoch=1)
    both = msltrain.Augment(AugmentConfig(mix="cutmix", batch="darker"), stream)(one, seed=2, epoch=1)
    assert not torch.equal(mixed.image_BCHW, one.image_BCHW)
    assert torch.equal(both.image_BCHW, 3 * mixed.image_BCHW) and torch.equal(both.target_BK, mixed.target_BK)
    assert AugmentConfig(batch="darker").is_active and AugmentConfig(batch="darker").moves_objects
    with pytest.raises(UserError, match=r"augment\.batch=wrong: gives a Tensor; it must give a Batch"):
        msltrain.Augment(AugmentConfig(batch="wrong"), stream)(one, seed=2, epoch=1)


def test_names_of_ours_and_of_others_are_kept():
    for register, taken in (
        (msltrain.register_head, "csra"),
        (msltrain.register_loss, "bce"),
        (msltrain.register_head, "my head"),
        (msltrain.register_augmentation, ""),
    ):
        with pytest.raises(UserError, match=r"is one of msltrain's own|is no name"):
            register(taken)
    msltrain.register_loss("twice")(cross_entropy)
    msltrain.register_loss("twice")(cross_entropy)  # as the cell of a notebook does
    with pytest.raises(UserError, match=r"loss\.recognition: 'twice' is registered twice, by .*cross_entropy and by "):
        msltrain.register_loss("twice")(lambda logit_BK, target_BK: logit_BK)


def test_an_own_name_survives_json_and_what_ours_are_is_still_offered():
    msltrain.register_head("mine")(nn.Linear)
    config = override(recipe("smoke"), ["model.head=mine"])
    assert from_json(to_json(config)) == config
    choices = {field.name: field.choices for field in fields_of(config)}
    assert choices["model.head"] == ("csra", "mean", "max", "mldecoder", "q2l")
    assert choices["loss.recognition"] == ("bce", "asl", "hill", "splc")
    with pytest.raises(UserError, match=r"^model\.head: expected text, found 3$"):
        override(recipe("smoke"), {"model.head": 3})


def test_a_package_names_its_module_by_an_entry_point_and_a_file_of_a_run_names_none(tmp_path, monkeypatch):
    (tmp_path / "my_package_of_parts.py").write_text(
        "import torch, msltrain\nmsltrain.register_head('packaged')(torch.nn.Linear)\n"
    )
    text = to_json(recipe("smoke")).replace('"head": "csra"', '"head": "packaged"')
    monkeypatch.setattr(registered, "_is_loaded", False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"model\.head: 'packaged' is not one of csra, "):
        from_json(text)
    point = metadata.EntryPoint("mine", "my_package_of_parts", registered.ENTRY_POINTS)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == "msltrain" else [])
    monkeypatch.setattr(registered, "_is_loaded", False)
    assert from_json(text).model.head == "packaged"
