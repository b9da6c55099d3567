"""From a model config to a recogniser: backbone, head, pretrained weights.

B batch, C image channels, H, W height and width, K classes.
"""

from __future__ import annotations

import difflib
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from msldata.errors import UserError
from msltrain.config import ModelConfig
from msltrain.models.backbone import Backbone
from msltrain.models.heads import CSRAHead, MaxPoolHead, MeanPoolHead, build_own_head
from msltrain.models.own_weights import fill_from_own, read_own
from msltrain.models.pretrained import (
    WeightsReport,
    create_pretrained,
    fill_network,
    read_source,
)
from msltrain.models.query_heads import MLDecoderHead, Query2LabelHead
from msltrain.models.released import Released, take_apart
from msltrain.models.weights_place import is_timm_tag
from msltrain.registered import OF_YOURS, load_own


class Recogniser(nn.Module):
    """A backbone and a head: images in, one logit per class out.

    The head is called ``classifier`` because the published optimiser multiplies the learning rate of every parameter
    with that word in its name.

    Attributes:
        weights: where the backbone's first weights came from; None when it started at random.
        freeze_batchnorm: BatchNorm stays in evaluation mode while the rest trains.
        freeze_backbone: so does the whole backbone, and none of its weights learns.
        patch_grid: rows and columns of patches, after `enable_patch_selection`.
    """

    patch_grid: tuple[int, int]

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        *,
        weights: WeightsReport | None = None,
        freeze_batchnorm: bool = False,
        freeze_backbone: bool = False,
    ):
        super().__init__()
        self.backbone = backbone
        self.classifier = head
        self.weights = weights
        self.freeze_batchnorm = freeze_batchnorm or freeze_backbone
        self.freeze_backbone = freeze_backbone
        if freeze_backbone:
            backbone.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Recogniser:
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        if self.freeze_batchnorm:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def enable_patch_selection(self) -> None:
        """Let ``forward`` take patches to look at. Raises UserError if the backbone or the head cannot."""
        if getattr(self.classifier, "needs_grid", False):
            raise UserError(
                "loss.drop_hidden_tokens leaves out patches, and model.head=q2l needs all positions; set it to 0, or "
                "choose another head"
            )
        self.patch_grid = self.backbone.enable_patch_selection()

    def forward(self, image_BCHW: Tensor, patch_BP: Tensor | None = None) -> Tensor:
        """Logits (B, K), always float32: the head runs outside autocast, since bf16 logits create ties.

        Args:
            image_BCHW: the images.
            patch_BP: int64, the patches to look at, after `enable_patch_selection`; None: all.
        """
        with nullcontext() if not self.freeze_backbone else torch.no_grad():
            feature_BDHW = self.backbone(image_BCHW) if patch_BP is None else self.backbone(image_BCHW, patch_BP)
        with torch.autocast(image_BCHW.device.type, enabled=False):
            return self.classifier(feature_BDHW.to(torch.promote_types(feature_BDHW.dtype, torch.float32)))


def build_model(config: ModelConfig, num_classes: int, *, image_size: int, classes: tuple[str, ...] = ()) -> Recogniser:
    """Build the recogniser on the CPU, with pretrained backbone weights when the config names some.

    Args:
        config: backbone, weights and head.
        num_classes: K.
        image_size: side in pixels of the square images it will see; transformers resample their positions to it.
        classes: their names, by which the head of one of our models is taken over; empty: by position.

    Raises:
        UserError: unknown backbone, unknown or unsuitable weights, a network that yields no feature map.
        FileNotFoundError: the weights file does not exist.
    """
    own = read_own(config.weights)
    network, released, report = _build_network(config if own is None else replace(config, weights=""))
    backbone = Backbone(network, name=config.backbone, image_size=image_size)
    if report is not None:
        needed = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
        needed |= {name for name, _ in network.named_buffers()}
        absent = [name for name in report.missing if name in needed]
        if absent:
            raise UserError(
                f"{report.source}: lacks {len(absent)} tensors that backbone '{config.backbone}' needs, "
                f"such as {', '.join(absent[:4])}; choose the backbone it was made with"
            )
    head = _build_head(config, backbone.num_features, num_classes)
    if own is not None:
        report = fill_from_own(network, head, own, classes)
    if report is not None and released is not None:
        fills = released.fills(head, num_classes)
        ignored = report.ignored if fills else (*released.head_names, *report.ignored)
        report = replace(report, fills_head=fills, ignored=ignored)
    return Recogniser(
        backbone,
        head,
        weights=report,
        freeze_batchnorm=config.freeze_batchnorm,
        freeze_backbone=config.freeze_backbone,
    )


def check_backbone(name: str) -> None:
    """Raise UserError, with the names that are near, where neither timm nor the user has registered such a network."""
    import timm

    load_own()
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=6)
        near = f"similar names: {', '.join(close)}" if close else "`timm.list_models()` lists them"
        raise UserError(f"timm has no model '{name}'; {near}; {OF_YOURS}")


def _build_network(config: ModelConfig) -> tuple[nn.Module, Released | None, WeightsReport | None]:
    """The timm network, the released checkpoint that its weights came from (if it was one), and what was taken."""
    import timm

    check_backbone(config.backbone)
    if config.weights and is_timm_tag(config.weights):
        network, report = create_pretrained(config.backbone, config.weights)
        return network, None, report
    network = timm.create_model(config.backbone.split(".")[0], pretrained=False, num_classes=0)
    if not config.weights:
        return network, None, None
    found = read_source(config.weights)
    released = take_apart(found, config.weights)
    return network, released, fill_network(network, released.backbone if released else found, config.weights)


def _build_head(config: ModelConfig, num_features: int, num_classes: int) -> nn.Module:
    match config.head:
        case "csra":
            return CSRAHead(
                num_features, num_classes, num_heads=config.num_heads, attention_weight=config.attention_weight
            )
        case "mean":
            return MeanPoolHead(num_features, num_classes)
        case "max":
            return MaxPoolHead(num_features, num_classes)
        case "mldecoder":
            return MLDecoderHead(
                num_features,
                num_classes,
                num_queries=config.num_queries,
                width=config.decoder_width,
                hidden=config.decoder_hidden,
                dropout=config.head_dropout,
            )
        case "q2l":
            width = config.decoder_width or num_features
            if width % Query2LabelHead.NUM_HEADS:
                raise UserError(
                    f"model.head=q2l: its decoder would be as wide as the {num_features} channels of "
                    f"'{config.backbone}', which is no multiple of 4; set model.decoder_width, for instance to 512"
                )
            return Query2LabelHead(
                num_features,
                num_classes,
                width=width,
                hidden=config.decoder_hidden,
                dropout=config.head_dropout,
            )
        case own:
            return build_own_head(own, num_features, num_classes)
