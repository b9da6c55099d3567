"""mAP on the held-out part of the training set, which chooses the best checkpoint.

B batch, N samples, K classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from msltrain.hosts.distributed import Ranks
from msltrain.measures.metrics import mean_average_precision
from msltrain.stream.loader import Loader


def validation_mean_ap(recogniser: nn.Module, loader: Loader, ranks: Ranks, *, amp: bool) -> float:
    """mAP, 0 to 1, over the samples of ``loader``, each counted once; the same number in every process.

    Ignored pairs are left out, as in the published evaluation.

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
        part.append((batch.index_B, *(tensor.cpu().numpy() for tensor in tensors)))
    for _ in range(len(part), len(loader)):
        # No sample of the last batch is left for this process, but all must call a network whose weights are sharded.
        side = loader.config.image_size
        logits(torch.zeros(1, 3, side, side, device=loader.device))
    recogniser.train(was_training)
    parts = ranks.gather(part)

    def measure() -> float:
        rows = [row for part in parts for row in part]
        index_N, logit_NK, target_NK, ignore_NK = (np.concatenate(column) for column in zip(*rows))
        order_N = np.argsort(index_N, kind="stable")
        return mean_average_precision(logit_NK[order_N], target_NK[order_N], ignore_NK[order_N])

    return ranks.first_does(measure)
