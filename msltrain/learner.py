"""The network in training: Siamese step, optimiser, moving average, and what wraps them for many processes.

B batch, C image channels, H, W height and width, K classes.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from msltrain.checkpoint import Checkpoint, rebuild_recogniser
from msltrain.config import TrainConfig
from msltrain.distributed import Ranks
from msltrain.models.build import build_model
from msltrain.optim import build_optimizer, set_learning_rate
from msltrain.siamese import SiameseStep
from msltrain.stream.batch import Batch


class Learner:
    """Everything of a run that learns.

    Args:
        config: the whole run.
        num_classes: K.
        ranks: this process among the others; the weights start equal in all of them.
        checkpoint: continue from here; None: start from the pretrained weights that the config names.

    Attributes:
        recogniser: the weights that the optimiser moves.
        shipped: the network to validate and ship: ``recogniser``, or its moving average.
    """

    def __init__(self, config: TrainConfig, num_classes: int, ranks: Ranks, checkpoint: Checkpoint | None):
        self.config, self.ranks = config, ranks
        torch.manual_seed(config.run.seed)
        if checkpoint is None:
            recogniser = build_model(config.model, num_classes, image_size=config.stream.image_size)
        else:
            recogniser = rebuild_recogniser(config, num_classes)
        self.weights_report = recogniser.weights
        self._memory_format = torch.channels_last if config.run.channels_last else torch.contiguous_format
        recogniser = recogniser.to(ranks.device).to(memory_format=self._memory_format)  # type: ignore[call-overload]
        several = ranks.world_size > 1
        if config.run.sync_batchnorm and several:
            from timm.layers import convert_sync_batchnorm

            recogniser = convert_sync_batchnorm(recogniser)
        self.recogniser: nn.Module = recogniser
        self.step_module = SiameseStep(recogniser, config.loss)
        if config.run.compile:
            self.step_module.compile()
        self._parallel: nn.Module = self.step_module
        if several:
            # Only the first process's running statistics are ever used; they are shared before validation.
            self._parallel = nn.parallel.DistributedDataParallel(
                self.step_module,
                device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        self.optimizer = build_optimizer(config.optim, recogniser)
        self._average = None
        if config.optim.ema_decay is not None:
            from timm.utils import ModelEmaV3

            self._average = ModelEmaV3(recogniser, decay=config.optim.ema_decay)
        self.shipped: nn.Module = recogniser if self._average is None else self._average.module
        # From here on random numbers are dropout's and drop path's, which differ between processes.
        torch.manual_seed((config.run.seed << 16) + 1 + ranks.rank)
        if checkpoint is not None:
            self._restore(checkpoint)

    def take_step(self, batch: Batch, keep_mask_B1HW: Tensor | None, rate: float) -> dict[str, Tensor]:
        """Forward, backward, update; the named losses, detached and still on the device.

        Args:
            batch: this process's part of the batch.
            keep_mask_B1HW: float32, one per sample; None for a loss without a masked branch.
            rate: the backbone's learning rate.
        """
        optim = self.config.optim
        set_learning_rate(self.optimizer, rate)
        image_BCHW = batch.image_BCHW.contiguous(memory_format=self._memory_format)
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.config.run.amp):
            losses = self._parallel(image_BCHW, keep_mask_B1HW, batch.target_BK, batch.ignore_BK)
        losses["total"].backward()
        if optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.recogniser.parameters(), optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update(self.recogniser)
        return {name: loss.detach() for name, loss in losses.items()}

    def shipped_weights(self) -> dict[str, Tensor]:
        """The weights of ``shipped`` by name, on the CPU."""
        return _on_cpu(self.shipped)

    def state_dict(self) -> dict[str, Any]:
        """What continuing needs besides ``shipped_weights``: plain data."""
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict()}
        if self._average is not None:
            state["weights"] = _on_cpu(self.recogniser)
        return state

    def random_state(self) -> dict[str, Any]:
        """State of every generator that a step may draw from in this process: plain data."""
        state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
        if self.ranks.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.ranks.device)
        return state

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.train_state
        self.shipped.load_state_dict(checkpoint.weights)
        if self._average is not None:
            self.recogniser.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        if len(state["random"]) == self.ranks.world_size:
            mine = state["random"][self.ranks.rank]
            torch.set_rng_state(mine["torch"])
            random.setstate(mine["python"])
            if "cuda" in mine and self.ranks.device.type == "cuda":
                torch.cuda.set_rng_state(mine["cuda"], self.ranks.device)


def _on_cpu(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
