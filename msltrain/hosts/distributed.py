"""One process or many: what torchrun's environment says, and the few collectives that training needs.

Everything here also works, and costs nothing, in a single process. Tensors go over nccl on GPUs and gloo on CPUs.
"""

from __future__ import annotations

import functools
import gc
import itertools
import os
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from msldata.errors import UserError, first_line
from msltrain.hosts.rank_output import LostPeer

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the others."""

    rank: int
    world_size: int
    device: torch.device
    """Where this process computes."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a float tensor over all processes, on every one of them."""
        if self.world_size > 1:
            dist.all_reduce(values)
            values = values / self.world_size
        return values

    def gather(self, value: Result) -> list[Result]:
        """The object of every process, in rank order, on every one of them; any picklable object."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def first_does(self, action: Callable[[], Result]) -> Result:
        """Run ``action`` in the first process; all return its result, or raise its exception.

        Without it, a mistake that only the first process can see would leave the others waiting for it.
        """
        if self.world_size == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = action()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, device=self.device)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the first one's buffers: BatchNorm's running statistics, which differ between them."""
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


@contextmanager
def process_group(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started, or run alone. Nothing made in the block that holds a
    DistributedDataParallel may be kept after it.

    Args:
        device: ``auto`` (a GPU when there is one), ``cpu`` or ``cuda``.

    Raises:
        UserError: a GPU is requested and there is none, or this host has fewer GPUs than processes.
        LostPeer: another process ended while the block was running.
    """
    rank, world_size, local_rank = (int(os.environ.get(name, default)) for name, default in _TORCHRUN.items())
    chosen = choose_device(device, local_rank)
    if world_size == 1:
        yield Ranks(rank=0, world_size=1, device=chosen)
        return
    # Functions of this module take the process group of the moment as a default argument. Imported while there is none,
    # they cannot keep it alive past the end, where its threads would abort the process now and then.
    import torch.distributed.nn  # noqa: F401

    backend = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=_own_store(next(_groups), rank, world_size), rank=rank, world_size=world_size
    )
    try:
        yield Ranks(rank=rank, world_size=world_size, device=chosen)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # its frames hold what the block made
        if _is_lost_connection(error):
            raise LostPeer(f"another process of this run was lost: {first_line(error)}") from None
        raise
    finally:
        # DistributedDataParallel must go before the group does: as the group's last owner it would end the group's
        # threads while it holds the interpreter lock, which such a thread may be waiting for, and neither would move.
        gc.collect()
        dist.destroy_process_group()


def _is_lost_connection(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


_groups = itertools.count()
"""Process groups that this process joins, one after the other; all processes join the same ones."""


@functools.cache
def _common_store() -> dist.Store:
    store, _, _ = next(iter(dist.rendezvous("env://")))
    return store


def _own_store(group: int, rank: int, world_size: int) -> dist.Store:
    """Where the processes of one group find each other: names that no other group or earlier start has used.

    torch gives every default group the same names, and torchrun keeps its store over a restart. A process that finds an
    old address there waits forever for a call, or calls where nobody listens any more. So the first process draws a
    name and greets each of the others under it with the word that the other has drawn.

    Raises:
        LostPeer: a process did not appear.
    """
    store = dist.PrefixStore(f"group{group}", _common_store())
    word = uuid.uuid4().hex
    deadline = time.monotonic() + _PATIENCE
    if rank == 0:
        store.set("name", word)
        for other in range(1, world_size):
            while not store.check([f"{word}/here/{other}"]):
                _wait_until(deadline, f"process {other} of {world_size} did not start")
            store.set(f"{word}/welcome/{other}", store.get(f"{word}/here/{other}").decode())
        return dist.PrefixStore(word, store)
    while True:
        if store.check(["name"]):
            name = store.get("name").decode()  # perhaps still an old name: then nobody greets us there
            store.set(f"{name}/here/{rank}", word)
            if store.check([f"{name}/welcome/{rank}"]) and store.get(f"{name}/welcome/{rank}").decode() == word:
                return dist.PrefixStore(name, store)
        _wait_until(deadline, f"the first of {world_size} processes did not start")


def _wait_until(deadline: float, problem: str) -> None:
    if time.monotonic() > deadline:
        raise LostPeer(f"{problem} within {_PATIENCE:.0f} s")
    time.sleep(0.02)


_PATIENCE = 600.0
"""Seconds that a process waits for the others to start."""

_TORCHRUN = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """The device that ``auto``, ``cpu`` or ``cuda`` means to a process of this host. Raises UserError without a GPU."""
    available = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and not available):
        return torch.device("cpu")
    if local_rank >= available:
        raise UserError(
            f"process {local_rank} of this host needs a GPU of its own and there are {available}; "
            + (f"start at most {available} processes" if available else "use --device cpu, in training run.device=cpu")
        )
    chosen = torch.device("cuda", local_rank)
    torch.cuda.set_device(chosen)
    return chosen
