"""From a model config to a recogniser: backbone, head, pretrained weights.

B batch, C image channels, H, W height and width, K classes.
"""

from __future__ import annotations

import difflib

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from msldata.errors import UserError
from msltrain.config import ModelConfig
from msltrain.models.backbone import Backbone
from msltrain.models.csra import CSRAHead
from msltrain.models.heads import MaxPoolHead, MeanPoolHead
from msltrain.models.pretrained import WeightsReport, create_pretrained, is_weights_file, load_weights_file


class Recogniser(nn.Module):
    """A backbone and a head: images in, one logit per class out.

    The head is called ``classifier`` because the published optimiser multiplies the learning rate of every parameter
    with that word in its name.

    Attributes:
        weights: where the backbone's first weights came from; None when it started at random.
        freeze_batchnorm: BatchNorm stays in evaluation mode while the rest trains.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        *,
        weights: WeightsReport | None = None,
        freeze_batchnorm: bool = False,
    ):
        super().__init__()
        self.backbone = backbone
        self.classifier = head
        self.weights = weights
        self.freeze_batchnorm = freeze_batchnorm
        self.train()

    def train(self, mode: bool = True) -> Recogniser:
        super().train(mode)
        if self.freeze_batchnorm:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Logits (B, K), always float32: the head runs outside autocast, since bf16 logits tie and lose rank."""
        feature_BDHW = self.backbone(image_BCHW)
        with torch.autocast(image_BCHW.device.type, enabled=False):
            return self.classifier(feature_BDHW.to(torch.promote_types(feature_BDHW.dtype, torch.float32)))


def build_model(config: ModelConfig, num_classes: int, *, image_size: int) -> Recogniser:
    """Build the recogniser on the CPU, with pretrained backbone weights when the config names some.

    Args:
        config: backbone, weights and head.
        num_classes: K.
        image_size: side in pixels of the square images it will see; transformers resample their positions to it.

    Raises:
        UserError: unknown backbone, unknown or unfitting weights, a network that yields no feature map.
        FileNotFoundError: the weights file does not exist.
    """
    network, report = _build_network(config)
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
    return Recogniser(
        backbone,
        _build_head(config, backbone.num_features, num_classes),
        weights=report,
        freeze_batchnorm=config.freeze_batchnorm,
    )


def _build_network(config: ModelConfig) -> tuple[nn.Module, WeightsReport | None]:
    import timm

    if not timm.is_model(config.backbone):
        close = difflib.get_close_matches(config.backbone, timm.list_models(), n=6)
        raise UserError(
            f"timm has no model '{config.backbone}'"
            + (f"; near it are {', '.join(close)}" if close else "; `timm.list_models()` lists them")
        )
    if config.weights and not is_weights_file(config.weights):
        return create_pretrained(config.backbone, config.weights)
    network = timm.create_model(config.backbone.split(".")[0], pretrained=False, num_classes=0)
    return network, load_weights_file(network, config.weights) if config.weights else None


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
