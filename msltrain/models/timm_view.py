"""What timm's own evaluation shows a classifier of a photograph: as a rule the middle, not all of it squashed.

S side of the square.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TimmView:
    """The part of a timm data config that says how a photograph becomes a square."""

    side: int
    """S."""
    interpolation: str
    crop_pct: float
    crop_mode: str

    @classmethod
    def of(cls, data_config: Mapping[str, Any]) -> TimmView:
        """That of `timm.data.resolve_data_config`."""
        return cls(
            side=data_config["input_size"][-1],
            interpolation=data_config["interpolation"],
            crop_pct=data_config["crop_pct"],
            crop_mode=data_config["crop_mode"],
        )

    def square(self, image_HWC: np.ndarray) -> Tensor:
        """uint8 (1, 3, S, S) of a whole photograph, uint8 RGB."""
        return torch.from_numpy(np.asarray(_transform(self)(Image.fromarray(image_HWC))))[None]


@functools.cache
def _transform(view: TimmView) -> Callable[[Image.Image], Any]:
    from timm.data import create_transform

    transform: Any = create_transform(
        (3, view.side, view.side),
        use_prefetcher=True,  # leaves whole levels, uint8 (3, S, S), as an array or a tensor
        interpolation=view.interpolation,
        crop_pct=view.crop_pct,
        crop_mode=view.crop_mode,
    )
    return transform
