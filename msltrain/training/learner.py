"""The network in training: Siamese step, optimiser, moving average, and the wrappers for many processes.

B batch, C image channels, H, W height and width, K classes.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from msldata.errors import UserError, counted
from msltrain.config import TrainConfig
from msltrain.hosts.distributed import Ranks
from msltrain.hosts.precision import has_bfloat16
from msltrain.models.build import Recogniser, build_model
from msltrain.models.frozen_features import FrozenFeatures
from msltrain.models.pretrained import fill_whole
from msltrain.runs.checkpoint import Checkpoint, rebuild_recogniser
from msltrain.runs.find_checkpoint import STATE_NAME, WEIGHTS_NAME
from msltrain.stream.keepmasks.masked_views import MaskedView
from msltrain.stream.pixels.batch import Batch
from msltrain.training.average import average_weights
from msltrain.training.optim import build_optimizer, check_moments, restore_optimizer, set_learning_rate
from msltrain.training.precise_bn import PreciseBN, norm_names
from msltrain.training.sharding import average_parts, divide_state, shard_weights, whole
from msltrain.training.siamese import SiameseStep


class Learner:
    """Everything of a run that learns.

    Args:
        config: the whole run.
        num_classes: K.
        ranks: this process among the others; the weights start equal in all of them.
        checkpoint: continue from here; None: start from the pretrained weights that the config names.
        classes: their names, to take over the head of one of our models.
        positive_weight_K: see `SiameseStep`.

    Attributes:
        recogniser: the weights that the optimiser moves.
        amp: whether the backbone runs in bf16.
        notes: sentences on what the config did with this network, for the log.
    """

    def __init__(
        self,
        config: TrainConfig,
        num_classes: int,
        ranks: Ranks,
        checkpoint: Checkpoint | None,
        classes: tuple[str, ...] = (),
        positive_weight_K: Tensor | None = None,
    ):
        self.config, self.ranks = config, ranks
        several = ranks.world_size > 1
        self._sharded = config.run.shard_weights and several
        if self._sharded and config.loss.has_masked_branch and config.loss.bn_mode == "split":
            raise UserError(
                "run.shard_weights: the norms that loss.bn_mode=split adds cannot be divided; set it to false, or "
                "loss.bn_mode to clean_only or shared"
            )
        if config.loss.class_weights and len(config.loss.class_weights) != num_classes:
            raise UserError(
                f"loss.class_weights: {len(config.loss.class_weights)} weights for {counted(num_classes, 'class')}; "
                f"give one for each, in the order {', '.join(classes[:6])} …"
            )
        torch.manual_seed(config.run.seed)
        if checkpoint is None:
            recogniser = build_model(config.model, num_classes, image_size=config.stream.image_size, classes=classes)
        else:
            recogniser = rebuild_recogniser(config, num_classes)
        self.weights_report = recogniser.weights
        self._memory_format = torch.channels_last if config.run.channels_last else torch.contiguous_format
        if not self._sharded:  # parts of filters can only be stored as NCHW
            recogniser = recogniser.to(ranks.device).to(memory_format=self._memory_format)  # type: ignore[call-overload]
        if config.run.sync_batchnorm and several:
            from timm.layers import convert_sync_batchnorm

            recogniser = convert_sync_batchnorm(recogniser)
        self.recogniser: Recogniser = recogniser
        self._average = None
        if config.optim.ema_decay is not None:
            from timm.utils import ModelEmaV3

            self._average = ModelEmaV3(recogniser, decay=config.optim.ema_decay)
        self._num_averaged = 0
        self._twin = _twin(config, num_classes, ranks, checkpoint, classes, positive_weight_K)
        self._mixture = None if self._twin is None else copy.deepcopy(recogniser)
        self._is_mixed = False
        if checkpoint is not None:
            with _from_checkpoint():
                self._restore_weights(checkpoint)
        if self._sharded:
            for network in dict.fromkeys((self.recogniser, self.shipped)):
                shard_weights(network, ranks)
        self.amp = config.run.amp and has_bfloat16(ranks.device)
        learning, self._features = recogniser, None
        if config.features_stay and config.stream.ram_cache_gb and not self._sharded:
            max_bytes = int(config.stream.ram_cache_gb * 1e9)
            self._features = FrozenFeatures(recogniser.backbone, max_bytes=max_bytes, amp=self.amp)
            learning = Recogniser(nn.Identity(), recogniser.classifier)  # type: ignore[arg-type]
        self.step_module = SiameseStep(
            learning,
            config.loss,
            activation_checkpointing=config.run.activation_checkpointing,
            positive_weight_K=positive_weight_K,
        )
        self.notes = tuple(self.step_module.notes)
        if self.weights_report is not None:
            self.notes = (self.weights_report.summary(), *self.notes)
        said = "" if self.weights_report is None else self.weights_report.warning()
        self.warnings: tuple[str, ...] = (said,) if said else ()
        if config.run.amp and not self.amp:
            self.notes += ("run.amp has no effect: this machine has no bf16 instructions, and float32 is faster",)
        if config.run.compile:
            self.step_module.compile()
        self._parallel: nn.Module = self.step_module
        if several and not self._sharded:
            # Only the first process's running statistics are ever used; they are shared before validation.
            self._parallel = nn.parallel.DistributedDataParallel(
                self.step_module,
                device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        self.optimizer = build_optimizer(config.optim, self.step_module)
        # From here on random numbers are dropout's and drop path's, which differ between processes.
        torch.manual_seed((config.run.seed << 16) + 1 + ranks.rank)
        if checkpoint is not None:
            with _from_checkpoint():
                self._restore_training(checkpoint.train_state)

    @property
    def shipped(self) -> Recogniser:
        """The network to validate and ship: ``recogniser``, its moving average, or its average with its twin."""
        if self._average is not None:
            return self._average.module
        if self._twin is None or self._mixture is None:
            return self.recogniser
        if not self._is_mixed:
            share, both = self.config.optim.twin_share, (self.recogniser, self._twin.recogniser)
            average = average_weights([network.state_dict() for network in both], (1 - share, share))
            self._mixture.load_state_dict(average)
            self._is_mixed = True
        return self._mixture

    def measure_norms(self, precise_bn: PreciseBN | None) -> None:
        """At the end of an epoch, before what is shipped is validated and saved: BatchNorm's running statistics anew.

        All processes must call this.
        """
        if precise_bn is None:
            return
        if self.ranks.is_first or self._sharded or self.config.run.sync_batchnorm:
            names = norm_names(self.recogniser)
            precise_bn.measure(self.shipped, names, self.ranks.device, amp=self.amp)
        self.ranks.share_buffers(self.shipped)

    def train(self) -> None:
        """Put what learns into training mode."""
        self.step_module.train()
        if self._twin is not None:
            self._twin.train()

    def take_step(self, batch: Batch, view: MaskedView | None, rate: float, epoch: int = 0) -> dict[str, Tensor]:
        """Forward, backward, update; the named losses, detached and still on the device.

        Args:
            batch: this process's part of the batch.
            view: what hides parts of its images; None for a loss without masks, or before they start.
            rate: the backbone's learning rate.
            epoch: counted from 0.
        """
        optim = self.config.optim
        loss = self.config.loss
        corrects_labels = epoch >= loss.splc_epoch if loss.recognition == "splc" else None
        self._warm_up_average()
        set_learning_rate(self.optimizer, rate)
        terms: dict[str, Tensor] = {}
        parts = list(self._parts(batch, view))
        for number, (image_BCHW, part, target_BK, ignore_BK) in enumerate(parts, 1):
            share = len(image_BCHW) / len(batch)
            with self._gradients_stay_here(number < len(parts)):
                with torch.autocast(
                    self.ranks.device.type,
                    torch.bfloat16,
                    enabled=self.amp,
                    cache_enabled=not self._sharded,  # it would keep a copy of weights that will soon be gone
                ):
                    losses = (
                        self._parallel(
                            image_BCHW,
                            None,
                            target_BK,
                            ignore_BK,
                            corrects_labels=corrects_labels,
                            whole_weight=self._whole_weight,
                        )
                        if part is None
                        else self._parallel(
                            image_BCHW,
                            part.keep_mask_B1HW,
                            target_BK,
                            ignore_BK,
                            filling_BCHW=part.filling_BCHW,
                            masked_ignore_BK=part.ignore_BK,
                            masked_B=part.masked_B,
                            teacher_logit_BK=self._teacher_logits(image_BCHW),
                            corrects_labels=corrects_labels,
                        )
                    )
                (losses["total"] * share).backward()
            for name, loss in losses.items():
                terms[name] = terms.get(name, 0) + share * loss.detach()
        if optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.step_module.parameters(), optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self._twin is not None:
            terms["twin"] = self._twin.take_step(batch, None, rate, epoch)["total"]
            self._is_mixed = False
        if self._average is not None and self._sharded:
            average_parts(self._average.module, self.recogniser, self._average.decay)
        elif self._average is not None:
            self._average.update(self.recogniser)
        if self._learns_from_average:
            self.ranks.share_buffers(self.shipped)  # or each process would have its own teacher
        return terms

    def _warm_up_average(self) -> None:
        """Let the moving average forget the first weights quickly: after n steps it looks back at most a tenth of n."""
        if self._average is not None:
            assert self.config.optim.ema_decay is not None
            warm = (1 + self._num_averaged) / (10 + self._num_averaged)
            self._average.decay = min(self.config.optim.ema_decay, warm)
            self._num_averaged += 1

    @property
    def _whole_weight(self) -> float | None:
        """Before masks start: what whole and masked images weigh together afterwards, so that gradients stay as large,
        which AdamW remembers for a thousand steps."""
        loss, share = self.config.loss, self.config.keep_mask.share
        return loss.clean_weight + share * loss.masked_weight if loss.needs_keep_masks else None

    def _teacher_logits(self, image_BCHW: Tensor) -> Tensor | None:
        """What the moving average predicts for the whole images, if the masked branch learns from it."""
        if not self._learns_from_average:
            return None
        with torch.no_grad():
            return self.shipped(image_BCHW)

    @property
    def _learns_from_average(self) -> bool:
        return self.config.loss.has_masked_branch and self.config.loss.masked_target == "teacher"

    def _parts(
        self, batch: Batch, view: MaskedView | None
    ) -> Iterator[tuple[Tensor, MaskedView | None, Tensor, Tensor]]:
        """Image (or what a frozen backbone says of it), masked view, target and ignore of each accumulation step."""
        num_parts = self.config.optim.accumulation_steps
        image_BCHW = batch.image_BCHW if self._features is None else self._features.of(batch)
        images, targets, ignores = (
            tensor.chunk(num_parts) for tensor in (image_BCHW, batch.target_BK, batch.ignore_BK)
        )
        views = [None] * len(images) if view is None else view.chunk(num_parts)
        for image_BCHW, part, target_BK, ignore_BK in zip(images, views, targets, ignores):
            yield image_BCHW.contiguous(memory_format=self._memory_format), part, target_BK, ignore_BK

    def _gradients_stay_here(self, stay: bool) -> AbstractContextManager:
        """Until the last accumulation step, processes need not share their gradients.

        Processes with sharded weights do: otherwise each would have to keep whole gradients, which do not fit.
        """
        if stay and isinstance(self._parallel, nn.parallel.DistributedDataParallel):
            return self._parallel.no_sync()
        return nullcontext()

    def shipped_weights(self) -> dict[str, Tensor]:
        """The weights of ``shipped`` by name, on the CPU.

        All processes must ask for them and for `state_dict`; the first one gets them, the others get no tensors.
        """
        return self._whole(self.shipped.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """What continuing needs besides ``shipped_weights``, as plain data."""
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {number: self._whole(entries) for number, entries in optimizer["state"].items()}
        state: dict[str, Any] = {"optimizer": optimizer}
        if self.shipped is not self.recogniser:
            state["weights"] = self._whole(self.recogniser.state_dict())
        if self._average is not None:
            state["num_averaged"] = self._num_averaged
        if self._twin is not None:
            state["twin"] = {"weights": self._twin.shipped_weights(), **self._twin.state_dict()}
        if self.step_module.masked_norms:
            state["masked_norms"] = self._whole(self.step_module.masked_norms.state_dict())
        return state

    def _whole(self, state: dict[str, Any]) -> dict[str, Any]:
        """Possibly sharded tensors, as whole ones on the CPU of the first process."""
        found: dict[str, Any] = {}
        for name, value in state.items():
            if isinstance(value, Tensor):
                value = whole(value.detach())  # one at a time, for all of them may not fit the device
                if not self.ranks.is_first:
                    continue
                value = value.cpu()
            found[name] = value
        return found

    def random_state(self) -> dict[str, Any]:
        """State of every generator that a step may draw from in this process, as plain data."""
        state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
        if self.ranks.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.ranks.device)
        return state

    def _restore_weights(self, checkpoint: Checkpoint) -> None:
        # A checkpoint without an average holds the trained weights alone; one with it ships the average.
        state = checkpoint.train_state
        trained, file = (state["weights"], STATE_NAME) if "weights" in state else (checkpoint.weights, WEIGHTS_NAME)
        fill_whole(self.recogniser, trained, file)
        if self._average is not None:
            fill_whole(self._average.module, checkpoint.weights, WEIGHTS_NAME)
            # Checkpoints from before the warm-up existed had the full decay in every step.
            self._num_averaged = state.get("num_averaged", checkpoint.step if "weights" in state else 0)

    def _restore_training(self, state: dict[str, Any]) -> None:
        if self.step_module.masked_norms:
            fill_whole(self.step_module.masked_norms, state.get("masked_norms", {}), STATE_NAME)
        try:
            check_moments(self.optimizer, state["optimizer"])
        except ValueError as error:
            raise UserError(f"{STATE_NAME}: {error}") from None
        restore_optimizer(self.optimizer, divide_state(state["optimizer"], self.optimizer))
        if len(state.get("random", ())) == self.ranks.world_size:
            mine = state["random"][self.ranks.rank]
            try:
                torch.set_rng_state(mine["torch"])
                random.setstate(mine["python"])
                if "cuda" in mine and self.ranks.device.type == "cuda":
                    torch.cuda.set_rng_state(mine["cuda"], self.ranks.device)
            except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
                raise UserError(f"{STATE_NAME}: holds no state of the random numbers ({error})") from None


class UnfitCheckpoint(UserError):
    """A checkpoint holds something else than what this network and optimiser need; begins with the file's name."""


