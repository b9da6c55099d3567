"""The whole description of a run as frozen dataclasses: what is trained, on which data, how, and for how long.

A config is made by a recipe (`msltrain.recipes`), changed field by field with `override`, and stored as JSON beside
every checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from msldata.errors import UserError
from msltrain.registered import HEADS, LOSSES, HeadName, LossName, check_registered
from msltrain.settings import override as override  # part of what a config can do
from msltrain.stream.config import NO_CROP, AugmentConfig, KeepMaskConfig, StreamConfig
from msltrain.typed_values import decode, hints_of, settle


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which shards are read.

    Example:
        data = msltrain.DataConfig(train="shards/voc2007/trainval", validation_fraction=0.1)
        config = msltrain.TrainConfig(data=data, stream=msltrain.StreamConfig(image_size=64))
        print(config.data.validates)
    """

    train: str = ""
    """Folder or URL of the training shards, such as ``shards/voc2007/trainval``."""
    keep_masks: tuple[str, ...] = ()
    """Folders or URLs of keep-mask shards; needed when the loss has a masked branch."""
    validation: str = ""
    """Folder or URL of validation shards, which choose the best checkpoint; none: a part of the training shards."""
    validation_fraction: float = 0.05
    """Share of the training samples set aside for that, by a hash of their key, where ``validation`` is not set, and at
    most half as much again, to show more classes. 0 replays the published habit: train on everything, keep the last
    weights."""

    def __post_init__(self) -> None:
        settle(self, "data")
        _check(0 <= self.validation_fraction < 1, "data.validation_fraction", self.validation_fraction, "0 to below 1")

    @property
    def validates(self) -> bool:
        """Whether a best checkpoint is chosen."""
        return bool(self.validation) or self.validation_fraction > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The network.

    Example:
        model = msltrain.ModelConfig(backbone="resnet18", head="mean")
        print(model.head, model.weights or "starts from nothing")
    """

    backbone: str = "resnet101"
    """Name of a timm model."""
    weights: str = ""
    """Where the first weights come from: a timm tag (``tv_in1k``), a model on the Hugging Face hub
    (``hf-hub:OWNER/NAME``), a local .pth or .safetensors file, a run, checkpoint or export of this program, or nothing
    for random ones. A released checkpoint (MSL, CSRA, ML-Decoder, Query2Label, ASL) fills the head as well where that
    and the number of classes are the ones asked for, by position; a model of ours for the classes that both know."""
    head: HeadName | str = "csra"
    """Class-specific residual attention; one linear layer after mean or max pooling; ML-Decoder; Query2Label; or one
    of your own (`msltrain.register_head`)."""
    num_heads: int = 1
    """H of CSRA: 1, 2, 4, 6 or 8."""
    attention_weight: float = 0.1
    """λ of CSRA: what the attention adds to the mean over the image."""
    num_queries: int = 0
    """Queries of mldecoder, each for an equal share of the classes. 0: one a class, at most 100, as published."""
    decoder_width: int = 0
    """Channels of mldecoder (a multiple of 8) or q2l (of 4). 0: 768, and as many as the backbone's, as published."""
    decoder_hidden: int = 0
    """Channels inside the perceptrons of mldecoder or q2l. 0: 2048, and four times the width, as published."""
    head_dropout: float = 0.1
    """Dropout in mldecoder and q2l."""
    freeze_batchnorm: bool = False
    """Normalise by the pretrained running statistics and leave them unchanged; weight and bias still learn."""
    freeze_backbone: bool = False
    """Only the head learns: the backbone stays as it was pretrained, in evaluation mode, and no gradient flows into it.
    A step costs a third. With ``stream.crop_scale=1,1``, no masks and no ``augment``, images look the same in every
    epoch but for the flip, and features are computed once: up to ``stream.ram_cache_gb`` of them are kept."""

    def __post_init__(self) -> None:
        settle(self, "model")
        check_registered("model.head", self.head, HEADS)
        _check(self.num_heads in (1, 2, 4, 6, 8), "model.num_heads", self.num_heads, "1, 2, 4, 6 or 8")
        for name in ("num_queries", "decoder_hidden"):
            _check(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "0 or more")
        step = 8 if self.head == "mldecoder" else 4
        fits = self.decoder_width >= 0 and self.decoder_width % step == 0
        _check(fits, "model.decoder_width", self.decoder_width, f"a multiple of {step}")
        _check(0 <= self.head_dropout < 1, "model.head_dropout", self.head_dropout, "0 to below 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """The paper's loss: ``α1 · BCE(image) + α2 · BCE(masked image) + α3 · LaCo``; (1, 0, 0) is the plain baseline.

    Gradients flow through both branches unless a field says otherwise. Which images are masked, and with what, is
    `KeepMaskConfig`'s.

    Example:
        published = msltrain.LossConfig()
        baseline = msltrain.LossConfig(clean_weight=1, masked_weight=0, consistency_weight=0)
        print(published.has_masked_branch, baseline.has_masked_branch)
    """

    clean_weight: float = 0.3
    """α1, what the recognition of the whole image weighs."""
    masked_weight: float = 0.2
    """α2, what the recognition of the masked image weighs."""
    consistency_weight: float = 0.5
    """α3, what it weighs that both images are answered alike."""
    masked_target: Literal["labels", "whole_image", "teacher"] = "labels"
    """What the masked branch must predict: the labels, as published; the whole image's own prediction, through which
    no gradient flows (as in MaskSub), so that the whole image learns from labels alone; or what the moving average of
    the weights (``optim.ema_decay``) says of the whole image (as in MIC), in evaluation mode: it costs a forward pass,
    and neither learns nor counts BatchNorm statistics by it."""
    normalise_weights: bool = False
    """Divide all weights by α1 + α2 (by α3 where both are 0), so that recognition counts as much as in the baseline
    and α leaves the effective learning rate alone. As published: not divided, α1 + α2 = 0.5."""
    train_ignored: Literal["negative", "drop"] = "negative"
    """What an ignored (image, class) pair (VOC "difficult") means in training: negative as published, or left out of
    every term."""
    recognition: LossName | str = "bce"
    """Both recognition terms: binary cross-entropy as published, the asymmetric loss (Ridnik et al., ICCV 2021), or one
    of two for labels of which some are missing (Zhang et al., 2021): hill pulls less at negatives that the network
    finds likely, splc takes them for positives. Or one of your own (`msltrain.register_loss`)."""
    balance: float = 0.0
    """The weight of a class's positives in the recognition terms is (negatives / positives in training) to this power.
    0: each weighs as much as a negative, as published; 1: all together weigh as much as all negatives. A target between
    0 and 1 weighs in between."""
    class_weights: tuple[float, ...] = ()
    """Weight of each class in the recognition terms, in class order; nothing: all 1."""
    label_smoothing: float = 0.0
    """ε: the recognition terms aim at 1 − ε / 2 and ε / 2 instead of 1 and 0."""
    asl_gamma_positive: float = 0.0
    """γ+ of ASL: how strongly confident positives are down-weighted."""
    asl_gamma_negative: float = 4.0
    """γ− of ASL: how strongly confident negatives are down-weighted."""
    asl_margin: float = 0.05
    """m of ASL: negatives with a smaller probability add nothing."""
    asl_detach: bool = False
    """No gradient flows through the focusing factors of ASL, as in its authors' training code; false: the loss is
    differentiated as printed."""
    splc_threshold: float = 0.6
    """τ of SPLC: a negative with a higher probability is trained as a positive."""
    splc_epoch: int = 1
    """The epoch, counted from 0, from which SPLC corrects labels; before it the network is too green to."""
    consistency: Literal["mean", "sum", "bce"] = "mean"
    """LaCo: squared differences of probabilities, their mean over classes, which gave the published numbers, or their
    sum, as printed in the paper, which is K times larger. bce: the cross-entropy of the masked image's probabilities
    against the whole image's, the mean over classes. All are means over images."""
    stop_gradient: Literal["none", "clean", "masked"] = "none"
    """The branch that LaCo does not move: only the other one is pulled towards it. none: both move, as published."""
    branches: Literal["auto", "sequential", "fused", "concatenated", "single"] = "auto"
    """Two passes as published, or one pass over both batches with BatchNorm kept apart: same numbers up to rounding.
    auto: fused on a GPU, sequential elsewhere. concatenated is another method: BatchNorm mixes the two batches. single
    is none: one branch, whose images are masked in place (the ``share`` of them that ``keep_mask`` gives a masked
    view), with α1 on all of them: masks as plain augmentation, at the cost of the baseline; BatchNorm sees one mixed
    batch."""
    bn_mode: Literal["shared", "clean_only", "running", "split"] = "shared"
    """How BatchNorm takes the masked branch. shared: it is normalised by its own batch and updates the running
    statistics, as published. clean_only: by its own batch, the running statistics learn from whole images alone.
    running: by those running statistics, as every image is at test time. split: by its own batch, with statistics,
    weights and biases of its own, which are used in training only."""
    drop_hidden_tokens: float = 0.0
    """The masked branch of a ViT or EVA leaves out patches whose visible share is below this, 0 to 1, and costs that
    much less. 0: every patch stays, as published."""

    @property
    def has_masked_branch(self) -> bool:
        """Whether any term needs the masked images; without it the step is the plain baseline."""
        return self.masked_weight > 0 or self.consistency_weight > 0

    @property
    def needs_keep_masks(self) -> bool:
        """Whether images are masked in any branch."""
        return self.has_masked_branch or self.branches == "single"

    @property
    def scale(self) -> float:
        """The factor that every weight is multiplied by."""
        recognition = self.clean_weight + self.masked_weight
        return 1 / (recognition or self.consistency_weight) if self.normalise_weights else 1.0

    def rate_matched_baseline(self) -> LossConfig:
        """The plain baseline whose cross-entropy weighs as much as both of this loss's together: α = (α1 + α2, 0, 0).

        The published weights give recognition 0.3 + 0.2, the published baseline 1. With one learning rate for both, MSL
        therefore learns recognition at half the baseline's rate; against this baseline, the masks alone make the
        difference.
        """
        return dataclasses.replace(
            self,
            clean_weight=self.clean_weight + self.masked_weight,
            masked_weight=0.0,
            consistency_weight=0.0,
        )

    def __post_init__(self) -> None:
        settle(self, "loss")
        check_registered("loss.recognition", self.recognition, LOSSES)
        for name in ("clean_weight", "masked_weight", "consistency_weight"):
            _check(0 <= getattr(self, name) < math.inf, f"loss.{name}", getattr(self, name), "0 or more")
        learns = self.clean_weight + self.masked_weight + self.consistency_weight > 0
        _check(learns, "loss.clean_weight", self.clean_weight, "above 0 when the other weights are 0")
        _check(0 <= self.balance <= 1, "loss.balance", self.balance, "0 to 1")
        _check(0 <= self.label_smoothing < 1, "loss.label_smoothing", self.label_smoothing, "0 to below 1")
        weights = self.class_weights
        fit = all(0 <= weight < math.inf for weight in weights) and (not weights or max(weights) > 0)
        _check(fit, "loss.class_weights", weights, "0 or more each, and one above 0")
        for name in ("asl_gamma_positive", "asl_gamma_negative"):
            value = getattr(self, name)
            # Between 0 and 1 the slope at probability 0 is infinite.
            _check(value == 0 or 1 <= value < math.inf, f"loss.{name}", value, "0, or 1 or more")
        _check(0 <= self.asl_margin < 1, "loss.asl_margin", self.asl_margin, "0 to below 1")
        _check(0 < self.splc_threshold < 1, "loss.splc_threshold", self.splc_threshold, "between 0 and 1")
        _check(self.splc_epoch >= 0, "loss.splc_epoch", self.splc_epoch, "0 or more")
        _check(0 <= self.drop_hidden_tokens <= 1, "loss.drop_hidden_tokens", self.drop_hidden_tokens, "0 to 1")
        if self.branches == "single":
            _check(
                not self.has_masked_branch, "loss.branches", "single", "possible with α2 or α3 above 0: set both to 0"
            )
            _check(self.bn_mode == "shared", "loss.bn_mode", self.bn_mode, "shared, as a single branch needs")
            _check(
                self.drop_hidden_tokens == 0,
                "loss.drop_hidden_tokens",
                self.drop_hidden_tokens,
                "0, as a single branch needs",
            )
        if self.masked_target != "labels":
            soft = self.recognition == "bce" or self.recognition in LOSSES
            _check(soft, "loss.recognition", self.recognition, "bce or your own, as soft targets need")
        if self.branches == "concatenated":
            _check(self.bn_mode == "shared", "loss.bn_mode", self.bn_mode, "shared, as concatenated branches need")
        if self.branches in ("fused", "concatenated"):
            _check(
                self.drop_hidden_tokens == 0,
                "loss.drop_hidden_tokens",
                self.drop_hidden_tokens,
                f"0, as {self.branches} branches need: both must have as many tokens",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """How the weights are updated, and for how long.

    Example:
        config = dataclasses.replace(msltrain.recipe("demo"), optim=msltrain.OptimConfig(optimizer="adamw", lr=1e-4))
        print(config.optim.num_epochs)
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum as published, or AdamW."""
    lr: float = 0.01
    """Learning rate of the backbone after warm-up."""
    lr_batch_size: int | None = None
    """The batch size that ``lr`` is meant for: ``lr`` is multiplied by ``stream.batch_size`` over this. None: not
    scaled."""
    classifier_lr_factor: float = 10.0
    """The head's learning rate divided by the backbone's."""
    layer_decay: float = 1.0
    """Every layer of the backbone learns at this times the rate of the one behind it, as pretrained transformers are
    fine-tuned: 0.65 to 0.9. 1: all alike, as published."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """SGD: on every parameter, as published. AdamW: on weight matrices and filters, not on biases and norms."""
    num_epochs: int = 60
    """Passes over the training samples."""
    warmup_epochs: float = 2.0
    """Epochs during which the learning rate rises linearly from 0, at most a third of the run. No checkpoint counts as
    the best before their end."""
    schedule: Literal["step", "cosine", "one_cycle"] = "step"
    """After warm-up: multiplied by ``step_factor`` every ``step_epochs`` epochs, or a half cosine down to 0. one_cycle:
    the warm-up is a half cosine as well, up from ``lr / 25``, and the end is at ``lr / 250,000``."""
    step_epochs: int = 4
    """Epochs between two steps of the step schedule, counted from the start of the run."""
    step_factor: float = 0.1
    """The factor by which a step multiplies the learning rate."""
    accumulation_steps: int = 1
    """The number of parts into which each process cuts its share of a batch, one in memory at a time; their gradients
    add up to one update. BatchNorm sees the parts."""
    clip_norm: float | None = None
    """Gradients with a larger global L2 norm are scaled down to this one; none: never scaled."""
    ema_decay: float | None = None
    """Decay per step of a moving average of the weights, which is then validated and shipped; none: no average. The
    decay of step n is (1 + n) / (10 + n) as long as that is smaller."""
    twin_share: float = 0.0
    """Share of a twin in what is validated and shipped: a second network that starts from the same weights and learns
    from whole images alone, in the same batches; the average of both networks' weights wins back what masks cost on
    whole images (as "model soups" do: Wortsman et al., ICML 2022). It costs the baseline's pass in every step, and
    needs pretrained weights. 0: no twin."""
    precise_bn_images: int = 0
    """About how many training images, seen whole, BatchNorm's running statistics are measured on at the end of every
    epoch ("precise BN": Wu and Johnson, 2021), at a forward pass each. With thousands of photographs that is worth a
    point of mAP, with hundreds it costs one. 0: they are moving averages of the training's batches."""
    patience: int = 0
    """The run ends after this many epochs without a better validation mAP; 0: only after ``num_epochs``."""

    def __post_init__(self) -> None:
        settle(self, "optim")
        for name in ("lr", "classifier_lr_factor", "step_factor"):
            _check(0 < getattr(self, name) < math.inf, f"optim.{name}", getattr(self, name), "above 0")
        for name in ("num_epochs", "step_epochs", "accumulation_steps"):
            _check(getattr(self, name) >= 1, f"optim.{name}", getattr(self, name), "1 or more")
        for name in ("warmup_epochs", "weight_decay", "patience", "precise_bn_images"):
            _check(0 <= getattr(self, name) < math.inf, f"optim.{name}", getattr(self, name), "0 or more")
        meant_for, decay = self.lr_batch_size, self.ema_decay
        _check(meant_for is None or meant_for >= 1, "optim.lr_batch_size", meant_for, "1 or more, or none")
        _check(0 < self.layer_decay <= 1, "optim.layer_decay", self.layer_decay, "above 0, at most 1")
        _check(0 <= self.momentum < 1, "optim.momentum", self.momentum, "0 to below 1")
        _check(self.clip_norm is None or self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "above 0, or none")
        _check(decay is None or 0 < decay < 1, "optim.ema_decay", decay, "between 0 and 1, or none")
        _check(0 <= self.twin_share < 1, "optim.twin_share", self.twin_share, "0 to below 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Where and how the run is carried out.

    Example:
        config = dataclasses.replace(msltrain.recipe("demo"), run=msltrain.RunConfig(seed=1, amp=True))
        print(config.run)
    """

    seed: int = 0
    """Seed of the head's first weights, the sample order, the augmentation, the masks and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU when there is one."""
    amp: bool = False
    """bf16 autocast in the backbone; head, logits and loss stay float32. No effect without bf16 instructions."""
    channels_last: bool = False
    """Store images and filters as NHWC, which tensor cores and CPUs prefer."""
    compile: bool = False
    """Compile the step with torch.compile: minutes once, then faster on a GPU. Needs torch 2.8."""
    activation_checkpointing: bool = False
    """Compute the backbone's blocks a second time in the backward pass instead of keeping their activations: about a
    third more time, far less memory."""
    sync_batchnorm: bool = False
    """BatchNorm statistics over all GPUs instead of each GPU's share of the batch."""
    shard_weights: bool = False
    """Each GPU keeps its part of the weights, gradients, optimiser state and moving average, and gathers a block's
    weights while it computes (FSDP2): for a backbone that does not fit one GPU; slower otherwise. Checkpoints are the
    same. Best with ``activation_checkpointing``, without which ``amp`` keeps a bf16 copy of all weights per step."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl. Several processes react to Ctrl-C and SIGTERM only there, one at any
    step."""
    save_every: int = 0
    """Steps between two extra saves of the last checkpoint, besides the one at the end of every epoch; 0: none."""
    keep: int = 0
    """Checkpoints of the latest epochs to keep besides ``last`` and ``best``."""
    tensorboard: bool = False
    """Write TensorBoard's files into the run folder (extra ``tensorboard``)."""
    wandb: str = ""
    """Log to this project of Weights & Biases (extra ``wandb``)."""
    mlflow: str = ""
    """Log to this experiment of MLflow, on the server of ``MLFLOW_TRACKING_URI`` (extra ``mlflow``)."""

    def __post_init__(self) -> None:
        settle(self, "run")
        for name, least in (("log_every", 1), ("save_every", 0), ("keep", 0)):
            _check(getattr(self, name) >= least, f"run.{name}", getattr(self, name), f"{least} or more")
        _check(
            not (self.compile and self.activation_checkpointing),
            "run.activation_checkpointing",
            self.activation_checkpointing,
            "false, as run.compile needs; the compiler already chooses what to compute again",
        )
        _check(not (self.compile and self.shard_weights), "run.shard_weights", True, "false, as run.compile needs")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Everything that determines what a run computes.

    Example:
        config: msltrain.TrainConfig = msltrain.recipe("demo")
        print(config.stream.batch_size, config.optim.num_epochs, config.model.backbone)
    """

    data: DataConfig = field(default_factory=DataConfig)
    """Which shards."""
    stream: StreamConfig
    """How samples become batches."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What is done to training images beyond crop and flip."""
    keep_mask: KeepMaskConfig = field(default_factory=KeepMaskConfig)
    """What hides parts of the images in the masked branch."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What is minimised."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """How, and for how long."""
    run: RunConfig = field(default_factory=RunConfig)
    """Where, and what is written."""

    @property
    def first_masked_epoch(self) -> int:
        """The epoch, counted from 0, from which images are masked (``keep_mask.start``)."""
        return int(self.keep_mask.start * self.optim.num_epochs + 1e-9)  # 0.29 · 100 is 28.999…

    @property
    def features_stay(self) -> bool:
        """Whether the backbone says the same of an image in every epoch."""
        looks_same = self.stream.crop_scale == NO_CROP and not self.augment.is_active
        return self.model.freeze_backbone and looks_same and not self.loss.needs_keep_masks

    def __post_init__(self) -> None:
        for name, kind in hints_of(TrainConfig).items():
            _check(isinstance(getattr(self, name), kind), name, repr(getattr(self, name)), f"a {kind.__name__}")
        if self.loss.has_masked_branch and self.loss.masked_target == "teacher":
            _check(
                self.optim.ema_decay is not None,
                "optim.ema_decay",
                "none",
                "set, as loss.masked_target=teacher needs: try 0.999",
            )
        if self.keep_mask.start and self.loss.has_masked_branch:
            recognises = self.loss.clean_weight + self.loss.masked_weight > 0
            _check(recognises, "keep_mask.start", self.keep_mask.start, "0, as the loss has no recognition terms")
            one_norm = self.loss.bn_mode != "split"
            _check(one_norm, "keep_mask.start", self.keep_mask.start, "0, as loss.bn_mode=split needs")
        if self.loss.drop_hidden_tokens:  # which counts visible pixels, and dimmed ones are partly so
            level = self.keep_mask.visible_level
            _check(level == 1, "keep_mask.visible_level", level, "1, as loss.drop_hidden_tokens needs")
        if self.optim.twin_share:
            has_masks, decay = self.loss.has_masked_branch, self.optim.ema_decay
            _check(has_masks, "optim.twin_share", self.optim.twin_share, "0, as the loss has no masks")
            _check(decay is None, "optim.ema_decay", decay, "none beside optim.twin_share")
        if self.loss.needs_keep_masks and self.augment.moves_objects:
            why = "as augment.randaugment and augment.mix need: boxes follow crop and flip alone"
            _check(self.keep_mask.kind != "object", "keep_mask.kind", "object", f"possible here: set another, {why}")
            _check(self.keep_mask.ignore_below == 0, "keep_mask.ignore_below", self.keep_mask.ignore_below, f"0, {why}")


def to_json(config: TrainConfig) -> str:
    """The config as indented JSON; `from_json` gives an equal one back."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str, where: str = "config.json") -> TrainConfig:
    """Read what `to_json` wrote; a field that is absent takes its default.

    Raises:
        UserError: not JSON, an unknown field, or a value of the wrong type or range.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    try:
        return decode(content, TrainConfig, "")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def differences(one: TrainConfig, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """The fields in which two configs differ: ``section.field`` → (value in one, value in the other)."""
    found = {}
    for section in dataclasses.fields(one):
        ours, theirs = getattr(one, section.name), getattr(other, section.name)
        for entry in dataclasses.fields(ours):
            pair = getattr(ours, entry.name), getattr(theirs, entry.name)
            if pair[0] != pair[1]:
                found[f"{section.name}.{entry.name}"] = pair
    return found


def _check(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise UserError(f"{name}: {value} is not {expected}")
