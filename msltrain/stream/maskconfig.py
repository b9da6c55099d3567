"""KeepMaskConfig: what hides parts of the training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from msldata.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepMaskConfig:
    """Which keep masks the masked branch sees. As published: stored irregular ones, not augmented."""

    kind: Literal["stored", "patch", "box", "object", "none"] = "stored"
    """stored: those of ``data.keep_masks``. For comparison, drawn anew: patch: patches of a grid, as MAE hides them;
    box: one box; object: the box of one of the objects that the image's crop shows; none: nothing is hidden."""
    augment: tuple[Literal["flip", "rotate", "shift"], ...] = ()
    """Of stored masks, any of: mirror half of them left to right; turn by 0, 90, 180 or 270 degrees; move by any number
    of pixels both ways. What a shift moves out on one side comes in on the other, so the hole fraction stays."""
    hole_fraction: float = 0.5
    """Share of the image that patches or a box hide. MAE hides 0.75; the official "high" masks 0.547 on average."""
    patch_size: int = 16
    """Side of a patch in pixels; it divides ``stream.image_size``."""
    visible_level: float = 1.0
    """What a visible pixel is multiplied by. 0.882 replays "without binarisation" of the paper's Table 5, whose masks
    came out of a palette conversion with 225 for 255."""

    def __post_init__(self) -> None:
        if not 0 < self.hole_fraction < 1:
            raise UserError(f"keep_mask.hole_fraction is {self.hole_fraction}; it must lie between 0 and 1")
        if self.patch_size < 1:
            raise UserError(f"keep_mask.patch_size is {self.patch_size}; it must be at least 1")
        if not 0 < self.visible_level <= 1:
            raise UserError(f"keep_mask.visible_level is {self.visible_level}; it must be above 0 and at most 1")
        if self.augment and self.kind != "stored":
            raise UserError(
                f"keep_mask.augment={','.join(self.augment)} is for stored keep masks; {self.kind} ones are drawn anew "
                "for every image: leave it out, or set keep_mask.kind=stored"
            )
