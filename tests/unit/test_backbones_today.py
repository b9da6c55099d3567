"""Networks that people take today: each gives a square map, and timm says its layers. Built without memory."""

from __future__ import annotations

import pytest
import timm
import torch

from msltrain.models.backbone import Backbone

TODAY = {
    "vit_base_patch16_dinov3.lvd1689m": (768, 16),
    "vit_base_patch16_siglip_256.v2_webli": (768, 16),
    "eva02_base_patch14_448.mim_in22k_ft_in22k_in1k": (768, 32),
    "convnextv2_base.fcmae_ft_in22k_in1k": (1024, 7),
    "mobilenetv4_conv_medium.e500_r256_in1k": (960, 8),
    "mobilenetv4_hybrid_medium.e500_r224_in1k": (960, 7),
    "swin_base_patch4_window7_224.ms_in22k_ft_in1k": (1024, 7),
    "maxvit_tiny_tf_224.in1k": (512, 7),
    "coatnet_0_rw_224.sw_in1k": (768, 7),
    "hiera_base_224.mae_in1k_ft_in1k": (768, 7),
    "tresnet_l.miil_in1k_448": (2432, 14),
}
"""timm's name and weights, the channels of its map and its side at the size that the weights were trained with."""


@pytest.mark.parametrize("name", TODAY)
def test_a_network_of_today_gives_a_map_and_has_layers(name: str):
    assert name in timm.list_pretrained()
    num_features, side = TODAY[name]
    image_size = timm.get_pretrained_cfg(name).input_size[-1]
    with torch.device("meta"):
        backbone = Backbone(timm.create_model(name, num_classes=0), name=name, image_size=image_size)
        feature = backbone.eval()(torch.empty(2, 3, image_size, image_size))
    assert feature.shape == (2, num_features, side, side)
    layers = backbone.layers()
    assert set(layers.values()) == set(range(max(layers.values()) + 1)) and max(layers.values()) >= 4
