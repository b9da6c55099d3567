"""Which photographs a report shows, by the rule as it is written: sorted and counted one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from msltrain.config import TrainConfig
from msltrain.measures.predictions import LargestObjects, Predictions
from msltrain.report.examples import TOP, answer, choose, choose_seen, cross_entropy, mistakes, net_named, wholly_right
from msltrain.report.gallery import _how_many_right
from msltrain.report.open_runs import RunReport
from msltrain.stream.config import StreamConfig

NUM, K = 60, 4
CONFIG = TrainConfig(stream=StreamConfig(image_size=32))


def predictions(seed: int) -> Predictions:
    rng = np.random.default_rng(0)
    target_NK = rng.random((NUM, K)) < 0.35
    ignore_NK = rng.random((NUM, K)) < 0.15
    area_NK = np.where(target_NK, rng.choice([500.0, 5000.0, 50000.0], (NUM, K)), 0).astype(np.float32)
    flag_NK = np.where(target_NK, rng.integers(0, 2, (NUM, K)), -1).astype(np.int8)
    unknown_NK = np.full((NUM, K), -1, np.int8)
    logit_NK = np.random.default_rng(seed).normal(0, 1, (NUM, K)) + 1.2 * target_NK - 0.6
    return Predictions(
        keys=tuple(map(str, range(NUM))),
        logit_NK=logit_NK.astype(np.float32),
        target_NK=target_NK.astype(np.uint8),
        ignore_NK=ignore_NK,
        classes=("ant", "bee", "cat", "dog"),
        objects=LargestObjects.of_arrays(
            area_NK=area_NK, truncated_NK=flag_NK, occluded_NK=unknown_NK, crowd_NK=unknown_NK
        ),
    )


def run(*seeds: int) -> RunReport:
    """Whole images by the first seed, masked ones by the second."""
    return RunReport(
        name=f"run {seeds[0]}",
        clean=predictions(seeds[0]),
        masked={"high": predictions(seeds[1])},
        config=CONFIG,
        history=(),
    )


class Counted:
    """What a model says of each photograph, counted pair by pair."""

    def __init__(self, one: Predictions):
        self.right, self.wrong, self.missed, self.loss = ([0.0] * NUM for _ in range(4))
        for n in range(NUM):
            kept = [k for k in range(K) if not one.ignore_NK[n, k]]
            for k in kept:
                logit, is_there = float(one.logit_NK[n, k]), bool(one.target_NK[n, k])
                is_named = logit >= 0
                self.right[n] += is_named and is_there
                self.wrong[n] += is_named and not is_there
                self.missed[n] += is_there and not is_named
                self.loss[n] += math.log1p(math.exp(-logit if is_there else logit)) / len(kept)
        self.net = [right - wrong for right, wrong in zip(self.right, self.wrong)]
        self.mistakes = [wrong + missed for wrong, missed in zip(self.wrong, self.missed)]


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_counted_of_a_photograph(seed: int):
    one, counted = predictions(seed), Counted(predictions(seed))
    assert net_named(one).tolist() == counted.net and mistakes(one).tolist() == counted.mistakes
    assert cross_entropy(one) == pytest.approx(counted.loss, rel=1e-5)
    assert cross_entropy(one, [7, 3, 7]) == pytest.approx([counted.loss[n] for n in (7, 3, 7)], rel=1e-5)
    right = [not wrong and bool(right) for wrong, right in zip(counted.mistakes, counted.right)]
    assert wholly_right(one).tolist() == right and 0 < sum(right) < sum(not wrong for wrong in counted.mistakes)


@pytest.mark.parametrize("num", [1, 4, 5, 100])
@pytest.mark.parametrize("condition", ["whole", "high"])
def test_of_two_models_the_largest_gains_and_losses_come_first(condition: str, num: int):
    runs = [run(1, 2), run(4, 5), run(3, 6)]
    first, last = (Counted(one.conditions[condition]) for one in (runs[0], runs[-1]))
    gain = [last.net[n] - first.net[n] for n in range(NUM)]
    loss = [last.loss[n] - first.loss[n] for n in range(NUM)]
    better = [n for n in range(NUM) if (gain[n] > 0 or (gain[n] == 0 and loss[n] < 0)) and last.net[n] >= 0]
    worse = [n for n in range(NUM) if (gain[n] < 0 or (gain[n] == 0 and loss[n] > 0)) and first.net[n] >= 0]
    better.sort(key=lambda n: (-gain[n], loss[n]))
    worse.sort(key=lambda n: (gain[n], -loss[n]))
    num_all = min(num, NUM)
    wins, failures = choose(runs, condition, num)
    assert wins == better[: -(-num_all // 2)]
    assert failures == [n for n in worse if n not in wins][: num_all // 2]


@pytest.mark.parametrize("num", [1, 6, 7, 100])
def test_of_one_model_the_best_have_no_mistake_and_the_worst_have_one(num: int):
    one = run(1, 2)
    counted = Counted(one.conditions["high"])
    is_right = [not counted.mistakes[n] and counted.right[n] > 0 for n in range(NUM)]
    best = sorted(
        (n for n in range(NUM) if counted.net[n] > 0), key=lambda n: (not is_right[n], -counted.net[n], counted.loss[n])
    )
    worst = sorted(
        (n for n in range(NUM) if counted.mistakes[n]), key=lambda n: (is_right[n], counted.net[n], -counted.loss[n])
    )
    wins, failures = choose([one], "high", num)
    num_all = min(num, NUM)
    assert wins == best[: -(-num_all // 2)]
    assert failures == [n for n in worst if n not in wins][: num_all // 2]


@pytest.mark.parametrize("several", [False, True])
def test_objects_that_one_names_are_shown_once_by_their_kind(several: bool):
    runs = [run(1, 2), run(3, 4)] if several else [run(1, 2)]
    first, last = runs[0].clean, runs[-1].clean
    found = choose_seen(runs, 3)
    shown = [row for choice in found for row in choice.rows]
    assert len(set(shown)) == len(shown) and len(found) == 6
    area_NK, truncated_NK = first.objects.dense("area"), first.objects.dense("truncated")  # type: ignore[union-attr]
    for choice in found:
        for n in choice.rows:
            assert choice.shows_NK[n].any()
        for n, k in np.argwhere(choice.shows_NK):
            assert first.target_NK[n, k] and not first.ignore_NK[n, k]
            named, before = last.logit_NK[n, k] >= 0, first.logit_NK[n, k] >= 0
            is_win = choice.kind == "win"
            assert named is np.bool_(is_win) and (not several or before is np.bool_(not is_win))
            if choice.title.startswith("Small"):
                assert 0 < area_NK[n, k] < 32**2
            if choice.title.startswith("Covered"):
                assert truncated_NK[n, k] == 1
    names = [one.name for one in runs]
    if several:
        assert [choice.title.split("“")[1].rstrip("” names") for choice in found] == [names[1], names[0]] * 3
    else:
        assert [choice.title.rsplit(" ", 1)[1] for choice in found] == ["names", "misses"] * 3


def test_an_ignored_class_is_listed_only_among_the_first():
    """Four logits: the third is ignored and among the first; of the ignored ones behind, none is listed."""
    one = Predictions(
        keys=("x",),
        logit_NK=np.float32([[0.5, 2.0, 1.0, -3.0, 0.25, -1.0]]),
        target_NK=np.uint8([[1, 1, 0, 1, 1, 0]]),
        ignore_NK=np.array([[False, False, True, True, True, False]]),
        classes=tuple("abcdef"),
    )
    found = [(name, verdict) for name, _, verdict in answer(one, 0)]
    assert TOP == 3 and found == [("b", "right"), ("c", "not counted"), ("a", "right")]
    assert [name for name, *_ in answer(one, 0, top=5)] == ["b", "c", "a", "e", "f"]


def test_how_many_are_right_is_said_of_the_condition_that_is_shown():
    one = run(1, 2)
    wins = ["a win"] * 50
    for condition in ("whole", "high"):
        number = int(wholly_right(one.conditions[condition]).sum())
        num_right = int((mistakes(one.conditions[condition]) == 0).sum())
        said = _how_many_right([one], condition, wins)  # type: ignore[arg-type]
        assert f"“run 1” gets {num_right} wholly right" in said and f"{num_right - number} show none" in said
    assert len({int(wholly_right(part).sum()) for part in one.conditions.values()}) == 2
