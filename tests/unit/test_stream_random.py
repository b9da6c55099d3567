"""Counter-based random numbers: fixed for ever, uniform, independent of how they are asked for."""

from __future__ import annotations

import numpy as np

from msltrain.stream.order import random
from msltrain.stream.order.random import CROP, FLIP, hash64, key_hash, uniform

STREAMS = {
    "SHARD_ORDER": 0.7372303101667704,
    "SAMPLE_ORDER": 0.7478722926703084,
    "CROP": 0.6225343669098049,
    "FLIP": 0.8476806535080594,
    "KEEP_MASK": 0.5298141583453178,
    "HOLD_OUT": 0.26329594549630153,
    "HOME_RANK": 0.17405959331615095,
    "SUBSET": 0.3492461080292859,
    "MASKED_VIEW": 0.5827235461049283,
    "DONOR": 0.23006520066662117,
    "RANDAUGMENT": 0.7513969743188905,
    "ERASE": 0.09423210014077976,
    "ERASED_BOX": 0.38485533698673424,
    "MIX_ORDER": 0.41669521526403,
    "MIX_SHARE": 0.3895232434686622,
    "MIX_BOX": 0.6467540238508789,
    "GRID": 0.4230406387724185,
}


def test_values_never_change():
    # Worked out with plain Python integers. A change here changes every order, crop and mask of every saved run.
    assert key_hash(["000005", "ü"]).tolist() == [15523686667929076396, 3976460501203677525]
    assert hash64(0).tolist() == [16294208416658607535]  # the first output of SplitMix64 seeded with 0
    assert hash64(1, 2, 3).tolist() == [15020427595393229491]
    drawn = uniform(key_hash(["000005"]), seed=7, epoch=3, stream=CROP, n=3)
    np.testing.assert_array_equal(drawn, [[0.6225343669098049, 0.6823189026022535, 0.3731816719119355]])


def test_every_stream_draws_numbers_of_its_own_for_ever():
    # Worked out with plain Python integers, like those above.
    first = {
        name: uniform(key_hash(["000005"]), seed=7, epoch=3, stream=getattr(random, name), n=1).item()
        for name in STREAMS
    }
    assert first == STREAMS


def test_the_stream_of_plain_python_integers_is_the_same():
    def mix(state: int) -> int:
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        return state ^ state >> 31

    for place, (name, value) in enumerate(STREAMS.items(), start=1):
        state = 0
        for word in (7, 3, place, 15523686667929076396, 0):
            state = mix(((state ^ word) + 0x9E3779B97F4A7C15) % 2**64)
        assert (state >> 11) / 2**53 == value, name


def test_integers_and_arrays_hash_alike():
    words = np.array([1, 2**63, 2**64 - 1], dtype=np.uint64)
    one_by_one = [hash64(5, int(word)).item() for word in words]
    assert hash64(5, words).tolist() == one_by_one
    assert hash64(-1).item() == hash64(2**64 - 1).item()


def test_uniform_is_uniform_and_uncorrelated():
    hashes = key_hash(str(number) for number in range(20_000))
    drawn = uniform(hashes, seed=0, epoch=0, stream=CROP, n=4)
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = np.stack([np.histogram(column, bins=20, range=(0, 1))[0] for column in drawn.T])
    # Chi-square with 19 degrees of freedom stays below 50 with probability 0.9999.
    assert (((counts - 1000) ** 2 / 1000).sum(axis=1) < 50).all()
    others = [
        uniform(hashes, seed=1, epoch=0, stream=CROP, n=1),
        uniform(hashes, seed=0, epoch=1, stream=CROP, n=1),
        uniform(hashes, seed=0, epoch=0, stream=FLIP, n=1),
    ]
    correlation = np.corrcoef(np.hstack([drawn, *others]).T) - np.eye(7)
    assert np.abs(correlation).max() < 0.04


def test_a_sample_draws_the_same_in_any_company():
    hashes = key_hash(["a", "b", "c"])
    together = uniform(hashes, seed=3, epoch=1, stream=FLIP, n=5)
    alone = uniform(hashes[1:2], seed=3, epoch=1, stream=FLIP, n=2)
    np.testing.assert_array_equal(together[1:2, :2], alone)


def test_consecutive_counters_look_independent():
    # Shard order hashes small consecutive numbers: the weakest input there is.
    order = np.argsort(hash64(0, 0, 1, np.arange(10_000)))
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.04
    assert abs((np.diff(order) > 0).mean() - 0.5) < 0.02
