"""A report on three models whose numbers all differ: each stands where its model, class and condition are named."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from msltrain.config import TrainConfig, override
from msltrain.measures.bootstrap import mean_ap_difference
from msltrain.measures.metrics import SUMMARY, compute_metrics
from msltrain.measures.predictions import LargestObjects, Origin, Predictions
from msltrain.measures.strata import compute_strata
from msltrain.pages.tables import Cell, Table
from msltrain.pages.text import percent, points
from msltrain.report import numbers as numbers_module
from msltrain.report.cooccurrence import leaning_pairs
from msltrain.report.numbers import Numbers, compute_numbers
from msltrain.report.open_runs import RunReport
from msltrain.report.tables import all_classes, class_rows, measures_table, pairs_table, settings_table, strata_table
from msltrain.stream.config import StreamConfig

NUM, CLASSES = 90, ("ant", "bee", "cat", "dog", "elk")
NAMES = ("One", "Two", "Three")
CONFIGS = (
    TrainConfig(stream=StreamConfig(image_size=32)),
    override(TrainConfig(stream=StreamConfig(image_size=32)), ["optim.lr=0.25"]),
    TrainConfig(stream=StreamConfig(image_size=32)),
)


def predictions(seed: int, hole_fraction: float) -> Predictions:
    """Labels that come together; what a model sees hangs on the companions as well. Logits are whole tenths."""
    rng = np.random.default_rng(7)
    target_NK = rng.random((NUM, 5)) < (0.2, 0.5, 0.15, 0.6, 0.3)
    target_NK[:, 1] |= target_NK[:, 3] & (rng.random(NUM) < 0.5)
    area_NK = np.where(target_NK, rng.choice([400.0, 4000.0, 40000.0], (NUM, 5)), 0).astype(np.float32)
    unknown_NK = np.full((NUM, 5), -1, np.int8)
    ignore_NK = rng.random((NUM, 5)) < 0.1
    rng = np.random.default_rng([seed, round(100 * hole_fraction)])
    lean_KK = rng.normal(0, 0.8, (5, 5))
    logit_NK = rng.normal(-0.3, 1, (NUM, 5)) + (1.5 - hole_fraction) * target_NK + target_NK @ lean_KK
    return Predictions(
        keys=tuple(map(str, range(NUM))),
        logit_NK=np.round(logit_NK, 1).astype(np.float32),
        target_NK=target_NK.astype(np.uint8),
        ignore_NK=ignore_NK,
        classes=CLASSES,
        objects=LargestObjects.of_arrays(
            area_NK=area_NK, truncated_NK=unknown_NK, occluded_NK=unknown_NK, crowd_NK=unknown_NK
        ),
        origin=Origin(hole_fraction=hole_fraction),
    )


RUNS = tuple(
    RunReport(
        name=name,
        clean=predictions(number, 0.0),
        masked={"high": predictions(number, 0.5)},
        config=CONFIGS[number],
        history=(),
    )
    for number, name in enumerate(NAMES)
)
ENDS = ("whole", "high")


@pytest.fixture(scope="module")
def numbers() -> Numbers:
    """Of the five classes the three in most images are looked at in pairs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbers_module, "MOST_CLASSES", 4)
        patch.setattr(numbers_module, "MOST_TOGETHER", 3)
        return compute_numbers(RUNS)


def texts(cells: object) -> list[str]:
    return [cell.text if isinstance(cell, Cell) else cell for cell in cells]  # type: ignore[attr-defined]


def rows_of(table: Table | None) -> list[list[tuple[str, list[str]]]]:
    assert table is not None
    return [[(row.name, texts(row.cells)) for row in group.rows] for group in table.groups]


def of(number: int, end: str) -> Predictions:
    return RUNS[number].conditions[end]


def test_measures_and_differences_are_those_of_their_model(numbers: Numbers):
    for group, end in zip(rows_of(measures_table(numbers)), ENDS, strict=True):
        values = [compute_metrics(of(number, end)).summary() for number in range(3)]
        expected = [(name, [percent(one[key]) for key in SUMMARY]) for name, one in zip(NAMES, values)]
        expected += [
            (f"{NAMES[number]} − One", [points(values[number][key] - values[0][key]) for key in SUMMARY])
            for number in (1, 2)
        ]
        assert group == expected
        for number in (1, 2):
            assert numbers.differences[number][end] == mean_ap_difference(of(0, end), of(number, end))


def test_the_best_number_is_the_largest_and_not_the_last_in_the_alphabet(numbers: Numbers):
    """As text 9.5 stands behind 61.2."""
    low = replace(numbers.measured[0]["whole"].metrics, mAP=0.095)
    measured = [dict(one) for one in numbers.measured]
    measured[0]["whole"] = replace(measured[0]["whole"], metrics=low)
    table = measures_table(replace(numbers, measured=tuple(measured)))
    cells = [row.cells[0] for row in table.groups[0].rows[:3]]
    values = [float(cell.text) for cell in cells if isinstance(cell, Cell)]
    assert values[0] == 9.5 and [cell.style == "best" for cell in cells] == [value == max(values) for value in values]  # type: ignore[union-attr]


def test_strata_say_map_before_recall_of_every_model(numbers: Numbers):
    for group, end in zip(rows_of(strata_table(numbers)), ENDS, strict=True):
        of_each = [compute_strata(of(number, end)) for number in range(3)]
        expected = [
            (
                same[0].name,
                [str(same[0].num_positive), *(percent(one.mAP) for one in same), *(percent(one.CR) for one in same)],
            )
            for same in zip(*of_each)
        ]
        assert group == expected and len(expected) == 3


