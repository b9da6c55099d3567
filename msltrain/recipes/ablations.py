"""The paper's ablations as grids: functions that return named configs, to be run over several seeds.

Each varies one of the paper's runs (MSL-C on VOC2007 unless it says otherwise) in one respect; the row of the published
setting is called ``msl``, or ``NETWORK-msl``. ``form`` says in which form: `tuned`, our default, or `as_published`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace

from msltrain.config import LossConfig, TrainConfig
from msltrain.recipes import paper as published
from msltrain.recipes import rivals
from msltrain.recipes.backbones import mae_vit_l16
from msltrain.recipes.rivals import on_one_budget
from msltrain.recipes.variants import Form, as_published, baseline, matched_baseline, tuned
from msltrain.stream.config import KeepMaskConfig

Grid = dict[str, TrainConfig]


def main_voc2007(form: Form = tuned) -> Grid:
    """Table 1: CSRA, MSL-C and MSL-V on VOC2007."""
    msl = form(published.c_voc2007())
    return {"baseline": baseline(msl), "msl": msl, "vit-msl": form(published.v_voc2007())}


def main_coco2014(form: Form = tuned) -> Grid:
    """Table 2: ResNet-cut with a plain head, CSRA and MSL-C on COCO-2014."""
    msl = form(published.c_coco2014())
    return {"resnet-cut": baseline(_plain(msl)), "baseline": baseline(msl), "msl": msl}


def loss_terms(form: Form = tuned) -> Grid:
    """Table 3: what the masked branch and the label consistency add, alone and together."""
    msl = form(published.c_voc2007())
    return {
        "baseline": baseline(msl),
        "matched-baseline": matched_baseline(msl),
        "masked-branch": _with_loss(msl, 0.3, 0.2, 0.0),
        "consistency": _with_loss(msl, 0.5, 0.0, 0.5),
        "msl": msl,
    }


def architectures(form: Form = tuned) -> Grid:
    """Table 4: MSL with a ResNet and a ViT, both under CSRA, on VOC2007."""
    return _architectures(form(published.c_voc2007()), form(published.v_voc2007()))


def architectures_coco2014(form: Form = tuned) -> Grid:
    """Table 4 on COCO-2014."""
    return _architectures(form(published.c_coco2014()), form(published.v_coco2014()))


def binarisation(form: Form = tuned) -> Grid:
    """Table 5: keep masks without binarisation, whose visible pixels came out as 225 of 255 (0.882)."""
    msl = form(published.c_voc2007())
    not_binarised = replace(msl, keep_mask=KeepMaskConfig(visible_level=round(225 / 255, 3)))
    return {"baseline": baseline(msl), "not-binarised": not_binarised, "msl": msl}


def mask_subsets(form: Form = tuned) -> Grid:
    """Table 6: masks that hide little or much, as published; and both together, which is ours."""
    return _mask_subsets(form(published.c_voc2007()))


def mask_subsets_coco2014(form: Form = tuned) -> Grid:
    """Table 6 on COCO-2014."""
    return _mask_subsets(form(published.c_coco2014()))


def loss_weights(form: Form = tuned) -> Grid:
    """Table 7: weights of the three terms other than (0.3, 0.2, 0.5); those from (0.2, 0.3, 0.5) on are ours."""
    msl = form(published.c_voc2007())
    paper = ((1.0, 1.0, 1.0), (0.2, 0.2, 0.6), (0.3, 0.3, 0.4), (0.4, 0.4, 0.2))
    ours = ((0.2, 0.3, 0.5), (0.6, 0.2, 0.2), (0.1, 0.1, 0.8))
    rows = [
        {"-".join(f"{weight:g}" for weight in all_): _with_loss(msl, *all_) for all_ in one} for one in (paper, ours)
    ]
    return {**rows[0], "msl": msl, **rows[1]}


def masked_autoencoder(form: Form = tuned) -> Grid:
    """Table 8: MSL against MAE, read as hiding random patches, or as fine-tuning a model pretrained that way."""
    return _masked_autoencoder(form(published.c_voc2007()), form(published.v_voc2007()))


def masked_autoencoder_coco2014(form: Form = tuned) -> Grid:
    """Table 8 on COCO-2014."""
    return _masked_autoencoder(form(published.c_coco2014()), form(published.v_coco2014()))


def plain_head(form: Form = tuned) -> Grid:
    """Table 9: a ViT and a ResNet with a mean-pooled linear head, with CSRA, and with MSL in its place."""
    return _plain_head(form(published.c_voc2007()), form(published.v_voc2007()))


def plain_head_coco2014(form: Form = tuned) -> Grid:
    """Table 9 on COCO-2014."""
    return _plain_head(form(published.c_coco2014()), form(published.v_coco2014()))


def mask_kinds(form: Form = tuned) -> Grid:
    """Not in the paper: the effect of the shape of the holes, at the share that the published masks hide on average."""
    msl = form(published.c_voc2007())
    return {
        "msl": msl,
        "patch": replace(msl, keep_mask=KeepMaskConfig(kind="patch", hole_fraction=0.547)),
        "box": replace(msl, keep_mask=KeepMaskConfig(kind="box", hole_fraction=0.547)),
    }


def batchnorm(form: Form = tuned) -> Grid:
    """Not in the paper: how much of the gain is BatchNorm adapting to masked images."""
    msl = form(published.c_voc2007())
    return {
        "msl": msl,
        "clean-only": replace(msl, loss=replace(msl.loss, bn_mode="clean_only")),
        "split": replace(msl, loss=replace(msl.loss, bn_mode="split")),
        "mixture": replace(msl, loss=replace(msl.loss, branches="concatenated")),
    }


def rivals_voc2007(form: Form = tuned) -> Grid:
    """Rivals on VOC2007: CSRA, ASL, ML-Decoder, Query2Label, SpliceMix and MSL on one network; not in the paper."""
    makers = {
        "csra": rivals.csra_c_voc2007,
        "asl": rivals.asl_t_voc2007,
        "mldecoder": rivals.mldecoder_t_voc2007,
        "q2l": rivals.q2l_r_voc2007,
        "splicemix": rivals.splicemix_r_voc2007,
    }
    return _rivals(form, published.c_voc2007(), makers)


def rivals_coco2014(form: Form = tuned) -> Grid:
    """Rivals on COCO-2014: CSRA, ASL, ML-Decoder, Query2Label, SpliceMix and MSL on one network; not in the paper."""
    makers = {
        "csra": rivals.csra_c_coco2014,
        "asl": rivals.asl_t_coco2014,
        "mldecoder": rivals.mldecoder_t_coco2014,
        "q2l": rivals.q2l_r_coco2014,
        "splicemix": rivals.splicemix_r_coco2014,
    }
    return _rivals(form, published.c_coco2014(), makers)


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
    "architectures": architectures,
    "masked-autoencoder": masked_autoencoder,
    "mask-kinds": mask_kinds,
    "plain-head": plain_head,
    "batchnorm": batchnorm,
    "robustness-voc2007": robustness_voc2007,
    "robustness-coco2014": robustness_coco2014,
    "architectures-coco2014": architectures_coco2014,
    "mask-subsets-coco2014": mask_subsets_coco2014,
    "masked-autoencoder-coco2014": masked_autoencoder_coco2014,
    "plain-head-coco2014": plain_head_coco2014,
    "main-voc2007": main_voc2007,
    "main-coco2014": main_coco2014,
    "rivals-voc2007": rivals_voc2007,
    "rivals-coco2014": rivals_coco2014,
}


def reference_row(rows: Iterable[str], row: str) -> str:
    """The row that ``row`` is a variant of: the ``…-msl`` with the longest common beginning, else ``msl``."""
    stems = {name.removesuffix("-msl"): name for name in rows if name.endswith("-msl") and name != row}
    stem = max((stem for stem in stems if row.startswith(stem)), key=len, default="")
    return stems.get(stem, "msl" if "msl" in rows and not row.endswith("-msl") else row)


def what_it_varies(grid: str) -> str:
    """First line of a grid's description, without the full stop."""
    return (inspect.getdoc(GRIDS[grid]) or "").partition("\n")[0].rstrip(".")


