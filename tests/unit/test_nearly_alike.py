"""Class names that are one in two spellings, however often each stands there."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from msldata.contract.records import VOC
from msldata.inspect.classnames import alike, nearly_alike, slips
from msltrain.__main__ import app
from tests.tinydata import jpeg

COCO = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign parking_meter "
    "bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee "
    "skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle wine_glass "
    "cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch "
    "potted_plant bed dining_table toilet tv laptop mouse remote keyboard cell_phone microwave oven toaster sink "
    "refrigerator book clock vase scissors teddy_bear hair_drier toothbrush"
).split()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("bsu", "bus"),
        ("car", "cars"),
        ("bus", "buses"),
        ("berry", "berries"),
        ("Rangirlok", "Rangierlok"),
        ("locomotove", "locomotive"),
        ("Wagon 2 lefft", "wagon 2 left"),
    ],
)
def test_what_is_hardly_meant_is_found_at_any_count(one: str, other: str):
    for counts in ({one: 12, other: 10}, {other: 500, one: 499}):
        assert [set(pair) for pair in nearly_alike(counts)] == [{one, other}]


@pytest.mark.parametrize(
    ("one", "other"), [("Vögel", "Voegel"), ("Vögel", "vogel"), ("Bâteau", "Bateau"), ("Smørrebrød", "smoerrebroed")]
)
def test_accents_tell_no_classes_apart(one: str, other: str):
    assert alike((one, "Pferd", other)) == [(one, other)]
    assert not slips({one: 50, other: 1}) and not nearly_alike({one: 50, other: 50}), "it is said once"


@pytest.mark.parametrize(
    "names",
    [
        ("cat", "car"),
        ("boat", "goat"),
        ("wing", "swing"),
        ("beaker", "beaver"),
        ("type A fault", "type B fault"),
        ("wagon 11 left", "wagon 12 left"),
        ("Cat", "cat"),  # `alike` has it
        VOC.classes,
        COCO,
        [name.replace("_", " ") for name in COCO],
    ],
)
def test_names_that_are_meant_are_left_alone(names):
    assert nearly_alike(dict.fromkeys(names, 50)) == []


def test_a_build_says_them_unless_somebody_listed_the_classes(tmp_path: Path):
    rows = ["image,labels"]
    for n in range(22):
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(n))
        rows.append(f"{n}.jpg,{'bsu' if n < 12 else 'bus'}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    (tmp_path / "classes.txt").write_text("bsu\nbus\n")
    command = ["build-shards", str(tmp_path / "labels.csv"), "--split", "all", "--workers", "1"]
    said = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")]).output
    assert "alike, yet two classes: 'bus' and 'bsu' (write them alike if they are one)" in said
    listed = [*command, "--out", str(tmp_path / "listed"), "--classes", str(tmp_path / "classes.txt")]
    assert "yet two classes" not in CliRunner().invoke(app, listed).output
