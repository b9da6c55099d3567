"""BatchNorm needs two values per channel: the smallest part that a step computes at once is tried before training."""

from __future__ import annotations

import torch

from msldata.errors import UserError
from msltrain.config import TrainConfig
from msltrain.hosts.distributed import Ranks
from msltrain.training.siamese import SiameseStep


def check_smallest_part(
    config: TrainConfig, step_module: SiameseStep, num_samples: int, num_classes: int, ranks: Ranks
) -> None:
    """Raise UserError where a part of one image comes, and the network cannot be trained on it.

    Args:
        config: the whole run.
        step_module: in this process, on its device; left as it was.
        num_samples: of the training part, N.
        num_classes: K.
        ranks: this process among the others.
    """
    share = config.stream.batch_size // ranks.world_size
    last = 0 if config.stream.drop_last else num_samples % config.stream.batch_size
    reasons = [
        _refusal(config, size, num_samples, ranks.world_size)
        for size in (share, last)
        if size and _smallest_chunk(size, config.optim.accumulation_steps) == 1
    ]
    # Heads have no BatchNorm.
    if reasons and not config.model.freeze_backbone and not _bears_one(config, step_module, num_classes, ranks):
        raise UserError(reasons[0])


def _smallest_chunk(size: int, num_parts: int) -> int:
    largest = -(-size // num_parts)  # as Tensor.chunk divides
    return size % largest or largest


def _bears_one(config: TrainConfig, step_module: SiameseStep, num_classes: int, ranks: Ranks) -> bool:
    """Whether the network in training computes a single image, tried on a black one."""
    side, device = config.stream.image_size, ranks.device
    buffers = {name: buffer.clone() for name, buffer in step_module.named_buffers()}
    was_training = step_module.training
    step_module.train()
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            step_module.forward(
                torch.zeros(1, 3, side, side, device=device),
                torch.ones(1, 1, side, side, device=device) if config.loss.needs_keep_masks else None,
                torch.zeros(1, num_classes, device=device),
                torch.zeros(1, num_classes, dtype=torch.bool, device=device),
                teacher_logit_BK=torch.zeros(1, num_classes, device=device),
                corrects_labels=True,
            )
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        return False
    finally:
        step_module.train(was_training)
        for name, buffer in step_module.named_buffers():
            buffer.copy_(buffers[name])
    return True


def _refusal(config: TrainConfig, size: int, num_samples: int, world_size: int) -> str:
    parts, batch_size = config.optim.accumulation_steps, config.stream.batch_size
    if size == batch_size // world_size:
        made = f"stream.batch_size={batch_size}"
        made += f" on {world_size} processes" if world_size > 1 else ""
        made += f" in {parts} parts (optim.accumulation_steps)" if parts > 1 else ""
        fewer = [number for number in range(1, parts) if _smallest_chunk(size, number) > 1]
        mend = f"optim.accumulation_steps={fewer[-1]}" if fewer else f"stream.batch_size={4 * world_size * parts}"
    else:
        made = f"the last of {num_samples} samples in batches of {batch_size} (stream.drop_last=false)"
        mend = "stream.drop_last=true"
    return _advice(made, mend)


def _advice(made: str, mend: str) -> str:
    return (
        f"{made}: a part of one image comes, of which BatchNorm sees one value per channel and learns nothing; set "
        f"{mend}, or model.freeze_batchnorm=true"
    )
