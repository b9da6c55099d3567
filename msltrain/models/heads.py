"""Plain classification heads over a feature map: pool, then one linear layer; and those that others register.

B batch, D feature channels, H, W positions, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msldata.errors import UserError
from msltrain.registered import HEADS, OF_YOURS, load_own


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


def build_own_head(name: str, num_features: int, num_classes: int) -> nn.Module:
    """A head that somebody registered. Raises UserError where what was registered makes no module, or fails."""
    load_own()
    if name not in HEADS:
        raise UserError(f"model.head: nobody has registered '{name}'; {OF_YOURS}")
    head = HEADS[name](num_features, num_classes)
    if not isinstance(head, nn.Module):
        raise UserError(f"model.head={name}: makes a {type(head).__name__}; it must make a torch.nn.Module")
    if not hasattr(head, "per_class"):  # which of its tensors have a row for each class, nothing says
        head.per_class = ()  # type: ignore[assignment]
    return head


TEMPERATURES: dict[int, tuple[int, ...]] = {
    1: (1,),
    2: (1, 99),
    4: (1, 2, 4, 99),
    6: (1, 2, 3, 4, 5, 99),
    8: (1, 2, 3, 4, 5, 6, 7, 99),
}
"""Softmax temperatures by number of heads, as published."""

MAX_TEMPERATURE = 99
"""The temperature that stands for the limit: the attention picks the single highest position."""


class CSRAHead(nn.Module):
    """Sum of H residual-attention heads, each ``mean over positions + attention_weight * attended score``.

    A head's score map is a 1x1 convolution without bias, divided per class by the L2 norm of that class's weight; the
    features are not normalised. The attended score of a class is the softmax-weighted mean of its own score map.

    Args:
        num_features: D.
        num_classes: K.
        num_heads: H, one of 1, 2, 4, 6, 8; it sets the temperatures.
        attention_weight: λ.
    """

    def __init__(self, num_features: int, num_classes: int, *, num_heads: int, attention_weight: float):
        super().__init__()
        self.num_classes = num_classes
        self.attention_weight = attention_weight
        self.temperatures = TEMPERATURES[num_heads]
        # All heads in one convolution: the same numbers as H separate ones, in one pass over the features.
        self.score = nn.Conv2d(num_features, num_heads * num_classes, kernel_size=1, bias=False)

    def forward(self, feature_BDHW: Tensor) -> Tensor:
        """Logits (B, K) in the dtype of the features."""
        score_BCP = self.score(feature_BDHW).flatten(2)
        norm_C11 = torch.linalg.vector_norm(self.score.weight, dim=1)
        score_BCP = score_BCP / norm_C11.view(1, -1, 1)
        logit_BK = score_BCP.new_zeros(())
        for head_score_BKP, temperature in zip(score_BCP.split(self.num_classes, dim=1), self.temperatures):
            if temperature == MAX_TEMPERATURE:
                attended_BK = head_score_BKP.amax(dim=2)
            else:
                attended_BK = (torch.softmax(head_score_BKP * temperature, dim=2) * head_score_BKP).sum(dim=2)
            logit_BK = logit_BK + head_score_BKP.mean(dim=2) + self.attention_weight * attended_BK
        return logit_BK
