"""Any timm model as a feature extractor that yields one feature map per image.

B batch, C image channels, H, W height and width, N tokens, D feature channels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from msldata.errors import UserError
from msltrain.models.tokens import PatchSelection, install_patch_selection


class Backbone(nn.Module):
    """A timm network without its classifier; ``forward`` gives a map of D feature channels.

    Convolutional networks give the output of ``forward_features``; transformers have their final norm applied, class
    and register tokens dropped and the rest laid out as a grid. Parameters that the features do not depend on (a
    pooling layer of the classifier, say) are frozen, so that an optimiser and a DDP reducer never wait for their
    gradients.

    Args:
        network: the timm network, built with ``num_classes=0``.
        name: its timm name, for messages.
        image_size: side in pixels of the square images it will see.

    Raises:
        UserError: the network cannot take images of that size, or does not yield a feature map.
    """

    def __init__(self, network: nn.Module, *, name: str, image_size: int):
        super().__init__()
        self.network: Any = network
        self.name = name
        self.num_prefix_tokens = int(getattr(network, "num_prefix_tokens", 0))
        self.channels_last_axis = getattr(network, "output_fmt", "NCHW") == "NHWC"
        self._set_image_size(image_size)
        self.late_norm = _norm_outside_forward_features(network)
        self._selection: PatchSelection | None = None
        self.num_features = self._probe(image_size)

    def forward(self, image_BCHW: Tensor, patch_BP: Tensor | None = None) -> Tensor:
        """Feature map (B, D, H', W') of images (B, 3, H, W).

        Args:
            image_BCHW: the images.
            patch_BP: int64, the patches to look at, after `enable_patch_selection`; the map is then (B, D, P, 1).
        """
        if self._selection is not None:
            self._selection.patch_BP = patch_BP
        feature = self.network.forward_features(image_BCHW)
        if self.late_norm:
            feature = self.network.get_submodule(self.late_norm)(feature)
        if feature.ndim == 3:
            feature_BND = feature[:, self.num_prefix_tokens :]
            if patch_BP is not None:
                return feature_BND.transpose(1, 2).unsqueeze(3)
            side = math.isqrt(feature_BND.shape[1])
            return feature_BND.transpose(1, 2).unflatten(2, (side, -1))
        return feature.permute(0, 3, 1, 2) if self.channels_last_axis else feature

    def enable_patch_selection(self) -> tuple[int, int]:
        """Let ``forward`` take patches to look at; return the grid (rows, columns) that numbers them.

        Raises:
            UserError: the network is not a ViT or EVA.
        """
        self._selection = install_patch_selection(self.network, self.num_prefix_tokens)
        if self._selection is None:
            raise UserError(
                f"loss.drop_hidden_tokens needs a ViT or EVA, which can leave out patches; backbone '{self.name}' is a "
                f"{type(self.network).__name__}; set it to 0 or choose another backbone"
            )
        rows, columns = self.network.patch_embed.grid_size
        return rows, columns

    def layers(self) -> dict[str, int]:
        """The layer of each parameter, from 0 (the stem) on, as timm counts them.

        Raises:
            UserError: timm does not say.
        """
        from timm.models import group_parameters

        if not hasattr(self.network, "group_matcher"):
            raise UserError(f"optim.layer_decay: timm does not say the layers of '{self.name}'; set it to 1")
        found = group_parameters(self.network, self.network.group_matcher(coarse=False), reverse=True)
        last = max(found.values())
        return {name: found.get(name, last) for name, _ in self.network.named_parameters()}

    def _set_image_size(self, image_size: int) -> None:
        stated = getattr(self.network, "default_cfg", None) or {}  # a network of somebody's own need not have one
        default = tuple(stated.get("input_size", (0,)))[-1]
        if image_size == default:
            return
        if hasattr(self.network, "set_input_size"):
            self.network.set_input_size(img_size=(image_size, image_size))
        elif stated.get("fixed_input_size", False):
            raise UserError(
                f"backbone '{self.name}' only takes images of {default} pixels, not {image_size}; "
                f"set stream.image_size={default} or choose another backbone"
            )

    def _probe(self, image_size: int) -> int:
        """Run once on the meta device (no memory, no arithmetic): D, and which parameters the features depend on."""
        state = {name: tensor.detach().to("meta") for name, tensor in self.state_dict(keep_vars=True).items()}
        state |= {name: tensor.detach().to("meta") for name, tensor in self.named_buffers()}
        parameters = [name for name, _ in self.named_parameters()]
        for name in parameters:
            state[name].requires_grad_()
        was_training = self.training
        self.eval()
        needed = (
            f"backbone '{self.name}' cannot be used: a timm model whose forward_features gives B,D,H,W maps, "
            "B,H,W,D maps (output_fmt 'NHWC') or a square grid of B,N,D tokens is needed"
        )
        try:
            image = torch.empty(1, 3, image_size, image_size, device="meta")
            feature = torch.func.functional_call(self, state, (image,))
        except Exception as error:
            raise UserError(f"{needed}; with images of {image_size} pixels it failed: {error}") from error
        finally:
            self.train(was_training)
        if feature.ndim != 4 or (feature.shape[2] != feature.shape[3]):
            raise UserError(f"{needed}; it gave {tuple(feature.shape)}")
        reached = _leaves(feature)
        for name in parameters:
            if id(state[name]) not in reached:
                self.get_parameter(name).requires_grad_(False)
        return int(feature.shape[1])


def _leaves(tensor: Tensor) -> set[int]:
    """The ids of all tensors whose gradients autograd would compute for this one, read from its graph."""
    found: set[int] = set()
    met = {tensor.grad_fn}
    waiting = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        if hasattr(node, "variable"):  # where the gradient of a leaf would be added up
            found.add(id(node.variable))
        new = {following for following, _ in node.next_functions} - met
        met |= new
        waiting += new
    return found


def _norm_outside_forward_features(network: nn.Module) -> str:
    """Name of the final LayerNorm that timm applies after pooling, hence outside ``forward_features``; "" if none.

    Models that average their tokens (``fc_norm``) and ConvNeXt-like ones (``head.norm``) have one.
    """
    if isinstance(getattr(network, "norm", None), nn.LayerNorm):
        return ""
    for name in ("fc_norm", "head.norm"):
        parent: Any = network
        for part in name.split("."):
            parent = getattr(parent, part, None)
        if isinstance(parent, nn.LayerNorm):
            return name
    return ""
