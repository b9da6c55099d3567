"""What a run measures between two reports."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from msltrain.hosts.distributed import Ranks


class StepLog:
    """What happened since the last report; nothing is read from the device before `read`."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.waited = 0.0
        self.learning_rate = 0.0
        self.losses: list[dict[str, Tensor]] = []
        self.keys: list[Sequence[str]] = []

    def add(self, rate: float, losses: dict[str, Tensor], keys: Sequence[str]) -> None:
        self.learning_rate = rate
        self.losses.append(losses)
        self.keys.append(keys)

    def read(self, ranks: Ranks, asked: bool) -> tuple[list[str], list[list[float]], bool]:
        """Loss names, a row of values per step averaged over the processes, and whether any process was asked to
        stop."""
        names = list(self.losses[0])
        table = torch.stack([torch.stack([losses[name] for name in names]) for losses in self.losses])
        flags = torch.full((1, len(names)), float(asked), device=table.device)
        *rows, flag_row = ranks.mean(torch.cat((table, flags))).tolist()
        return names, rows, flag_row[0] > 0
