"""Plain classification heads over a feature map: pool, then one linear layer.

B batch, D feature channels, H, W positions, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn


class MeanPoolHead(nn.Module):
    """Mean over positions, then a linear layer: the head of the paper's rows without CSRA (Tables 4 and 9)."""

    def __init__(self, num_features: int, num_classes: int):
        super().__init__()
        self.linear = nn.Linear(num_features, num_classes)

    def forward(self, feature_BDHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.linear(feature_BDHW.mean(dim=(2, 3)))


class MaxPoolHead(nn.Module):
    """Maximum over positions, then a linear layer: a class is present if it is present anywhere."""

    def __init__(self, num_features: int, num_classes: int):
        super().__init__()
        self.linear = nn.Linear(num_features, num_classes)

    def forward(self, feature_BDHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.linear(feature_BDHW.amax(dim=(2, 3)))
