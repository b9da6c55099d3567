"""The Siamese step: one network sees the image and the masked image, inside one ``forward``.

Both branches live in one module because DistributedDataParallel does not support two forwards through a network with
BatchNorm before one backward.

B batch, C image channels, H, W height and width, K classes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from msldata.errors import UserError
from msldata.storage import Location
from msltrain.config import LossConfig
from msltrain.models.branchnorm import Passage, compute_blocks_twice, tell_branches_apart
from msltrain.models.tokens import visible_patches
from msltrain.stream.keepmasks.fill import fill_holes
from msltrain.stream.loader import Loader
from msltrain.stream.samples.shardset import ShardSet, open_shard_set
from msltrain.training.losses import (
    asymmetric_loss,
    consistency_loss,
    hill_loss,
    own_loss,
    recognition_loss,
    splc_loss,
)

Branches = Literal["sequential", "fused", "concatenated", "single"]


class SiameseStep(nn.Module):
    """Images and keep masks in, named losses out (the paper's equation for the total loss).

    ``branches="sequential"`` runs the network twice, image first, as published. ``"fused"`` runs it once over the
    concatenated 2B batch while BatchNorm treats the halves as two batches: each is normalised by its own statistics,
    and the running statistics are updated twice, image half first. Both give the same numbers up to rounding (dropout
    and drop path draw other random numbers). ``"concatenated"`` is another method: BatchNorm sees one batch of 2B.
    ``"single"`` is one pass over a batch that is masked in place. If the masked terms have no weight, the masked branch
    is not run.

    Args:
        recogniser: any module, images (B, 3, H, W) → logits (B, K), on the device where it will run.
        loss: the terms, their weights (α1, α2, α3) and the way the branches are run.
        activation_checkpointing: compute the backbone's blocks a second time in the backward pass.
        positive_weight_K: float32, the weight of a positive of each class in the recognition terms; None: that of a
            negative. ``loss.balance`` needs it, from `positive_weights`.

    Attributes:
        branches: the way they are run, with ``auto`` resolved.
        masked_norms: BatchNorms of the masked branch alone (``bn_mode="split"``), which learn like the network.
        notes: settings that have no effect with this network.

    Raises:
        UserError: the network cannot do what ``loss`` asks for, or ``loss.balance`` is set without weights.

    Example:
        network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 20))
        step = msltrain.SiameseStep(network, msltrain.LossConfig())
        losses = step(torch.rand(4, 3, 64, 64), torch.rand(4, 1, 64, 64) > 0.5, torch.zeros(4, 20))
        losses["total"].backward()
    """

    _positive_weight_K: Tensor | None
    _class_weight_K: Tensor | None

    def __init__(
        self,
        recogniser: nn.Module,
        loss: LossConfig = LossConfig(),  # noqa: B008 (frozen)
        *,
        activation_checkpointing: bool = False,
        positive_weight_K: Tensor | None = None,
    ):
        super().__init__()
        if loss.balance and positive_weight_K is None:
            raise UserError(
                f"loss.balance={loss.balance:g} needs positive_weight_K: without it positives weigh as much as "
                f"negatives; give positive_weight_K=msltrain.positive_weights(SHARDS, {loss.balance:g})"
            )
        weights = torch.tensor(loss.class_weights) if loss.class_weights else None
        self.register_buffer("_positive_weight_K", _beside(recogniser, positive_weight_K), persistent=False)
        self.register_buffer("_class_weight_K", _beside(recogniser, weights), persistent=False)
        self.recogniser = recogniser
        self.loss = loss
        self.branches: Branches = _decide(loss, recogniser)
        self.masked_norms = nn.ModuleList()
        self.notes: list[str] = []
        self._passage = Passage()
        bn_mode = loss.bn_mode if loss.has_masked_branch else "shared"
        if bn_mode != "shared":
            if getattr(recogniser, "freeze_batchnorm", False):
                raise UserError(
                    f"loss.bn_mode={bn_mode} needs a BatchNorm that learns; set it to shared, or "
                    "model.freeze_batchnorm=false"
                )
            if not any(isinstance(module, _BatchNorm) for module in recogniser.modules()):
                self.notes.append(f"loss.bn_mode={bn_mode} has no effect: the network has no BatchNorm")
        if self._drops_tokens:
            if not hasattr(recogniser, "enable_patch_selection"):
                raise UserError(
                    f"loss.drop_hidden_tokens leaves out patches, which a {type(recogniser).__name__} cannot do; set "
                    "it to 0, or take a ViT or EVA of msltrain's own (ModelConfig)"
                )
            recogniser.enable_patch_selection()  # type: ignore[operator]
        if self._fused or bn_mode != "shared" or activation_checkpointing:
            self.masked_norms = tell_branches_apart(recogniser, self._passage, bn_mode)
        if activation_checkpointing and not compute_blocks_twice(recogniser, self._passage):
            self.notes.append("run.activation_checkpointing has no effect: the network has no repeated blocks")

    def forward(
        self,
        image_BCHW: Tensor,
        keep_mask_B1HW: Tensor | None,
        target_BK: Tensor,
        ignore_BK: Tensor | None = None,
        *,
        filling_BCHW: Tensor | None = None,
        masked_ignore_BK: Tensor | None = None,
        masked_B: Tensor | None = None,
        teacher_logit_BK: Tensor | None = None,
        corrects_labels: bool | None = None,
        whole_weight: float | None = None,
    ) -> dict[str, Tensor]:
        """Run both branches.

        Args:
            image_BCHW: normalised and augmented, float32.
            keep_mask_B1HW: float32, 1 = visible, 0 = hole; it multiplies the normalised image. None in the baseline.
            target_BK: 0 or 1, or between them for mixed images.
            ignore_BK: bool; used when ``loss.train_ignored`` is "drop", else such pairs count as negative.
            filling_BCHW: what shows in the holes, normalised; (B, C, 1, 1): one colour an image; None: 0, as published.
            masked_ignore_BK: bool; pairs that count in no masked term, nor in a single branch where it is masked.
            masked_B: bool; which images have a masked view. The others add 0 to the masked terms, whose divisor stays
                B. If none has one, the network still sees a masked image, so that all processes do the same.
            teacher_logit_BK: what the masked branch must predict with ``loss.masked_target="teacher"``.
            corrects_labels: with ``loss.recognition="splc"``, whether negatives that are found likely count as
                positives: not before ``loss.splc_epoch``. Each branch goes by its own probabilities.
            whole_weight: nothing is masked yet (``keep_mask.start``): the images alone learn the labels, with this
                weight in the place of α1.

        Returns:
            Scalars, float32 or wider as the logits are: ``total`` (to be minimised), ``clean``; with masks ``masked``
            and ``consistency`` too.

        Raises:
            UserError: there are no keep masks for masked terms, or no teacher's logits; nothing says whether SPLC
                corrects labels; shapes do not fit together; or the network does not give one logit for each target.
        """
        loss = self.loss
        self._check_shapes(
            image_BCHW,
            target_BK,
            keep_mask_B1HW=keep_mask_B1HW,
            ignore_BK=ignore_BK,
            filling_BCHW=filling_BCHW,
            masked_ignore_BK=masked_ignore_BK,
            masked_B=masked_B,
            teacher_logit_BK=teacher_logit_BK,
        )
        if loss.recognition == "splc" and corrects_labels is None:
            raise UserError("loss.recognition=splc needs corrects_labels; give `epoch >= loss.splc_epoch`")
        target_BK = target_BK.float()
        if loss.train_ignored == "negative":
            ignore_BK = None
        if loss.branches == "single" and whole_weight is None:
            if keep_mask_B1HW is None:
                raise UserError("loss.branches=single masks the images and keep_mask_B1HW is None; give keep masks")
            masked_BCHW = fill_holes(image_BCHW, keep_mask_B1HW, filling_BCHW)
            if masked_B is not None:
                masked_BCHW = torch.where(masked_B[:, None, None, None], masked_BCHW, image_BCHW)
                masked_ignore_BK = None if masked_ignore_BK is None else masked_ignore_BK & masked_B[:, None]
            image_BCHW, ignore_BK = masked_BCHW, _either(ignore_BK, masked_ignore_BK)
        if whole_weight is not None or not loss.has_masked_branch:
            with self._passage.of("clean"):
                clean_logit_BK = _checked(self.recogniser(image_BCHW), target_BK)
            clean = self._recognition(clean_logit_BK, target_BK, ignore_BK, loss.label_smoothing, corrects_labels)
            weight = loss.clean_weight if whole_weight is None else whole_weight
            return {"total": weight * loss.scale * clean, "clean": clean}
        if keep_mask_B1HW is None:
            raise UserError(
                "the loss has masked terms and keep_mask_B1HW is None; give the batch's keep masks, or "
                "LossConfig(masked_weight=0, consistency_weight=0) for the plain baseline"
            )
        if loss.masked_target == "teacher" and teacher_logit_BK is None:
            raise UserError(
                "loss.masked_target=teacher needs teacher_logit_BK, the logits of the whole images by an average of "
                "the weights; give them, or set loss.masked_target=labels"
            )
        view = _View(
            image_BCHW, keep_mask_B1HW, filling_BCHW, target_BK, _either(ignore_BK, masked_ignore_BK), teacher_logit_BK
        )
        row_b, share = _masked_rows(masked_B)
        view = view if row_b is None else view.take(row_b)
        clean_logit_BK, masked_logit_bK = self._both(image_BCHW, view)
        clean_logit_BK = _checked(clean_logit_BK, target_BK)
        masked_logit_bK = _checked(masked_logit_bK, view.target_BK)
        beside_logit_bK = clean_logit_BK if row_b is None else clean_logit_BK[row_b]
        clean = self._recognition(clean_logit_BK, target_BK, ignore_BK, loss.label_smoothing, corrects_labels)
        smoothing = loss.label_smoothing if loss.masked_target == "labels" else 0.0
        masked = self._recognition(
            masked_logit_bK, self._masked_target(view, beside_logit_bK), view.ignore_BK, smoothing, corrects_labels
        )
        consistency = consistency_loss(
            beside_logit_bK.detach() if loss.stop_gradient == "clean" else beside_logit_bK,
            masked_logit_bK.detach() if loss.stop_gradient == "masked" else masked_logit_bK,
            view.ignore_BK,
            over_classes=loss.consistency,
        )
        if row_b is not None:
            masked, consistency = share * masked, share * consistency
        total = loss.clean_weight * clean + loss.masked_weight * masked + loss.consistency_weight * consistency
        if loss.normalise_weights:
            total = loss.scale * total
        return {"total": total, "clean": clean, "masked": masked, "consistency": consistency}

    def _check_shapes(self, image_BCHW: Tensor, target_BK: Tensor, **others: Tensor | None) -> None:
        """Raise UserError where tensors would be stretched over each other: one mask over a batch, one class's weight
        over all of them. Shapes alone, so that nothing waits for the device."""
        given: dict[str, object] = {"image_BCHW": image_BCHW, "target_BK": target_BK, **others}
        for name, tensor in given.items():
            if tensor is not None and not isinstance(tensor, Tensor):
                raise UserError(f"{name} is a {type(tensor).__name__}; give a tensor")
        images, targets = tuple(image_BCHW.shape), tuple(target_BK.shape)
        if len(targets) != 2 or images[:1] != targets[:1]:
            raise UserError(
                f"image_BCHW is {images} and target_BK {targets}; the latter must be (B, K), a row for each image"
            )
        asked = {
            "keep_mask_B1HW": (images[0], 1, *images[2:]),
            "ignore_BK": targets,
            "masked_ignore_BK": targets,
            "masked_B": images[:1],
            "teacher_logit_BK": targets,
        }
        filling_BCHW = others.pop("filling_BCHW")
        if filling_BCHW is not None and tuple(filling_BCHW.shape) not in (images, (*images[:2], 1, 1)):
            raise UserError(
                f"filling_BCHW is {tuple(filling_BCHW.shape)}; it must be {images}, or one colour an image, "
                f"{(*images[:2], 1, 1)}"
            )
        for name, tensor in others.items():
            if tensor is not None and tuple(tensor.shape) != asked[name]:
                raise UserError(f"{name} is {tuple(tensor.shape)}; it must be {asked[name]} beside images of {images}")
        for name, weight_K in (
            ("positive_weight_K", self._positive_weight_K),
            ("loss.class_weights", self._class_weight_K),
        ):
            if weight_K is not None and tuple(weight_K.shape) != targets[1:]:
                raise UserError(
                    f"{name} is {tuple(weight_K.shape)}; it must have a weight for each of {targets[1]} classes"
                )

    def _masked_target(self, view: _View, beside_logit_BK: Tensor) -> Tensor:
        """What the masked branch must predict, given what the network predicts for the same whole images."""
        match self.loss.masked_target:
            case "labels":
                return view.target_BK
            case "whole_image":
                return torch.sigmoid(beside_logit_BK.detach())
            case "teacher":
                assert view.teacher_logit_BK is not None
                return torch.sigmoid(view.teacher_logit_BK)

    @property
    def _drops_tokens(self) -> bool:
        return self.loss.has_masked_branch and self.loss.drop_hidden_tokens > 0

    @property
    def _fused(self) -> bool:
        return self.loss.has_masked_branch and self.branches == "fused"

    def _both(self, image_BCHW: Tensor, view: _View) -> tuple[Tensor, Tensor]:
        """Logits of the images and of the masked images."""
        masked_image_BCHW = fill_holes(view.image_BCHW, view.keep_mask_B1HW, view.filling_BCHW)
        num_images, num_masked = len(image_BCHW), len(masked_image_BCHW)
        # BatchNorm cuts a fused batch in half.
        if self.branches == "sequential" or (self.branches == "fused" and num_masked < num_images):
            only: tuple[Tensor, ...] = ()
            if self._drops_tokens:
                grid: tuple[int, int] = self.recogniser.patch_grid  # type: ignore[assignment]
                patch_BP = visible_patches(view.keep_mask_B1HW, grid, self.loss.drop_hidden_tokens)
                only = () if patch_BP is None else (patch_BP,)
            with self._passage.of("clean"):
                clean_logit_BK = self.recogniser(image_BCHW)
            with self._passage.of("masked"):
                masked_logit_BK = self.recogniser(masked_image_BCHW, *only)
            return clean_logit_BK, masked_logit_BK
        # A mixture is one plain batch to every BatchNorm.
        with self._passage.of("joined" if self.branches == "fused" else "clean"):
            joined_logit_BK = self.recogniser(torch.cat((image_BCHW, masked_image_BCHW)))
        clean_logit_BK, masked_logit_BK = joined_logit_BK.split((num_images, num_masked))
        return clean_logit_BK, masked_logit_BK

    def _recognition(
        self,
        logit_BK: Tensor,
        target_BK: Tensor,
        ignore_BK: Tensor | None,
        smoothing: float,
        corrects_labels: bool | None,
    ) -> Tensor:
        target_BK = target_BK.to(logit_BK.dtype)
        weight_BK = None
        if self._positive_weight_K is not None:
            weight_BK = 1 + (self._positive_weight_K - 1) * target_BK
        if self._class_weight_K is not None:
            weight_BK = self._class_weight_K * (torch.ones_like(target_BK) if weight_BK is None else weight_BK)
        if smoothing:
            target_BK = target_BK * (1 - smoothing) + smoothing / 2
        pairs, loss = (logit_BK, target_BK, ignore_BK, weight_BK), self.loss
        match loss.recognition:
            case "bce":
                return recognition_loss(*pairs)
            case "hill":
                return hill_loss(*pairs)
            case "splc":
                assert corrects_labels is not None
                return splc_loss(*pairs, threshold=loss.splc_threshold, corrects_labels=corrects_labels)
            case "asl":
                return asymmetric_loss(
                    *pairs,
                    gamma_positive=loss.asl_gamma_positive,
                    gamma_negative=loss.asl_gamma_negative,
                    margin=loss.asl_margin,
                    detach=loss.asl_detach,
                )
            case own:
                return own_loss(own, *pairs)


def positive_weights(data: Location | ShardSet | Loader, balance: float = 1.0) -> Tensor:
    """What `SiameseStep` needs for ``loss.balance``: the weight of a positive of each class, float32 (K,), which is
    (negatives / positives among the samples) to the power of ``balance``. Reads every sample index once.

    Args:
        data: what is trained on: a loader, a dataset folder, or a part of one (`hold_out`).
        balance: as ``loss.balance``, 0 to 1. A class without a positive counts as having one.

    Raises:
        UserError: another ``balance``. FormatError, StorageError, FileNotFoundError: the shards cannot be read.

    Example:
        weight_K = msltrain.positive_weights("shards/voc2007/trainval", 0.5)
        network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 20))
        step = msltrain.SiameseStep(network, msltrain.LossConfig(balance=0.5), positive_weight_K=weight_K)
    """
    if not 0 <= balance <= 1:
        raise UserError(f"balance is {balance}; it must be 0 to 1, as loss.balance")
    shards = data.shards if isinstance(data, Loader) else data if isinstance(data, ShardSet) else open_shard_set(data)
    count_K = shards.labels().count_K.clip(min=1)
    return torch.from_numpy(((shards.num_samples - count_K) / count_K) ** balance).float()


def _beside(module: nn.Module, weight_K: Tensor | None) -> Tensor | None:
    """``weight_K`` as float32 on the device of ``module``'s weights."""
    parameter = next(module.parameters(), None)
    if weight_K is None or parameter is None:
        return weight_K
    return weight_K.to(parameter.device, torch.float32)


