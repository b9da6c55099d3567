"""The paper's ablations as grids: functions that return named configs, to be run over several seeds.

Each varies one of the paper's runs, MSL-C on VOC2007 unless it says otherwise, in one respect, and names the published
setting's row ``msl``. ``form`` says in which form: `tuned`, our default, or `as_published`. Where our sources say which
table of the paper a grid belongs to, its docstring does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace

from msltrain.config import LossConfig, TrainConfig
from msltrain.recipes import paper as published
from msltrain.recipes.backbones import mae_vit_l16, resnet101, vit_l16
from msltrain.recipes.variants import Form, baseline, matched_baseline, tuned
from msltrain.stream.config import KeepMaskConfig

Grid = dict[str, TrainConfig]


def loss_terms(form: Form = tuned) -> Grid:
    """What each term of the loss adds: plain, masked images as augmentation, masked branch, label consistency."""
    msl = form(published.c_voc2007())
    return {
        "baseline": baseline(msl),
        "matched-baseline": matched_baseline(msl),
        "masked-branch": _with_loss(msl, 0.3, 0.2, 0.0),
        "consistency": _with_loss(msl, 0.5, 0.0, 0.5),
        "msl": msl,
    }


def loss_weights(form: Form = tuned) -> Grid:
    """Other shares of the three terms than the published (0.3, 0.2, 0.5), each adding up to 1."""
    msl = form(published.c_voc2007())
    shares = ((0.2, 0.3, 0.5), (0.4, 0.4, 0.2), (0.6, 0.2, 0.2), (0.1, 0.1, 0.8))
    return {"msl": msl, **{"-".join(map(str, share)): _with_loss(msl, *share) for share in shares}}


def mask_subsets(form: Form = tuned) -> Grid:
    """How much is hidden: masks with holes of more than half the image (the published choice), of less, or all."""
    msl = form(published.c_voc2007())
    high, low = "shards/masks/high", "shards/masks/low"
    return {"msl": msl, "low": _with_masks(msl, low), "both": _with_masks(msl, high, low)}


def binarisation(form: Form = tuned) -> Grid:
    """Table 5: keep masks without binarisation, whose visible pixels came out as 225 of 255 (0.882)."""
    msl = form(published.c_voc2007())
    return {"msl": msl, "not-binarised": replace(msl, keep_mask=KeepMaskConfig(visible_level=round(225 / 255, 3)))}


def masked_autoencoder(form: Form = tuned) -> Grid:
    """Table 8 in both readings: MSL-V from a ViT-L/16 pretrained as MAE, and MSL-V that hides random patches as MAE."""
    msl = form(published.v_voc2007())
    mae = replace(msl, model=replace(mae_vit_l16(), num_heads=1, attention_weight=0.3))
    return {
        "baseline": baseline(msl),
        "msl": msl,
        "pretrained-baseline": baseline(mae),
        "pretrained-msl": mae,
        "random-patches": replace(msl, keep_mask=KeepMaskConfig(kind="patch", hole_fraction=0.75)),
    }


def mask_kinds(form: Form = tuned) -> Grid:
    """Not in the paper: what the shape of the holes does, at the share that the published masks hide on average."""
    msl = form(published.c_voc2007())
    return {
        "msl": msl,
        "patch": replace(msl, keep_mask=KeepMaskConfig(kind="patch", hole_fraction=0.547)),
        "box": replace(msl, keep_mask=KeepMaskConfig(kind="box", hole_fraction=0.547)),
    }


def plain_head(form: Form = tuned) -> Grid:
    """Tables 4 and 9, "w/ MSL": a mean-pooled linear head instead of CSRA, with and without MSL, on two backbones."""
    grid: Grid = {}
    for name, model, image_size in (("resnet101", resnet101(), 448), ("vit-l16", vit_l16(), 224)):
        msl = form(published.c_voc2007())
        msl = replace(msl, stream=replace(msl.stream, image_size=image_size), model=replace(model, head="mean"))
        grid |= {f"{name}-baseline": baseline(msl), f"{name}-msl": msl}
    return grid


def batchnorm(form: Form = tuned) -> Grid:
    """Not in the paper: how much of the gain is BatchNorm getting to know masked images."""
    msl = form(published.c_voc2007())
    return {
        "msl": msl,
        "clean-only": replace(msl, loss=replace(msl.loss, bn_mode="clean_only")),
        "split": replace(msl, loss=replace(msl.loss, bn_mode="split")),
        "mixture": replace(msl, loss=replace(msl.loss, branches="concatenated")),
    }


def robustness_voc2007(form: Form = tuned) -> Grid:
    """Figure 3 on VOC2007: the models whose curves over the hidden share it compares, with a rate-matched baseline."""
    return _methods(form(published.c_voc2007()))


def robustness_coco2014(form: Form = tuned) -> Grid:
    """Figure 3 on COCO-2014: as on VOC2007."""
    return _methods(form(published.c_coco2014()))


GRIDS: dict[str, Callable[[Form], Grid]] = {
    "loss-terms": loss_terms,
    "loss-weights": loss_weights,
    "mask-subsets": mask_subsets,
    "binarisation": binarisation,
    "masked-autoencoder": masked_autoencoder,
    "mask-kinds": mask_kinds,
    "plain-head": plain_head,
    "batchnorm": batchnorm,
    "robustness-voc2007": robustness_voc2007,
    "robustness-coco2014": robustness_coco2014,
}


def what_it_varies(grid: str) -> str:
    """First line of a grid's description, without the full stop."""
    return (inspect.getdoc(GRIDS[grid]) or "").partition("\n")[0].rstrip(".")


def _methods(msl: TrainConfig) -> Grid:
    return {"baseline": baseline(msl), "matched-baseline": matched_baseline(msl), "msl": msl}


def _with_loss(config: TrainConfig, clean: float, masked: float, consistency: float) -> TrainConfig:
    loss = LossConfig(clean_weight=clean, masked_weight=masked, consistency_weight=consistency)
    return replace(config, loss=loss)


def _with_masks(config: TrainConfig, *places: str) -> TrainConfig:
    return replace(config, data=replace(config.data, keep_masks=places))