def test_an_empty_stratum_hides_none_behind_it():
    runs = []
    for run in RUNS[:2]:
        objects = run.clean.objects
        assert objects is not None
        one = replace(
            run.clean, objects=replace(objects, area_M=np.where(objects.area_M == 4000, 40000, objects.area_M))
        )
        runs.append(replace(run, clean=one, masked={}))
    [group] = rows_of(strata_table(compute_numbers(runs)))
    assert [name for name, _ in group] == ["small", "large"]


def test_of_each_class_right_and_wrong_names_are_counted(numbers: Numbers):
    for row in class_rows(numbers):
        k = CLASSES.index(row.name)
        for bars, end in zip(row.ends, ENDS, strict=True):
            for number, bar in enumerate(bars):
                one = of(number, end)
                kept_N, target_N = ~one.ignore_NK[:, k], one.target_NK[:, k] > 0
                named_N = (one.logit_NK[:, k] >= 0) & kept_N
                right, wrong = int((named_N & target_N).sum()), int((named_N & ~target_N).sum())
                positive = int((target_N & kept_N).sum())
                assert bar.found == f"{right} of {positive}" + (f" +{wrong}" if wrong else "")
                assert bar.model == NAMES[number] and row.num_images == positive


def test_the_table_of_all_classes_has_its_columns_in_their_order(numbers: Numbers):
    header, *rows = csv.reader(io.StringIO(all_classes(numbers)))
    assert [name.partition(",")[0] for name in header[2:]] == [f"AP {name}" for _ in ENDS for name in NAMES]
    for name, _, *shown in rows:
        k = CLASSES.index(name)
        values = [compute_metrics(of(number, end)).classes[k].average_precision for end in ENDS for number in range(3)]
        assert [float(one) for one in shown] == pytest.approx(values, rel=1e-5)


def test_pairs_are_of_the_hardest_condition_and_of_the_classes_that_are_looked_at(numbers: Numbers):
    count_K = RUNS[0].clean.target_NK.sum(axis=0)
    assert list(numbers.together) == sorted(np.argsort(-count_K.astype(int), kind="stable")[:3].tolist()) != [0, 1, 2]
    [rows] = rows_of(pairs_table(numbers))
    alarms = [one["high"] for one in numbers.false_alarms]
    pairs = leaning_pairs(alarms, 12)
    assert len(rows) == len(pairs) > 1 and any((j, i) in pairs for i, j in pairs)
    for (present, cells), (i, j) in zip(rows, pairs, strict=True):
        first, second = (CLASSES[numbers.together[number]] for number in (i, j))
        assert (present, cells[0]) == (first, second)
        a, b = CLASSES.index(first), CLASSES.index(second)
        one = of(0, "high")
        target_NK = (one.target_NK > 0) & ~one.ignore_NK
        absent_N = (one.target_NK[:, b] == 0) & ~one.ignore_NK[:, b]
        assert cells[1] == str(int((target_NK[:, a] & absent_N).sum()))
        clean_NK = (RUNS[0].clean.target_NK > 0) & ~RUNS[0].clean.ignore_NK
        assert cells[2] == percent((clean_NK[:, a] & clean_NK[:, b]).sum() / clean_NK[:, a].sum())
        rates = []
        for number in range(3):
            seen_N = of(number, "high").logit_NK[:, b] >= 0
            gone_N = (one.target_NK[:, a] == 0) & ~one.ignore_NK[:, a]
            rates += [seen_N[target_NK[:, a] & absent_N].mean(), seen_N[gone_N & absent_N].mean()]
        assert cells[3:] == [percent(rate) for rate in rates]


def test_a_setting_in_which_the_middle_one_differs_is_shown():
    assert rows_of(settings_table(RUNS)) == [[("optim.lr", [str(run.config.optim.lr) for run in RUNS])]]
    assert settings_table(RUNS[::2]) is None


@pytest.mark.parametrize("end", ENDS)
def test_labels_are_found_down_to_where_false_alarms_are_as_many(numbers: Numbers, end: str):
    """By trying every score: the lowest at which no more negatives lie above it than the reference names."""
    reference = of(0, end)
    negative_NK = (reference.target_NK == 0) & ~reference.ignore_NK
    positive_NK = (reference.target_NK == 1) & ~reference.ignore_NK
    allowed = int(((reference.logit_NK >= 0) & negative_NK).sum())
    for number in range(3):
        logit_NK, found = of(number, end).logit_NK, numbers.found[number][end]
        levels = [-np.inf, *np.unique(logit_NK[negative_NK])]
        level = min(one for one in levels if (logit_NK[negative_NK] > one).sum() <= allowed)
        assert found.num_found_alike == (logit_NK[positive_NK] > level).sum()
        assert found.num_found == (logit_NK[positive_NK] >= 0).sum() and found.num_objects == positive_NK.sum()
        assert found.num_false == (logit_NK[negative_NK] >= 0).sum()


def test_classes_come_by_what_the_last_model_gains_behind_the_masks(numbers: Numbers):
    by_class = [[one.average_precision for one in compute_metrics(of(number, "high")).classes] for number in (0, 2)]
    gains = np.subtract(by_class[1], by_class[0])
    assert numbers.class_order() == np.argsort(-gains, kind="stable").tolist()
    alone = compute_numbers(RUNS[2:])
    assert alone.class_order() == np.argsort(-np.array(by_class[1]), kind="stable").tolist()
