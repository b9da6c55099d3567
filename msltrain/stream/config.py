"""How samples become batches, what is done to their images, and what hides parts of them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal

from msldata.errors import UserError
from msltrain.registered import AUGMENTATIONS, check_registered
from msltrain.typed_values import settle

NO_CROP = (1.0, 1.0)
"""The default of ``StreamConfig.crop_scale``."""
Fill = Literal["zero", "mean", "noise", "blur", "image", "object"]
"""What shows in a hole. zero: 0 after normalisation, as published: black, or the mean colour where ``stream.mean`` is
subtracted. mean: the image's own mean colour. noise: noise around that colour, as strong as the image's contrast. blur:
the image itself, blurred until only colours remain. image, object: pixels of another image, or of an object in one."""


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How shards become batches.

    ``image_size``, ``batch_size``, ``window`` and the augmentation decide what a run sees; ``num_threads``,
    ``process``, ``num_buffers``, ``read_ahead_mb``, the caches and, up to a grey level, ``decode`` and ``resize``
    affect only the speed. Raises UserError for values that cannot work.

    Example:
        config = msltrain.StreamConfig(image_size=224, batch_size=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        print(config.crop_scale, config.flip_probability)
    """

    image_size: int = 448
    """Side S of the square images, in pixels."""
    batch_size: int = 32
    """Samples per step over all ranks together (the global batch)."""
    drop_last: bool = True
    """Whether training leaves out the last, incomplete batch of an epoch. Evaluation never does."""
    window: int = 16384
    """About how many samples are shuffled together; their shards (at least one) are open at the same time."""
    crop_scale: tuple[float, float] = (0.7, 1.0)
    """Share of the image's area that a training crop keeps, drawn uniformly from this range. 1: no crop, the whole
    image is squashed to S×S, whatever ``crop_ratio`` says."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height of a training crop before it is squashed to S×S, drawn log-uniformly from this range."""
    flip_probability: float = 0.5
    """How often a training image is mirrored left to right."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Subtracted from the RGB values in [0, 1]. The published VOC and COCO runs subtract nothing: a hole is black."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """RGB values are divided by this after the mean is subtracted."""
    num_threads: int | None = None
    """Decoding threads of this rank; None: the CPUs this process may use, shared among the ranks of the host."""
    process: Literal["auto", "same", "helper"] = "auto"
    """Where the threads run that make training batches. same: in the process that trains. helper: in one more process
    for each rank, on Linux, with the batches in shared memory: the interpreter of the process that trains is then its
    own, which matters where a step is short and its many small calls have to keep a GPU busy. auto: helper for a
    training on a GPU with at least two CPUs a rank, same elsewhere. The batches are the same."""
    num_buffers: int = 4
    """Number of batches decoded or being decoded at the same time; each holds S·S·3 bytes per sample, or
    whole images where the device resizes."""
    read_ahead_mb: int = 128
    """Limit, in MiB, on the encoded images that are read ahead of the batches being decoded."""
    cache: str = ""
    """Folder on a local disk that keeps whole shards of remote datasets, shared by all processes of this host; none:
    single samples are read as they are needed."""
    cache_limit_gb: float = 50.0
    """Limit on what the cache folder holds, in GB of 10⁹ bytes; the least recently used shards make room."""
    ram_cache_gb: float = 0.0
    """How many decoded training images every rank keeps in memory for later epochs, in GB of 10⁹ bytes; 0: none. A VOC
    photograph takes 0.56 MB, a COCO one 0.92 MB. Ranks keep different images: each trains mostly on the same ones in
    every epoch."""
    decode: Literal["host", "device"] = "host"
    """Where JPEGs are decoded: on the CPU threads, or by nvJPEG on the CUDA device of the run. The two differ by a grey
    level or so."""
    resize: Literal["auto", "host", "device"] = "auto"
    """Where images are cropped and resized: on the CPU threads, or on the device, which leaves only decoding to the
    threads; auto: on a GPU the device. The two differ by less than a hundredth of a grey level on average."""
    on_sample_error: Literal["fail", "skip"] = "fail"
    """What to do with a sample that is damaged or not an image: stop and name it, or continue without it and list it.
    In training the sample before it in the epoch's order takes its place; in an evaluation it is left out."""
    max_skipped: int = 100
    """With ``on_sample_error=skip``: more distinct samples than this, in one process, are an error nevertheless."""

    def __post_init__(self) -> None:
        settle(self, "stream")
        for name, least in (
            ("image_size", 1),
            ("batch_size", 1),
            ("window", 1),
            ("num_threads", 1),
            ("num_buffers", 2),
            ("read_ahead_mb", 1),
            ("max_skipped", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"stream.{name} is {value}; it must be at least {least}")
        if not 0 < self.cache_limit_gb < math.inf:
            raise UserError(f"stream.cache_limit_gb is {self.cache_limit_gb}; it must be above 0")
        if not 0 <= self.ram_cache_gb < math.inf:
            raise UserError(f"stream.ram_cache_gb is {self.ram_cache_gb}; it must be 0 or more")
        if self.decode == "device" and self.ram_cache_gb:
            raise UserError("stream.ram_cache_gb keeps images decoded on the host; set it to 0, or stream.decode=host")
        if self.decode == "device" and self.on_sample_error == "skip":
            raise UserError("stream.on_sample_error=skip works only with stream.decode=host")
        if self.decode == "device" and self.process == "helper":
            raise UserError("stream.process=helper decodes on the host; leave it at auto, or set stream.decode=host")
        if self.decode == "device" and self.resize == "host":
            raise UserError("stream.decode=device resizes there too; leave stream.resize at auto")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise UserError(f"stream.crop_scale is {self.crop_scale}; it must be two ascending numbers in (0, 1]")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1] < math.inf:
            raise UserError(f"stream.crop_ratio is {self.crop_ratio}; it must be two ascending positive numbers")
        if not 0 <= self.flip_probability <= 1:
            raise UserError(f"stream.flip_probability is {self.flip_probability}; it must lie in [0, 1]")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError("stream.mean and stream.std need three numbers each, those of std above 0")

    def resizes_on(self, device_type: str) -> Literal["host", "device"]:
        """Where a loader for a device of this type ("cuda", "cpu") resizes."""
        if self.resize == "auto":
            return "device" if device_type == "cuda" else "host"
        return self.resize

    @property
    def has_helpers(self) -> bool:
        """Whether the threads can run in a helper process here: on Linux, and what they decode on the host."""
        return self.decode == "host" and hasattr(os, "memfd_create")

    def runs_in_helper(self, device_type: str, num_cpus: int) -> bool:
        """Whether a training for a device of this type, with so many CPUs a rank, has a helper process.

        Raises:
            UserError: one is asked for where there is none.
        """
        if self.process == "helper" and not self.has_helpers:
            raise UserError("stream.process=helper works on Linux only; leave it at auto")
        is_useful = device_type == "cuda" and num_cpus > 1 and self.has_helpers
        return self.process == "helper" or (self.process == "auto" and is_useful)


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """What is done to training images beyond crop and flip, in the order of the fields. The published runs do nothing.

    Keep masks are laid over the outcome, so both branches see the same augmented image. What happens to an image is
    decided by (seed, epoch, key); whom it is mixed with, also by the images that its process has in the batch: with
    another number of processes there are other pairs. Runs resume bit for bit either way.

    Example:
        config = msltrain.recipe("demo-baseline", settings=["augment.randaugment=2", "augment.mix=splicemix"])
        augment: msltrain.AugmentConfig = config.augment
        print(augment.mix, augment.erase or "nothing is erased")
    """

    randaugment: int = 0
    """How many operations of RandAugment (Cubuk et al., NeurIPS 2020) every image goes through, of torchvision's 14,
    on its 8-bit pixels; published: 2. 0: none. Labels stay, also those of what a shift moves out of the image."""
    randaugment_magnitude: int = 9
    """How strong these operations are, 0 to 30: of 30 degrees, of a shear of 0.3, of a shift by 45 % …"""
    erase: Literal["", "cutout", "random"] = ""
    """What is erased of an image for both branches; labels stay. cutout: in every image a square of half its side, cut
    off at the edge, becomes one random colour, as in the code of ASL, Query2Label and ML-Decoder (DeVries and Taylor,
    2017, fill with the mean). random: in half of the images a box of 2 to 33 % becomes noise (Random Erasing, Zhong et
    al., AAAI 2020)."""
    mix: Literal["", "mixup", "cutmix", "splicemix"] = ""
    """How images are mixed with others of the batch. mixup (Zhang et al., ICLR 2018): λ · image + (1 − λ) · other.
    cutmix (Yun et al., ICCV 2019): a box of the share 1 − λ shows the other. Both: targets are λ · own + (1 − λ) ·
    other, between 0 and 1. splicemix (Wang et al., 2023): the batch stays and a quarter more images come, grids of 2, 4
    or 6 of its images, made smaller; their labels are those of any image in the grid. A pair that is ignored in one of
    the images is ignored in the mixture, unless another one of a grid shows the class."""
    mix_alpha: float | None = None
    """α of λ ~ Beta(α, α), drawn for each image. None: 0.2 for mixup and 1 for cutmix, as published for ImageNet."""
    batch: str = ""
    """What is done to the whole batch by a function of your own (`msltrain.register_augmentation`); none: nothing."""

    @property
    def is_active(self) -> bool:
        """Whether any of it is asked for."""
        return bool(self.randaugment or self.erase or self.mix or self.batch)

    @property
    def moves_objects(self) -> bool:
        """Whether objects end up elsewhere than crop and flip put them, or in other images."""
        return bool(self.randaugment or self.mix or self.batch)

    def __post_init__(self) -> None:
        settle(self, "augment")
        check_registered("augment.batch", self.batch, AUGMENTATIONS)
        if self.randaugment < 0:
            raise UserError(f"augment.randaugment is {self.randaugment}; it must be 0 or more")
        if not 0 <= self.randaugment_magnitude <= 30:
            raise UserError(f"augment.randaugment_magnitude is {self.randaugment_magnitude}; it must lie in [0, 30]")
        if self.mix_alpha is not None:
            if self.mix not in ("mixup", "cutmix"):
                raise UserError(
                    "augment.mix_alpha is for augment.mix=mixup and cutmix; leave it out, or set one of them"
                )
            if not 0 < self.mix_alpha < math.inf:
                raise UserError(f"augment.mix_alpha is {self.mix_alpha}; it must be above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepMaskConfig:
    """Which images get a masked view, and what hides how much of them.

    As published: every image, behind a stored irregular mask that is not augmented, with nothing in the holes. All of
    it is decided by (seed, epoch, key), so it is the same in any batch, on any number of processes, and after resuming.

    Example:
        keep_mask = msltrain.KeepMaskConfig(kind="generated", augment=("flip", "rotate"), share=0.5)
        config = dataclasses.replace(msltrain.recipe("demo"), keep_mask=keep_mask)
    """

    kind: Literal["stored", "generated", "patch", "box", "object", "none"] = "stored"
    """stored: those of ``data.keep_masks``. generated: 200 irregular ones of 1 to 75 % holes, which the program draws
    at the start, the same in every run. For comparison, drawn anew: patch: patches of a grid, as MAE hides them; box:
    one box; object: the box of one of the objects that the image's crop shows; none: nothing is hidden."""
    augment: tuple[Literal["flip", "rotate", "shift"], ...] = ()
    """Of stored and generated masks, any of: mirror half of them left to right; turn by 0, 90, 180 or 270 degrees; move
    by any number of pixels both ways. What a shift moves out on one side comes in on the other, so the hole fraction
    stays."""
    hole_fraction: float = 0.5
    """Share of the image that patches or a box hide. MAE hides 0.75; the official "high" masks 0.547 on average."""
    patch_size: int = 16
    """Side of a patch in pixels; it divides ``stream.image_size``."""
    visible_level: float = 1.0
    """What a visible pixel is multiplied by. 0.882 replays "without binarisation" of the paper's Table 5, whose masks
    came out of a palette conversion with 225 for 255."""
    share: float = 1.0
    """Share of the images that get a masked view, 0 to 1: an epoch then costs 1 + share passes. The others add nothing
    to the masked terms, which stay means over all images."""
    start: float = 0.0
    """Share of the epochs, 0 to below 1, that pass before any image is masked. Until then whole images alone are
    learnt, with the weight α1 + share · α2: the network first learns what there is to hide, and an epoch costs one
    pass. 0: masked from the start, as published."""
    subset_weights: tuple[float, ...] = ()
    """For stored masks: the share of the masked views that each folder of ``data.keep_masks`` serves. The remainder up
    to 1 is whole images. Empty: every mask is as likely as any other, as published."""
    ramp_epochs: int = 0
    """For stored masks: the number of epochs, from the first masked one on, in which the lightest holes come first. In
    epoch e of these, counted from 0, the masks are taken from the lightest (e + 1) / ramp_epochs: of each folder where
    they have ``subset_weights``, else of all together. 0: all masks from the start, as published."""
    fill: Fill = "zero"
    """What shows in the holes: zero as published, mean, noise, blur, image, object; see ``Fill``. With image and
    object, classes that the other training image, or the box of its object, shows and this one lacks count in no masked
    term."""
    ignore_below: float = 0.0
    """A class counts in no masked term if crop and hole leave every one of its objects with a smaller visible share of
    its box than this. 0: it is trained as present, as published. Needs object annotations."""

    def __post_init__(self) -> None:
        settle(self, "keep_mask")
        if not 0 < self.share <= 1:
            raise UserError(f"keep_mask.share is {self.share}; it must be above 0 and at most 1")
        if not 0 <= self.start < 1:
            raise UserError(f"keep_mask.start is {self.start}; it must be 0 or more, and below 1")
        if min(self.subset_weights, default=0) < 0 or sum(self.subset_weights) > 1 + 1e-9:
            raise UserError(
                f"keep_mask.subset_weights is {self.subset_weights}; they must be 0 or more and at most 1 together"
            )
        if self.ramp_epochs < 0:
            raise UserError(f"keep_mask.ramp_epochs is {self.ramp_epochs}; it must be 0 or more")
        if self.kind != "stored" and (self.subset_weights or self.ramp_epochs):
            name = "subset_weights" if self.subset_weights else "ramp_epochs"
            raise UserError(f"keep_mask.{name} is for stored keep masks; leave it out, or set keep_mask.kind=stored")
        if not 0 <= self.ignore_below <= 1:
            raise UserError(f"keep_mask.ignore_below is {self.ignore_below}; it must lie in [0, 1]")
        if self.fill != "zero" and self.visible_level != 1:
            raise UserError(f"keep_mask.fill={self.fill} mixes into visible pixels unless keep_mask.visible_level is 1")
        if not 0 < self.hole_fraction < 1:
            raise UserError(f"keep_mask.hole_fraction is {self.hole_fraction}; it must lie between 0 and 1")
        if self.patch_size < 1:
            raise UserError(f"keep_mask.patch_size is {self.patch_size}; it must be at least 1")
        if not 0 < self.visible_level <= 1:
            raise UserError(f"keep_mask.visible_level is {self.visible_level}; it must be above 0 and at most 1")
        if self.augment and self.kind not in ("stored", "generated"):
            raise UserError(
                f"keep_mask.augment={','.join(self.augment)} is for stored and generated keep masks; {self.kind} ones "
                "are drawn anew for every image: leave it out, or set keep_mask.kind=stored"
            )
