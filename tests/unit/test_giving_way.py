"""What the recipe ``own`` chose beside what a user sets, and what is shown of its choices."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from msldata.errors import UserError
from msltrain.__main__ import app
from msltrain.config import TrainConfig, differences
from msltrain.recipes import own_fit
from msltrain.recipes.giving_way import with_settings
from msltrain.recipes.own import CHOSEN, CHOSEN_OF_BASELINE, OWN_BASELINE, own, own_baseline
from msltrain.recipes.variants import distilled, distilled_with_twin
from tests.smallshards import write_images

PLAIN = ("loss.clean_weight=1", "loss.masked_weight=0", "loss.consistency_weight=0")


@pytest.mark.parametrize("chosen", [own(), distilled(own()), distilled_with_twin(own())])
@pytest.mark.parametrize(
    "settings",
    [
        PLAIN,
        ("optim.ema_decay=0.99",),
        ("run.shard_weights=true",),
        ("loss.masked_target=teacher", "optim.ema_decay=0.99"),
        ("loss.recognition=asl",),
        ("loss.bn_mode=split",),
        ("loss.bn_mode=running",),
        ("loss.branches=concatenated",),
        ("loss.branches=single",),
        ("loss.drop_hidden_tokens=0.5",),
        ("loss.clean_weight=0", "loss.masked_weight=0", "loss.consistency_weight=1"),
        ("keep_mask.kind=object",),
        ("keep_mask.kind=patch",),
        ("model.freeze_batchnorm=true",),
        ("model.freeze_backbone=true",),
    ],
)
def test_no_choice_stands_in_the_way_of_what_was_set(chosen: TrainConfig, settings: tuple[str, ...]):
    config = with_settings(chosen, settings)
    for setting in settings:
        field, _, value = setting.partition("=")
        section, _, name = field.partition(".")
        assert str(getattr(getattr(config, section), name)).lower() in (value, f"{value}.0")
    if "model.freeze" in settings[0]:
        assert config.loss.bn_mode == "shared", "no BatchNorm learns, which the other modes need"
    if settings == PLAIN or settings[0].startswith("run.shard"):
        assert config.optim.twin_share == 0


def test_what_is_set_never_gives_way():
    with pytest.raises(UserError, match=r"optim.twin_share: 0.5 is not 0, as the loss has no masks"):
        with_settings(distilled_with_twin(own()), (*PLAIN, "optim.twin_share=0.5"))
    assert with_settings(distilled_with_twin(own()), ("optim.lr=0.5",)).optim.twin_share > 0


@pytest.mark.parametrize("on_gpu", [True, False])
@pytest.mark.parametrize("has_weights", [True, False])
def test_every_field_that_is_chosen_is_said_to_be(tmp_path, monkeypatch, on_gpu, has_weights):
    write_images(tmp_path / "shards", [30], size=(300, 200))
    monkeypatch.setattr(own_fit, "is_cached", lambda name: has_weights and name.startswith("resnet50."))
    monkeypatch.setattr(own_fit, "is_reachable", lambda name: False)
    baseline, _ = own_fit.fit_own(str(tmp_path / "shards"), on_gpu=on_gpu, name=OWN_BASELINE)
    assert set(differences(own_baseline(), baseline)) <= set(CHOSEN_OF_BASELINE)
    for settings in ((), PLAIN, ("optim.ema_decay=0.99",), ("optim.twin_share=0",)):
        set_here = {setting.partition("=")[0] for setting in settings}
        config, reasons = own_fit.fit_own(str(tmp_path / "shards"), settings=settings, on_gpu=on_gpu)
        assert set(differences(own(), config)) - set_here <= set(CHOSEN)
        if settings == PLAIN:
            assert reasons[-1].startswith("method: every photograph is shown whole; masks")


def test_recipes_own_shows_rules_in_the_place_of_values_that_no_run_has():
    said = CliRunner().invoke(app, ["recipes", "own"]).output
    assert "optim.num_epochs: chosen at the start: as many as make 25" in said and "optim.num_epochs =" not in said
    assert "optim.momentum = 0.9" in said and "msl train NAME --set" in said
    assert "chosen at the start" not in CliRunner().invoke(app, ["recipes", "demo"]).output
