"""mAP on the held-out part of the training set, which chooses the best checkpoint.

B batch, N samples, K classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from msldata.errors import counted, few_of
from msltrain.config import TrainConfig
from msltrain.hosts.distributed import Ranks
from msltrain.measures.metrics import mean_average_precision
from msltrain.stream.loader import Loader
from msltrain.stream.samples.shardset import ShardSet


def validation_mean_ap(recogniser: nn.Module, loader: Loader, ranks: Ranks, *, amp: bool) -> float:
    """mAP, 0 to 1, over the samples of ``loader``, each counted once; the same number in every process.

    Ignored pairs are left out, as in the published evaluation. Equal logits count as equal: ranked in the order of the
    samples, as published, a network that says the same of every image would be the best one where positives are
    stored first. Without ties it is the published number.

    Args:
        recogniser: put into evaluation mode meanwhile.
        loader: this process's share of the validation samples.
        amp: run the backbone in bf16.

    Raises:
        UserError: a logit is NaN.
    """
    was_training = recogniser.training
    recogniser.eval()
    part: list[tuple[np.ndarray, ...]] = []

    def logits(image_BCHW: Tensor) -> Tensor:
        # Not inference_mode: sharded weights that were gathered in it could not be trained afterwards.
        autocast = torch.autocast(loader.device.type, torch.bfloat16, enabled=amp, cache_enabled=False)
        with torch.no_grad(), autocast:
            return recogniser(image_BCHW)

    for batch in loader:
        tensors = (logits(batch.image_BCHW), batch.target_BK, batch.ignore_BK)
        part.append(tuple(tensor.cpu().numpy() for tensor in tensors))
    for _ in range(len(part), len(loader)):
        # No sample of the last batch is left for this process, but all must call a network with sharded weights.
        side = loader.config.image_size
        logits(torch.zeros(1, 3, side, side, device=loader.device))
    recogniser.train(was_training)
    parts = ranks.gather(part)

    def measure() -> float:
        rows = [row for part in parts for row in part]
        logit_NK, target_NK, ignore_NK = (np.concatenate(column) for column in zip(*rows))
        return mean_average_precision(logit_NK, target_NK, ignore_NK, kind="sklearn")

    return ranks.first_does(measure)


FEW_STEPS = 150
"""A run of fewer hardly learns, however they are divided into epochs."""
FEW_POSITIVES = 5
"""With fewer positives, a class's average precision depends on single images."""
MANY_DROPPED = 0.05


def small_data_notes(config: TrainConfig, training: Loader, validation: Loader | None) -> list[str]:
    """What to know about a run on few samples, in sentences; empty for a large run."""
    notes = []
    num_samples, batch_size = training.shards.num_samples, config.stream.batch_size
    num_steps = config.optim.num_epochs * len(training)
    if num_steps < FEW_STEPS:
        notes.append(
            f"the run has {counted(num_steps, 'step')}: few to learn from; a smaller stream.batch_size or more "
            "optim.num_epochs gives more"
        )
    num_dropped = num_samples - len(training) * batch_size
    if num_dropped > MANY_DROPPED * num_samples:
        notes.append(
            f"every epoch leaves {num_dropped} of {counted(num_samples, 'sample')} out, other ones each time, that "
            f"fill no batch of {batch_size}; a smaller stream.batch_size leaves fewer out"
        )
    if validation is not None and config.data.validation:
        seen, held = (loader.shards.manifest.fingerprint for loader in (training, validation))
        if seen == held:
            notes.append(
                f"{config.data.validation} is what the run trains on: validation flatters it, and no epoch or "
                "threshold that it chooses means anything for other photographs"
            )
    if validation is not None and (counts := few_positives(validation.shards)):
        few, never = list(counts), sum(not count for count in counts.values())
        names = ", ".join(few[:4]) + (" …" if len(few) > 4 else "")
        notes.append(
            f"validation shows {len(few):,} of {len(validation.shards.classes):,} classes fewer than {FEW_POSITIVES} "
            f"times ({names}){f', {never:,} of them never' if never else ''}, "
            + (
                "so which checkpoint is best hangs on single images; "
                if can_choose(validation.shards)
                else "too few to choose a checkpoint by: best is the last one"
                + (", and optim.patience ends nothing; " if config.optim.patience else "; ")
            )
            + ("more validation images show" if config.data.validation else "a larger data.validation_fraction shows")
            + " more"
        )
    num_validation = 0 if validation is None else validation.shards.num_samples
    share, asked = num_validation / (num_samples + num_validation), config.data.validation_fraction
    if share > 1.25 * asked and not config.data.validation:
        more = f"{100 * share:.1f} % of the samples instead of {100 * asked:g} %"
        notes.append(f"validation takes {more}, to show more classes")
    return notes


def doubt_of_choice(shards: ShardSet) -> str:
    """In words, that which checkpoint validation chooses hangs on single images; empty where every class is often
    enough in these samples."""
    if not (few := few_positives(shards)):
        return ""
    return (
        f"with {counted(shards.num_samples, 'validation photograph')}, fewer than {FEW_POSITIVES} of "
        f"{few_of(list(few))}, that hangs on single images"
    )


def can_choose(shards: ShardSet) -> bool:
    """Whether validation on these samples can tell a better epoch from a luckier one.

    A mean over classes half of which, or more, hang on single images cannot: on 3 photographs it chose a checkpoint of
    36.7 mAP where the last one had 54.1.
    """
    return 2 * len(few_positives(shards)) < len(shards.classes)


def few_positives(shards: ShardSet) -> dict[str, int]:
    """The classes with fewer than ``FEW_POSITIVES`` positive samples, and how many each has."""
    counts = zip(shards.classes, count_positives(shards).tolist())
    return {name: count for name, count in counts if count < FEW_POSITIVES}


def count_positives(shards: ShardSet) -> np.ndarray:
    """Positive samples of each class, int64 (K,). Reads every sample index."""
    return shards.labels().count_K


def has_finite_weights(recogniser: nn.Module, ranks: Ranks) -> bool:
    """Whether every weight is a number, in all processes; all of them must call this."""
    weights = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in recogniser.parameters()]
    is_bad = ~torch.stack([weight.detach().isfinite().all() for weight in weights]).all()
    return ranks.mean(is_bad.float()[None]).item() == 0
