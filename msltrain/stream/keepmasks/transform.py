"""IrregularHoles: keep masks as a transform, for people who have their own input pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from msldata.errors import UserError
from msldata.storage import Location
from msltrain.stream.keepmasks.bank import KeepMasks


class IrregularHoles(v2.Transform):
    """A torchvision transform (v2): image in, masked image and keep mask out; everything else in a sample follows
    unchanged.

    Put it last, after crop and normalisation: a hole is 0 in what it is given, as in training on shards. Each call
    draws a keep mask with torch's generator, which a DataLoader seeds in its workers; for one that depends on a
    sample's key and the epoch alone, use ``KeepMasks.of_keys``. A batch (B, C, S, S) gets a mask for each image.

    Args:
        keep_masks: a keep-mask dataset folder, local or remote, or several; or keep masks that are open already.
        image_size: side S of the images, in pixels; only needed for folders.
        augment: move the masks too, any of ``flip``, ``rotate`` and ``shift``; only for folders.

    Raises:
        UserError: no size for a folder, another size or moves for open masks, or an image that is not a square of this
            size.
        FormatError, StorageError, FileNotFoundError: no keep masks there, or they cannot be read.

    Example:
        from torchvision.transforms import v2

        to_square = v2.Compose([v2.PILToTensor(), v2.Resize((224, 224)), v2.ToDtype(torch.float32, scale=True)])
        pipeline = v2.Compose([to_square, msltrain.IrregularHoles("shards/masks/high", image_size=224)])
        masked_image, keep_mask = pipeline(Image.open("photos/street.jpg").convert("RGB"))
    """

    def __init__(
        self,
        keep_masks: Location | Sequence[Location] | KeepMasks,
        image_size: int | None = None,
        *,
        augment: Sequence[str] = (),
    ):
        super().__init__()
        if isinstance(keep_masks, KeepMasks):
            if augment or image_size not in (None, keep_masks.image_size):
                raise UserError("keep masks that are open have a size and their moves; give both to KeepMasks.open")
            self.keep_masks = keep_masks
        elif image_size is None:
            raise UserError("IrregularHoles needs image_size, the side of the images in pixels, to open keep masks")
        else:
            self.keep_masks = KeepMasks.open(keep_masks, image_size, augment=augment)

    def forward(self, image: Any, *others: Any) -> tuple[Any, ...]:
        """Hide parts of an image.

        Args:
            image: a tensor (C, S, S) or (B, C, S, S) of any type, or a PIL image.
            others: such as its label.

        Returns:
            The masked image, of the kind it was; its keep mask, float32 (1, S, S) or (B, 1, S, S), 1 = visible, 0 =
            hole; and ``others``.
        """
        size = self.keep_masks.image_size
        image_CHW = functional.pil_to_tensor(image) if isinstance(image, Image.Image) else image
        if not isinstance(image_CHW, torch.Tensor):
            raise UserError(f"an image is a {type(image).__name__}; give IrregularHoles a tensor or a PIL image")
        if image_CHW.ndim not in (3, 4) or tuple(image_CHW.shape[-2:]) != (size, size):
            raise UserError(
                f"an image is {tuple(image_CHW.shape)} and the keep masks are {size}×{size}; put IrregularHoles after "
                f"a transform that makes squares of {size} pixels, or give it another image_size"
            )
        num_images = 1 if image_CHW.ndim == 3 else len(image_CHW)
        # Chance stands in for the key that a transform does not know.
        lot_B = torch.randint(2**63 - 1, (num_images,)).numpy().astype(np.uint64)
        keep_mask_B1SS = self.keep_masks.of_hashes(lot_B, seed=0, epoch=0).to(image_CHW.device)
        keep_mask = keep_mask_B1SS[0] if image_CHW.ndim == 3 else keep_mask_B1SS
        masked: Any = (image_CHW * keep_mask).to(image_CHW.dtype)
        if isinstance(image, Image.Image):
            masked = functional.to_pil_image(masked, image.mode)
        elif isinstance(image, tv_tensors.TVTensor):
            masked = tv_tensors.wrap(masked, like=image)
        return masked, tv_tensors.Mask(keep_mask), *others
