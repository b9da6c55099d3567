"""What a run measures between two reports."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from msltrain.hosts.distributed import Ranks

TICK_SECONDS = 1.0
"""Of slow steps each is told, of others one so often."""


class StepLog:
    """What happened since the last report; nothing is read from the device before `read`."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.waited = 0.0
        self.learning_rate = 0.0
        self.losses: list[dict[str, Tensor]] = []
        self.keys: list[Sequence[str]] = []
        self._left_out = 0, 0.0, 0.0
        self._told = self.began

    def add(self, rate: float, losses: dict[str, Tensor], keys: Sequence[str]) -> None:
        self.learning_rate = rate
        self.losses.append(losses)
        self.keys.append(keys)

    def is_slow(self) -> bool:
        """Whether nothing has been told for a second; what is told now is noted."""
        now = time.perf_counter()
        if now - self._told < TICK_SECONDS:
            return False
        self._told = now
        return True

    def leave_out(self) -> None:
        """Do not count what was so far, a first step that is slower than all others, into `speed`."""
        self._left_out = len(self.keys), time.perf_counter() - self.began, self.waited

    def speed(self) -> tuple[float, float]:
        """Images per second of this process, and the share of the time that it waited for them."""
        num_steps, seconds, waited = self._left_out if len(self.keys) > self._left_out[0] else (0, 0.0, 0.0)
        seconds = time.perf_counter() - self.began - seconds
        return sum(map(len, self.keys[num_steps:])) / seconds, (self.waited - waited) / seconds

    def read(self, ranks: Ranks, asked: bool) -> tuple[list[str], list[list[float]], bool]:
        """Loss names, a row of values per step averaged over the processes, and whether any process was asked to
        stop."""
        names = list(self.losses[0])
        table = torch.stack([torch.stack([losses[name] for name in names]) for losses in self.losses])
        flags = torch.full((1, len(names)), float(asked), device=table.device)
        *rows, flag_row = ranks.mean(torch.cat((table, flags))).tolist()
        return names, rows, flag_row[0] > 0
