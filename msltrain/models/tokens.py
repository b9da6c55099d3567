"""Running a vision transformer on some of its patches only.

B batch, N patches, D feature channels, P patches that are kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MULTIPLE = 8
"""The number of kept patches is rounded up to a multiple of this: few different shapes, which suits matrix units."""


def visible_patches(keep_mask_B1HW: Tensor, grid: tuple[int, int], threshold: float) -> Tensor | None:
    """Which patches of each image to keep: the same number for all images, as many as the image that needs most.

    A patch is needed when at least ``threshold`` of its pixels are visible. Images with fewer of them keep their most
    visible other patches too, so that no attention mask is needed and nothing relevant is lost.

    Args:
        keep_mask_B1HW: float32, 1 = visible.
        grid: rows and columns of patches.
        threshold: share of pixels, above 0 and up to 1.

    Returns:
        patch_BP: int64, row-major numbers in rising order; None when all patches are kept.
    """
    share_BN = F.adaptive_avg_pool2d(keep_mask_B1HW, grid).flatten(1)
    num_patches = share_BN.shape[1]
    num_needed = max(1, int((share_BN >= threshold).sum(dim=1).amax()))
    num_kept = -(-num_needed // MULTIPLE) * MULTIPLE
    if num_kept >= num_patches:
        return None
    order_BN = share_BN.argsort(dim=1, descending=True, stable=True)
    return order_BN[:, :num_kept].sort(dim=1).values


class PatchSelection(nn.Module):
    """Takes the place where timm's transformers drop patches at random, and keeps the chosen patches instead.

    Args:
        num_prefix_tokens: class and register tokens, which always stay.
        returns_patches: EVA asks for the kept patches as well, to rotate its queries and keys by their positions.

    Attributes:
        patch_BP: int64, the patches to keep in the next batch; None: all.
    """

    def __init__(self, num_prefix_tokens: int, *, returns_patches: bool):
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.returns_patches = returns_patches
        self.patch_BP: Tensor | None = None

    def forward(self, token_BND: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        patch_BP = self.patch_BP
        if patch_BP is not None:
            prefix, patches = token_BND.tensor_split([self.num_prefix_tokens], dim=1)
            kept = patches.gather(1, patch_BP[:, :, None].expand(-1, -1, patches.shape[2]))
            token_BND = torch.cat((prefix, kept), dim=1)
        return (token_BND, patch_BP) if self.returns_patches else token_BND


def install_patch_selection(network: nn.Module, num_prefix_tokens: int) -> PatchSelection | None:
    """Put a `PatchSelection` into a timm ViT or EVA, in place; None for networks of other kinds."""
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(network, Eva | VisionTransformer):
        return None
    selection = PatchSelection(num_prefix_tokens, returns_patches=isinstance(network, Eva))
    network.patch_drop = selection  # type: ignore[assignment]
    return selection
