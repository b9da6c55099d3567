"""What other objects cover: boxes against hand-worked shares and the reef's truth, segments against drawn ones."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from msldata.contract.format import OBJECT_TYPE, OCCLUSION, OCCLUSION_TYPE, check_rows
from msldata.contract.manifest import IMAGES, FormatError, ShardInfo
from msldata.sources.kinds import open_source
from msldata.sources.segments import compact_segment, occlusion_of
from msldata.sources.source import SourceOptions
from msldata.synthetic.scenes import draw_scene
from msltrain.__main__ import app
from msltrain.evaluation.sweep import AllSamples
from msltrain.measures.covered import covered_shares
from msltrain.measures.predictions import Predictions, largest_objects, read_predictions, write_predictions
from msltrain.measures.strata import COVERED_BINS, compute_strata, strata_note
from msltrain.stream.samples.shardset import open_shard_set
from tests.tinydata import jpeg, make_coco


def thing(box, class_index=0, *, crowd=False):
    return {
        "class_index": class_index,
        "box": box,
        "area": box[2] * box[3],
        "difficult": False,
        "truncated": None,
        "occluded": None,
        "crowd": crowd,
    }


def column(*images):
    return pa.array(images, pa.list_(OBJECT_TYPE))


def test_the_smaller_box_covers_the_larger_and_overlaps_count_once():
    whole = thing([0, 0, 10, 10])
    images = [
        ([whole], [0]),
        ([whole, thing([0, 0, 5, 10])], [0.5, 0]),
        ([thing([0, 0, 5, 10]), whole, thing([2, 0, 5, 10])], [0, 0.7, 0]),  # 7 of 10 columns; equal ones cover nothing
        ([], []),
        ([whole, thing([0, 0, 9, 9], crowd=True), thing([5, 0, 10, 10])], [0, 0, 0]),  # a crowd, and an equal area
        ([whole, thing([10, 0, 5, 5])], [0, 0]),  # they touch
        ([thing([0, 0, 2, 2]), thing([0, 0, 4, 4]), whole], [0, 0.25, 0.16]),  # one upon the other
    ]
    share_M = covered_shares(column(*(things for things, _ in images)))
    assert share_M.dtype == np.float32
    assert share_M == pytest.approx([share for _, shares in images for share in shares])


def test_of_a_class_the_largest_object_counts_and_a_crowd_is_left_out():
    image = [thing([0, 0, 10, 10]), thing([0, 0, 5, 10], 1), thing([0, 0, 2, 2]), thing([0, 0, 30, 30], 2, crowd=True)]
    objects = largest_objects(column(image, []), 3, np.array([900, 900]))
    assert objects is not None and objects.dense("covered") is not None and objects.dense("separated") is None
    assert objects.dense("covered") == pytest.approx(np.array([[0.5, 0.08, -1], [-1, -1, -1]]))


def predictions_of(objects, num_samples):
    logit_NK = np.arange(num_samples, 0, -1, dtype=np.float32)[:, None] - 3
    return Predictions(
        keys=tuple(map(str, range(num_samples))),
        logit_NK=logit_NK,
        target_NK=np.ones((num_samples, 1), np.uint8),
        ignore_NK=np.zeros((num_samples, 1), bool),
        classes=("thing",),
        objects=objects,
    )


def test_bins_and_separated_objects_are_strata_and_survive_the_file(tmp_path):
    told = [[(0.0, False)], [(0.25, True)], [(0.5, False)], [(0.51, True)], [(None, None)]]
    occlusion = pa.array(
        [[{"covered": covered, "separated": separated} for covered, separated in image] for image in told],
        pa.list_(OCCLUSION_TYPE),
    )
    objects = largest_objects(column(*[[thing([0, 0, 9, 9])]] * 5), 1, np.full(5, 100), occlusion)
    write_predictions(predictions_of(objects, 5), tmp_path / "one.parquet")
    predictions = read_predictions(tmp_path / "one.parquet")
    rows = {row.name: row for row in compute_strata(predictions)}
    assert {name: rows[name].num_positive for name, *_ in COVERED_BINS} == dict.fromkeys(
        (b[0] for b in COVERED_BINS), 1
    )
    assert (rows["separated"].num_positive, rows["not separated"].num_positive) == (2, 2)
    assert rows["covered to 25 %"].CR == 1 and rows["covered over 50 %"].CR == 0
    assert "segments" in strata_note(predictions)
    boxes = largest_objects(column([thing([0, 0, 9, 9]), thing([0, 0, 3, 3])]), 1, np.array([100]))
    assert "upper estimate" in strata_note(predictions_of(boxes, 1))


def test_where_no_box_covers_another_there_is_nothing_to_report():
    objects = largest_objects(column([thing([0, 0, 9, 9])]), 1, np.array([100]))
    assert not any("covered" in row.name for row in compute_strata(predictions_of(objects, 1)))


def test_the_rule_against_what_the_reef_knows():
    """The reef draws back to front at random places, so size says nothing of depth there: the hardest case."""
    images, truth, alone = [], [], []
    for number in range(250):
        _, creatures = draw_scene(96, np.random.default_rng([0, number]))
        boxes = [(left, top, right - left, bottom - top) for left, top, right, bottom in (c.box for c in creatures)]
        images.append([thing(list(map(float, box))) for box in boxes])
        truth += [creature.covered_fraction for creature in creatures]
        for x, y, w, h in boxes:
            meets = [x < u + p and u < x + w and y < v + q and v < y + h for u, v, p, q in boxes]
            alone.append(sum(meets) == 1)
    truth_M, share_M = np.array(truth), covered_shares(column(*images))
    assert truth_M[alone].max() < 0.01 and (share_M[alone] == 0).all() and sum(alone) > 50
    much, rest = truth_M[share_M > 0.5].mean(), truth_M[share_M <= 0.5].mean()
    assert much > 1.5 * rest, (much, rest)


def test_the_rule_against_the_segments_of_real_photographs(sample):
    """The more of a box smaller ones take, the more of the outline others' segments take; with larger ones: 0.11."""
    images, told = [], []
    for split in ("train", "val"):
        for record in open_source(
            "coco2014", sample / "coco2014", split, options=SourceOptions(segments=True)
        ).records():
            images.append([item._asdict() for item in record.objects])
            told += [np.nan if one.covered is None else one.covered for one in record.occlusion]
    told_M, share_M = np.array(told), covered_shares(column(*images))
    means = [np.nanmean(told_M[(share_M > low) & (share_M <= high)]) for _, low, high in COVERED_BINS]
    assert means == sorted(means) and means[-1] > 0.15 > 3 * means[0], means


