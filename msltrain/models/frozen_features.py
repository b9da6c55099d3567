"""What a frozen backbone says of images that look the same in every epoch: computed once, kept in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msltrain.stream.pixels.batch import Batch


class FrozenFeatures:
    """Features by sample and flip, as many as fit; the others are computed every time.

    Images are computed one by one: what a batch holds beside them can change the last bits, and a resumed run computes
    them in other batches.

    Args:
        backbone: images (B, 3, H, W) → features (B, D, H', W'), in evaluation mode.
        max_bytes: of all that is kept, in the host's memory.
        amp: compute in bf16 where that is safe.
    """

    def __init__(self, backbone: nn.Module, *, max_bytes: int, amp: bool):
        self._backbone, self._free, self._amp = backbone, max_bytes, amp
        self._kept: dict[tuple[str, bool], Tensor] = {}

    @torch.no_grad()
    def of(self, batch: Batch) -> Tensor:
        """Features (B, D, H', W'), float32, on the device of the images."""
        found = []
        for number, name in enumerate(zip(batch.keys, batch.flip_B.tolist(), strict=True)):
            feature_1DHW = self._kept.get(name)
            if feature_1DHW is None:
                with torch.autocast(batch.image_BCHW.device.type, torch.bfloat16, enabled=self._amp):
                    feature_1DHW = self._backbone(batch.image_BCHW[number : number + 1])
                self._keep(name, feature_1DHW)
            found.append(feature_1DHW.to(batch.image_BCHW.device, torch.float32))
        return torch.cat(found)

    def _keep(self, name: tuple[str, bool], feature_1DHW: Tensor) -> None:
        size = feature_1DHW.numel() * feature_1DHW.element_size()
        if size <= self._free:
            self._free -= size
            self._kept[name] = feature_1DHW.cpu()
