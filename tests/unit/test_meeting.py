"""Processes find each other under a name of their own, whatever an earlier start has left in torchrun's store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch.distributed as dist

from msltrain.hosts import distributed
from msltrain.hosts.rank_output import LostPeer


def meet(world_size: int) -> list[dist.Store]:
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(lambda rank: distributed._own_store(0, rank, world_size), reversed(range(world_size))))


def test_a_restart_sees_nothing_of_the_start_before(monkeypatch):
    common = dist.HashStore()
    monkeypatch.setattr(distributed, "_common_store", lambda: common)
    monkeypatch.setattr(distributed, "_PATIENCE", 20.0)
    for attempt in range(3):
        stores = meet(3)
        assert not any(store.check(["address"]) for store in stores)
        stores[0].set("address", str(attempt))
        assert [store.get("address") for store in stores] == [str(attempt).encode()] * 3


def test_a_process_that_never_comes_is_named(monkeypatch):
    monkeypatch.setattr(distributed, "_common_store", dist.HashStore)
    monkeypatch.setattr(distributed, "_PATIENCE", 0.2)
    for rank, problem in ((0, "process 1 of 2 did not start"), (1, "the first of 2 processes did not start")):
        try:
            distributed._own_store(0, rank, 2)
        except LostPeer as error:
            assert problem in str(error)
        else:
            raise AssertionError("it went on alone")
