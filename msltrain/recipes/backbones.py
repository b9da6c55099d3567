"""The networks of the paper, as model configs; the recipes add what differs by dataset: CSRA's heads and λ."""

from __future__ import annotations

from msltrain.config import ModelConfig


def resnet101() -> ModelConfig:
    """ResNet-101 with torchvision's first ImageNet-1k weights, as the paper's "ResNet-101" rows."""
    return ModelConfig(backbone="resnet101", weights="tv_in1k")


def resnet_cut() -> ModelConfig:
    """ResNet-101 trained on ImageNet-1k with CutMix, the paper's "ResNet-cut".

    Deviation: the published file comes from its authors only (``--weights resnet_cut.pth``, unchanged: its names are
    torchvision's). It is replaced by torchvision's second recipe, which also trained with CutMix.
    """
    return ModelConfig(backbone="resnet101", weights="tv2_in1k")


def vit_l16() -> ModelConfig:
    """ViT-L/16 for 224 pixels, for MSL-V.

    Deviation: the official file (``--weights jx_vit_large_p16_224-4ee7a4dc.pth``) holds older weights that timm has no
    tag for; they are replaced by those of the same network trained with more augmentation.
    """
    return ModelConfig(backbone="vit_large_patch16_224", weights="augreg_in21k_ft_in1k", attention_weight=0.3)


def vit_b16() -> ModelConfig:
    """ViT-B/16 for 224 pixels, for WIDER-Attribute. Deviation: as `vit_l16` (``jx_vit_base_p16_224-80ecf9dd.pth``)."""
    return ModelConfig(backbone="vit_base_patch16_224", weights="augreg_in21k_ft_in1k", attention_weight=0.3)


def mae_vit_l16() -> ModelConfig:
    """ViT-L/16 pretrained as a masked autoencoder, one reading of Table 8."""
    return ModelConfig(backbone="vit_large_patch16_224", weights="mae", attention_weight=0.3)