def square(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def annotation(number, segment, category, box, image=1):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": segment,
    }


def test_what_segments_say():
    # A bar of 40 × 10 that a post of 8 × 30 cuts in two, a square that touches nothing, one without a segment.
    bar = annotation(1, [square(10, 20, 16, 10), square(34, 20, 16, 10)], 1, [10, 20, 40, 10])
    post = annotation(2, [square(26, 10, 8, 30)], 2, [26, 10, 8, 30])
    lone, none = annotation(3, [square(70, 70, 9, 9)], 1, [70, 70, 9, 9]), annotation(4, [], 1, [0, 0, 5, 5])
    crowd = {**annotation(5, {"counts": [0, 10_000], "size": [100, 100]}, 1, [0, 0, 100, 100]), "iscrowd": 1}
    items = [{**one, "segmentation": compact_segment(one["segmentation"])} for one in (bar, post, lone, none, crowd)]
    found = occlusion_of(items, 100, 100)
    assert found[0].covered == pytest.approx(8 / 40, abs=0.01) and found[0].separated is True
    assert found[1] == (0, False) and found[2] == (0, False)
    assert found[3] == found[4] == (None, None)


def test_each_object_keeps_its_own_where_another_has_no_box(tmp_path):
    items = [
        annotation(1, [square(10, 20, 16, 10), square(34, 20, 16, 10)], 1, [10, 20, 40, 10]),
        annotation(2, [square(26, 10, 8, 30)], 1, [26, 10, 8, 30]),
    ]
    image, unboxed = {"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}, {**items[1], "id": 0, "bbox": []}
    raw = make_coco(tmp_path, [image], [unboxed, *items], [{"id": 1, "name": "bar"}])
    (record,) = open_source("coco2014", raw, "train", options=SourceOptions(segments=True)).records()
    assert [item.box[0] for item in record.objects] == [10, 26]
    assert record.occlusion is not None and [one.separated for one in record.occlusion] == [True, False]


def test_the_sides_of_a_photograph_are_not_exchanged(tmp_path):
    """Further to the right than the photograph is high."""
    items = [
        annotation(1, [square(60, 20, 16, 10), square(84, 20, 16, 10)], 1, [60, 20, 40, 10]),
        annotation(2, [square(76, 10, 8, 30)], 1, [76, 10, 8, 30]),
    ]
    image = {"id": 1, "file_name": "a.jpg", "width": 120, "height": 40}
    raw = make_coco(tmp_path, [image], items, [{"id": 1, "name": "bar"}])
    (record,) = open_source("coco2014", raw, "train", options=SourceOptions(segments=True)).records()
    assert record.occlusion is not None and record.occlusion[0].covered == pytest.approx(8 / 40, abs=0.01)


def test_a_build_notes_it_in_the_index_alone(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}]
    objects = [
        annotation(1, [square(4, 20, 16, 10), square(28, 20, 16, 10)], 1, [4, 20, 40, 10]),
        annotation(2, [square(20, 10, 8, 30)], 2, [20, 10, 8, 30]),
    ]
    raw = make_coco(tmp_path / "raw", images, objects, [{"id": 1, "name": "bar"}, {"id": 2, "name": "post"}])
    (raw / "train2014" / "a.jpg").write_bytes(jpeg(1, 64, 48))
    found = {}
    for name, words in {"plain": [], "told": ["--segments"]}.items():
        arguments = ["build-shards", "--dataset", "coco2014", "--source", raw, "--split", "train", "--workers", 1]
        result = CliRunner().invoke(app, [str(word) for word in (*arguments, "--out", tmp_path / name, *words)])
        assert result.exit_code == 0, result.output
        folder = tmp_path / name / "coco2014" / "train"
        found[name] = next(folder.glob("*.tar")).read_bytes(), pq.read_table(next(folder.glob("*.parquet")))
        assert CliRunner().invoke(app, ["verify", str(folder)]).exit_code == 0
    assert found["plain"][0] == found["told"][0]
    told = found["told"][1]
    assert told.drop_columns("occlusion").equals(found["plain"][1])
    assert told["occlusion"].to_pylist()[0][0] == {"covered": pytest.approx(0.2, abs=0.01), "separated": True}
    manifest = json.loads((folder / "dataset.json").read_text())
    assert manifest["provenance"]["occlusion"] == "segments"
    samples = AllSamples(open_shard_set(folder))
    assert samples.occlusion() is not None
    assert AllSamples(open_shard_set(tmp_path / "plain" / "coco2014" / "train")).occlusion() is None
    objects_ = largest_objects(samples.objects(), 2, np.array([64 * 48]), samples.occlusion())
    assert objects_ is not None and objects_.dense("separated") is not None and objects_.dense("covered") is not None
    assert objects_.dense("separated").tolist() == [[1, 0]] and objects_.dense("covered")[0] == pytest.approx(
        [0.2, 0], abs=0.01
    )


@pytest.mark.parametrize(
    ("occlusion", "message"),
    [
        ([[]], "occlusion speaks of other objects than there are"),
        ([[{"covered": 1.5, "separated": False}]], "covered shares from 1.5 to 1.5"),
    ],
)
def test_a_column_that_does_not_fit_is_refused(occlusion, message):
    table = pa.table({"objects": column([thing([0, 0, 9, 9])]), "occlusion": pa.array(occlusion, OCCLUSION.type)})
    with pytest.raises(FormatError, match=message):
        check_rows(table, IMAGES, 1, ShardInfo(name="a.tar", num_samples=1, num_bytes=1, sha256="0" * 64), "a.parquet")


def test_segments_of_what_has_none(tmp_path):
    words = ["build-shards", "--dataset", "voc2007", "--source", str(tmp_path), "--segments", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "coco2014, coco" in result.output