def _architectures(resnet: TrainConfig, vit: TrainConfig) -> Grid:
    return {"vit-baseline": baseline(vit), "vit-msl": vit, "resnet-baseline": baseline(resnet), "resnet-msl": resnet}


def _mask_subsets(msl: TrainConfig) -> Grid:
    (high,) = msl.data.keep_masks
    low = high.removesuffix("high") + "low"
    return {"msl": msl, "low": _with_masks(msl, low), "both": _with_masks(msl, high, low)}


def _masked_autoencoder(resnet: TrainConfig, vit: TrainConfig) -> Grid:
    patches = KeepMaskConfig(kind="patch", hole_fraction=0.75)
    mae = replace(vit, model=replace(vit.model, weights=mae_vit_l16().weights))
    return {
        "msl": resnet,
        "random-patches": replace(resnet, keep_mask=patches),
        "vit-baseline": baseline(vit),
        "vit-msl": vit,
        "vit-random-patches": replace(vit, keep_mask=patches),
        "vit-pretrained-baseline": baseline(mae),
        "vit-pretrained-msl": mae,
    }


def _plain_head(resnet: TrainConfig, vit: TrainConfig) -> Grid:
    grid: Grid = {}
    for name, csra in (("vit-l16", vit), ("resnet-cut", resnet)):
        plain = _plain(csra)
        grid |= {name: baseline(plain), f"{name}-csra": baseline(csra), f"{name}-msl": plain}
    return grid


def _rivals(form: Form, msl: TrainConfig, makers: dict[str, Callable[[], TrainConfig]]) -> Grid:
    """With the published values: each rival as its authors trained it, on its own network."""
    trained = form(msl)
    each = {row: make() for row, make in makers.items()}
    if form is not as_published:
        each = {row: on_one_budget(rival, trained) for row, rival in each.items()}
    return {"linear": baseline(_plain(trained)), **each, "msl": trained}


def _plain(config: TrainConfig) -> TrainConfig:
    return replace(config, model=replace(config.model, head="mean"))


def _methods(msl: TrainConfig) -> Grid:
    return {"baseline": baseline(msl), "matched-baseline": matched_baseline(msl), "msl": msl}


def _with_loss(config: TrainConfig, clean: float, masked: float, consistency: float) -> TrainConfig:
    loss = LossConfig(clean_weight=clean, masked_weight=masked, consistency_weight=consistency)
    return replace(config, loss=loss)


def _with_masks(config: TrainConfig, *places: str) -> TrainConfig:
    return replace(config, data=replace(config.data, keep_masks=places))
