"""BatchNorm's running statistics, measured anew on whole training images.

As a network trains, they follow what its layers put out with a delay, and weigh the last few batches most. Measured
over many images with the weights as they are ("precise BN": Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021),
they are those of the network that is validated and shipped; an average of several networks' weights needs it most.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import nn

from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.samples.holdout import hold_out
from msltrain.stream.samples.shardset import ShardSet

GROUP = 64
"""About so many images give one mean and variance of each channel, whatever the batch size: few images would lack what
differs between images."""
_SEED = 2
"""Not the seed that sets validation samples aside."""


def norm_names(network: nn.Module) -> list[str]:
    """The layers whose running statistics follow the training: not those of a frozen backbone."""
    return [name for name, layer in network.named_modules() if _is_norm(layer) and layer.training]


class PreciseBN:
    """The training images that running statistics are measured on: whole, as an evaluation sees them.

    Args:
        shards: the training set.
        stream: what its loader was given.
        most: about how many images; all if there are fewer.

    Raises:
        FormatError, StorageError: the sample indexes cannot be read.
    """

    def __init__(self, shards: ShardSet, stream: StreamConfig, most: int):
        if shards.num_samples > most:
            shards = hold_out(shards, most / shards.num_samples, seed=_SEED)[1]
        num_groups = -(-shards.num_samples // GROUP)
        self._shards = shards
        self._stream = replace(
            stream,
            decode="host",
            ram_cache_gb=0,
            batch_size=-(-shards.num_samples // num_groups),  # all alike, for each counts as much
            on_sample_error="skip",
            max_skipped=shards.num_samples,  # training has its say on bad ones
        )

    def measure(self, network: nn.Module, names: Collection[str], device: torch.device, *, amp: bool) -> None:
        """Replace the running statistics of the layers called ``names``: means over the groups. Modes stay.

        Layers that normalise over all processes need all of them here, with the same network.

        Raises:
            StorageError, FormatError: the images cannot be read.
        """
        norms = [layer for name, layer in network.named_modules() if name in names and _is_norm(layer)]
        if not norms or self._shards.num_samples < 2:
            return
        modes = [(layer, layer.training) for layer in network.modules()]
        before = [(layer, layer.momentum, layer.num_batches_tracked.clone()) for layer in norms]
        network.eval()
        for layer in norms:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all
            layer.training = True
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=amp, cache_enabled=False)
        with Loader(self._shards, self._stream, training=False, device=device, rank=0, world_size=1) as loader:
            for batch in loader:
                if len(batch) > 1:  # one has no variance
                    with torch.no_grad(), autocast:
                        network(batch.image_BCHW)
        for layer, momentum, counted in before:
            layer.momentum = momentum
            layer.num_batches_tracked.copy_(counted)
        for layer, mode in modes:
            layer.training = mode


def _is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None
