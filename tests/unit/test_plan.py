"""The order of an epoch: exact, shuffled, the same for any number of ranks, entered anywhere, fixed for ever."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msltrain.stream.order.plan import EpochPlan, home_share, rank_slice, steps

few_shards = st.lists(st.integers(0, 60), min_size=1, max_size=40).filter(any)
# Thousands of shards come from a seed: hypothesis would take long to draw them one by one.
many_shards = st.tuples(st.integers(1000, 4000), st.integers(0, 1000)).map(
    lambda pair: np.random.default_rng(pair[1]).integers(0, 9, pair[0]).tolist()
)
relaxed = settings(deadline=None, max_examples=50)
counts_of_shards = st.one_of(few_shards, many_shards).filter(any)


def whole(plan: EpochPlan) -> list[tuple[int, int]]:
    return list(zip(*(values.tolist() for values in plan.items(0, plan.num_samples))))


def stored_order(counts: list[int]) -> list[tuple[int, int]]:
    return [(shard, row) for shard, count in enumerate(counts) for row in range(count)]


@relaxed
@given(counts_of_shards, st.integers(0, 2**40), st.integers(0, 1000), st.integers(1, 500), st.booleans())
def test_every_sample_once(counts, seed, epoch, window, shuffle):
    plan = EpochPlan(counts, seed=seed, epoch=epoch, window=window, shuffle=shuffle)
    assert plan.num_samples == sum(counts)
    order = whole(plan)
    assert sorted(order) == stored_order(counts)
    if not shuffle:
        assert order == stored_order(counts)


@relaxed
@given(st.integers(0, 5000), st.integers(1, 64), st.integers(1, 300), st.booleans())
def test_ranks_share_out_every_batch_without_gap_or_overlap(num_samples, world_size, batch_size, drop_last):
    position = 0
    for step in range(steps(num_samples, batch_size, drop_last)):
        bounds = [
            rank_slice(step, num_samples=num_samples, batch_size=batch_size, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        for start, stop in bounds:
            assert start == position <= stop
            position = stop
        sizes = [stop - start for start, stop in bounds]
        assert sum(sizes) == min(batch_size, num_samples - step * batch_size)
        assert max(sizes) - min(sizes) <= 1
    assert position == (num_samples - num_samples % batch_size if drop_last else num_samples)


@relaxed
@given(counts_of_shards, st.integers(1, 64), st.integers(1, 300), st.integers(1, 500), st.data())
def test_union_over_ranks_is_the_batch_of_one_rank(counts, world_size, batch_size, window, data):
    num_samples = sum(counts)
    step = data.draw(st.integers(0, steps(num_samples, batch_size, drop_last=False) - 1))
    expected = whole(EpochPlan(counts, seed=1, epoch=2, window=window))[step * batch_size : (step + 1) * batch_size]
    union = []
    for rank in range(world_size):
        start, stop = rank_slice(step, num_samples=num_samples, batch_size=batch_size, rank=rank, world_size=world_size)
        shard_N, row_N = EpochPlan(counts, seed=1, epoch=2, window=window).items(start, stop)
        union += list(zip(shard_N.tolist(), row_N.tolist()))
    assert union == expected


@relaxed
@given(counts_of_shards, st.integers(1, 64), st.integers(1, 300), st.data())
def test_homes_share_out_every_batch_in_parts_of_the_same_sizes(counts, world_size, batch_size, data):
    plan = EpochPlan(counts, seed=1, epoch=2)
    step = data.draw(st.integers(0, steps(plan.num_samples, batch_size, drop_last=False) - 1))
    start = step * batch_size
    shard_N, row_N = plan.items(start, min(start + batch_size, plan.num_samples))
    shares = [home_share(shard_N, row_N, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(shard_N)))
    for rank, share in enumerate(shares):
        bounds = rank_slice(step, num_samples=plan.num_samples, batch_size=batch_size, rank=rank, world_size=world_size)
        assert len(share) == bounds[1] - bounds[0] and (np.diff(share) > 0).all()
        taken = plan.at(start + share)
        assert [values.tolist() for values in taken] == [shard_N[share].tolist(), row_N[share].tolist()]


def test_most_samples_have_the_same_home_in_every_epoch():
    num_samples, batch_size, world_size = 20_000, 64, 8
    takers = np.empty((2, num_samples), dtype=np.int64)
    for epoch in range(2):
        plan = EpochPlan([100] * 200, seed=0, epoch=epoch)
        for start in range(0, num_samples, batch_size):
            shard_N, row_N = plan.items(start, min(start + batch_size, num_samples))
            for rank in range(world_size):
                share = home_share(shard_N, row_N, rank=rank, world_size=world_size)
                takers[epoch, 100 * shard_N[share] + row_N[share]] = rank
    assert 0.7 < (takers[0] == takers[1]).mean() < 0.95
    assert np.bincount(takers[0]).min() > 0.95 * num_samples / world_size


@relaxed
@given(counts_of_shards, st.integers(1, 200), st.data())
def test_entered_anywhere(counts, window, data):
    order = whole(EpochPlan(counts, seed=3, epoch=0, window=window))
    start = data.draw(st.integers(0, len(order)))
    stop = data.draw(st.integers(start, len(order)))
    shard_N, row_N = EpochPlan(counts, seed=3, epoch=0, window=window).items(start, stop)
    assert list(zip(shard_N.tolist(), row_N.tolist())) == order[start:stop]
    assert shard_N.dtype == row_N.dtype == np.int64


@relaxed
@given(few_shards, st.integers(1, 64), st.integers(1, 100), st.integers(1, 100), st.booleans())
def test_an_epoch_of_all_ranks_is_exact(counts, world_size, batch_size, window, drop_last):
    plan = EpochPlan(counts, seed=4, epoch=1, window=window)
    num_samples, met = plan.num_samples, []
    for step in range(steps(num_samples, batch_size, drop_last)):
        for rank in range(world_size):
            options = {"num_samples": num_samples, "batch_size": batch_size, "world_size": world_size}
            shard_N, row_N = plan.items(*rank_slice(step, rank=rank, **options))
            met += list(zip(shard_N.tolist(), row_N.tolist()))
    assert len(set(met)) == len(met) == (num_samples - num_samples % batch_size if drop_last else num_samples)
    assert met == whole(plan)[: len(met)]


@relaxed
@given(counts_of_shards.filter(lambda counts: sum(counts) >= 30), st.integers(0, 100), st.integers(1, 500))
def test_no_epoch_repeats_the_one_before(counts, epoch, window):
    # Windows of one sample in a single shard leave nothing to permute.
    if len(counts) == 1 or sum(map(bool, counts)) == 1:
        window = max(window, 30)
    one, other = (whole(EpochPlan(counts, seed=0, epoch=number, window=window)) for number in (epoch, epoch + 1))
    assert one != other and sorted(one) == sorted(other)


@relaxed
@given(counts_of_shards, st.integers(1, 200), st.data())
def test_entering_computes_the_windows_it_needs_and_no_other(counts, window, data):
    plan, permuted = EpochPlan(counts, seed=3, epoch=0, window=window), []
    original = plan._permuted
    plan._permuted = lambda number: permuted.append(len(original(number)[0])) or original(number)  # type: ignore
    start = data.draw(st.integers(0, plan.num_samples - 1))
    plan.items(start, start + 1)
    assert len(permuted) == 1 and permuted[0] < window + max(counts)
    for item in range(plan.num_samples):
        plan.items(item, item + 1)
        assert len(plan._windows) <= 2, "the orders of two windows are kept, of whatever number there are"


@relaxed
@given(counts_of_shards, st.integers(1, 200))
def test_shards_are_open_for_a_window_only(counts, window):
    shard_N, _ = EpochPlan(counts, seed=0, epoch=0, window=window).items(0, sum(counts))
    first = np.unique(shard_N, return_index=True)[1]
    last = len(shard_N) - 1 - np.unique(shard_N[::-1], return_index=True)[1]
    assert (last - first).max() < window + max(counts)


def test_epochs_and_seeds_differ():
    counts = [50] * 40
    orders = [
        whole(EpochPlan(counts, seed=seed, epoch=epoch, window=500)) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    for number, one in enumerate(orders):
        for other in orders[:number]:
            assert sum(a == b for a, b in zip(one, other)) < 20


def test_samples_and_shards_both_move():
    shard_N, row_N = EpochPlan([100] * 50, seed=0, epoch=0, window=1000).items(0, 5000)
    assert abs(np.corrcoef(row_N, np.arange(5000))[0, 1]) < 0.05
    assert abs(np.corrcoef(shard_N, np.arange(5000))[0, 1]) < 0.3
    assert len(set(shard_N[:100].tolist())) == 10, "a batch mixes all shards of its window"


def test_the_order_never_changes():
    # Worked out with plain Python integers. A saved run continues in this order: a change here would go unnoticed
    # and train on other batches.
    first = [(1, 0), (2, 1), (2, 0), (3, 1), (3, 0), (3, 2), (3, 3), (0, 0), (0, 1), (0, 2)]
    second = [(3, 1), (3, 2), (3, 3), (3, 0), (1, 0), (0, 0), (2, 1), (2, 0), (0, 1), (0, 2)]
    assert whole(EpochPlan([3, 1, 2, 4], seed=5, epoch=1, window=4)) == first
    assert whole(EpochPlan([3, 1, 2, 4], seed=5, epoch=2, window=4)) == second


def test_positions_outside_are_refused():
    plan = EpochPlan([3, 4], seed=0, epoch=0)
    for start, stop in ((-1, 2), (0, 8), (5, 4)):
        with pytest.raises(IndexError):
            plan.items(start, stop)
    assert [len(values) for values in plan.items(7, 7)] == [0, 0]


def test_a_billion_samples_in_two_million_shards():
    tracemalloc.start()
    began = time.thread_time()  # not what else the machine does
    plan = EpochPlan(np.full(2_000_000, 500), seed=0, epoch=0)
    shard_N, row_N = plan.items(500_000_000, 500_000_256)
    seconds = time.thread_time() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(zip(shard_N.tolist(), row_N.tolist()))) == 256
    assert seconds < 6 and peak < 500e6, f"{seconds:.2f} s, {peak / 1e6:.0f} MB"
    slowest = 0.0
    for start in range(500_000_256, 500_040_000, 256):
        began = time.thread_time()
        plan.items(start, start + 256)
        slowest = max(slowest, time.thread_time() - began)
    assert slowest < 0.03  # about 3 ms where a window begins; the margin is for a busy machine