def _checked(logit_BK: Tensor, target_BK: Tensor) -> Tensor:
    """Logits as float32, or as float64 if the network gives that. Raises UserError unless each target has one."""
    if not isinstance(logit_BK, Tensor):
        raise UserError(f"the network gives a {type(logit_BK).__name__}; wrap it so that it returns its logits (B, K)")
    if logit_BK.shape != target_BK.shape:
        raise UserError(
            f"the network gives {tuple(logit_BK.shape)} and the targets are {tuple(target_BK.shape)}; it must return "
            "one logit for each image and class, (B, K)"
        )
    return logit_BK.to(torch.promote_types(logit_BK.dtype, torch.float32))


class _View(NamedTuple):
    """The images that are masked, and what goes with them."""

    image_BCHW: Tensor
    keep_mask_B1HW: Tensor
    filling_BCHW: Tensor | None
    target_BK: Tensor
    ignore_BK: Tensor | None
    teacher_logit_BK: Tensor | None

    def take(self, row_b: Tensor) -> _View:
        return _View(*(None if tensor is None else tensor[row_b] for tensor in self))  # type: ignore[arg-type]


def _masked_rows(masked_B: Tensor | None) -> tuple[Tensor | None, float]:
    """The rows that are masked (None: all), and the factor that turns a mean over them into one over the batch.

    They are never fewer than two: BatchNorm refuses a single value per channel, so one row is run twice, and where no
    row is masked, the first one is run with a share of 0.
    """
    if masked_B is None:
        return None, 1.0
    row_b = masked_B.nonzero().flatten()
    share = len(row_b) / len(masked_B)
    if not len(row_b):
        row_b = torch.zeros(1, dtype=torch.int64, device=masked_B.device)
    return (row_b.repeat(2) if len(row_b) == 1 else row_b), share


def _either(first_BK: Tensor | None, second_BK: Tensor | None) -> Tensor | None:
    if first_BK is None or second_BK is None:
        return second_BK if first_BK is None else first_BK
    return first_BK | second_BK


def _decide(loss: LossConfig, recogniser: nn.Module) -> Branches:
    if loss.branches != "auto":
        return loss.branches
    on_gpu = any(parameter.is_cuda for parameter in recogniser.parameters())
    return "fused" if on_gpu and loss.drop_hidden_tokens == 0 else "sequential"