@contextmanager
def _from_checkpoint() -> Iterator[None]:
    """Tell mistakes of what is restored from those of the config."""
    try:
        yield
    except UserError as error:
        raise UnfitCheckpoint(str(error)) from None


def check_compiler(config: TrainConfig) -> None:
    """Raise UserError where the step is to be compiled by a torch that fails in it."""
    if config.run.compile and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8):
        raise UserError(
            f"run.compile=true needs torch 2.8 or newer, and this is torch {torch.__version__}; set it to false, or "
            "install a newer torch"
        )


def _twin(
    config: TrainConfig,
    num_classes: int,
    ranks: Ranks,
    checkpoint: Checkpoint | None,
    classes: tuple[str, ...],
    positive_weight_K: Tensor | None,
) -> Learner | None:
    """What learns from whole images alone (``optim.twin_share``)."""
    if not config.optim.twin_share:
        return None
    if config.run.shard_weights and ranks.world_size > 1:
        raise UserError("run.shard_weights: a twin is not divided; set it to false, or optim.twin_share to 0")
    if not config.model.weights:
        raise UserError(
            "optim.twin_share: networks that start at random cannot be averaged; give --weights, or set it to 0"
        )
    if checkpoint is not None:
        if "twin" not in checkpoint.train_state:
            raise UserError("optim.twin_share: the run began without a twin; set it to 0, or start a new run")
        state = checkpoint.train_state["twin"]
        checkpoint = replace(checkpoint, weights=state["weights"], train_state=state)
    plain = replace(config.loss, clean_weight=1.0, masked_weight=0.0, consistency_weight=0.0)
    alone = replace(config, loss=plain, optim=replace(config.optim, twin_share=0.0))
    return Learner(alone, num_classes, ranks, checkpoint, classes, positive_weight_K)
