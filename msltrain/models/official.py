"""The head of released checkpoints: MSL's (``msl_c_voc.pth``, ``msl_c_coco.pth``, ``msl_v_wider.pth``) and CSRA's.

They are plain state_dicts of a torchvision ResNet or a timm ViT, whose names timm still uses, with the head's weights
under ``classifier.multi_head.{h}.head.weight``, shape (K, D, 1, 1), one for each of the H heads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from msltrain.models.csra import CSRAHead

_HEAD = re.compile(r"classifier\.multi_head\.(\d+)\.head\.weight")


def is_head_tensor(name: str) -> bool:
    """Whether a released checkpoint calls a weight of its CSRA head so."""
    return _HEAD.fullmatch(name) is not None


def head_weights(found: Mapping[str, Tensor]) -> list[Tensor]:
    """The weights (K, D, 1, 1) of the CSRA heads in a released checkpoint, in order; empty where it has none."""
    heads = {int(match[1]): tensor for name, tensor in found.items() if (match := _HEAD.fullmatch(name))}
    return [heads[number] for number in sorted(heads)]


def fill_head(head: nn.Module, found: Mapping[str, Tensor]) -> bool:
    """Fill ``head`` in place where a released checkpoint holds as many heads of the same shape; whether it did.

    Otherwise it keeps its first values: a checkpoint of another dataset is a start for the backbone.
    """
    weights = head_weights(found)
    if not isinstance(head, CSRAHead) or not weights:
        return False
    wanted = (head.num_classes, head.score.weight.shape[1], 1, 1)
    if len(weights) != len(head.temperatures) or any(weight.shape != wanted for weight in weights):
        return False
    with torch.no_grad():
        head.score.weight.copy_(torch.cat(weights))
    return True
