"""mAP on the held-out part of the training set, which chooses the best checkpoint.

B batch, N samples, K classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from msltrain.distributed import Ranks
from msltrain.metrics import mean_average_precision
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
    for batch in loader:
        with torch.inference_mode(), torch.autocast(loader.device.type, torch.bfloat16, enabled=amp):
            logit_BK = recogniser(batch.image_BCHW)
        tensors = (logit_BK, batch.target_BK, batch.ignore_BK)
        part.append((batch.index_B, *(tensor.cpu().numpy() for tensor in tensors)))
    recogniser.train(was_training)
    parts = ranks.gather(part)

    def measure() -> float:
        rows = [row for part in parts for row in part]
        index_N, logit_NK, target_NK, ignore_NK = (np.concatenate(column) for column in zip(*rows))
        order_N = np.argsort(index_N, kind="stable")
        return mean_average_precision(logit_NK[order_N], target_NK[order_N], ignore_NK[order_N])

    return ranks.first_does(measure)
