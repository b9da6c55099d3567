"""Train, val and test of photographs that come without splits."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from msldata.build.divide import FEWEST, PARTS, _sides, assign
from msldata.contract.format import read_index
from msldata.contract.judging import too_few_to_judge
from msldata.contract.manifest import read_manifest
from msldata.storage import LocalStorage
from msltrain.__main__ import app
from tests.tinydata import jpeg
from tests.unit.test_alike import picture


def build(folder: Path, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["build-shards", str(folder), "--out", str(folder.parent / "out"), *arguments])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def keys(place: Path) -> list[str]:
    storage = LocalStorage(place)
    manifest = read_manifest(storage)
    return [key for shard in manifest.shards for key in read_index(storage, manifest, shard).column("key").to_pylist()]


def photographs(folder: Path, number: int, suffix: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    rows = ["image,labels"]
    for i in range(number):
        (folder / f"{i}{suffix}.jpg").write_bytes(jpeg(i))
        rows.append(f"{i}{suffix}.jpg,{'cat' if i % 2 else 'dog'}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


def test_content_decides_and_not_names(tmp_path: Path):
    said = build(photographs(tmp_path / "photos", 60), "--name", "mine", "--workers", "1")
    parts = {part: keys(tmp_path / "out/mine" / part) for part in PARTS}
    assert sorted(key for part in parts.values() for key in part) == sorted(map(str, range(60)))
    assert f"{len(parts['train'])} for train, {len(parts['val'])} for val, {len(parts['test'])} for test" in said
    assert "next: msl train" in said and "2 classes: " in said and "built before" not in said
    assert build(tmp_path / "photos", "--name", "mine", "--workers", "1").count("built before, of the same files") == 3
    build(photographs(tmp_path / "renamed", 60, "b"), "--name", "renamed", "--workers", "1")
    for part in PARTS:
        assert sorted(keys(tmp_path / "out/renamed" / part)) == sorted(f"{key}b" for key in parts[part])


def test_a_script_that_names_its_source_gets_it_whole_unless_it_asks_for_parts(tmp_path: Path):
    folder = photographs(tmp_path / "photos", 30)
    for name, asked, expected in (("whole", (), ["all"]), ("part", ("--split", "test"), ["test"])):
        arguments = ["build-shards", "--dataset", "table", "--source", str(folder / "labels.csv"), "--name", name]
        result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out"), *asked, "--workers", "1"])
        assert result.exit_code == 0, result.output
        assert [part.name for part in (tmp_path / "out" / name).iterdir()] == expected


def test_one_part_is_built_as_its_manifest_says_and_all_stays_whole(tmp_path: Path):
    folder = photographs(tmp_path / "photos", 30)
    build(folder, "--name", "mine", "--workers", "1")
    manifest = read_manifest(LocalStorage(tmp_path / "out/mine/val"))
    command = manifest.provenance["command"]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "again")])
    assert result.exit_code == 0, result.output
    again = read_manifest(LocalStorage(tmp_path / "again/mine/val"))
    assert again.fingerprint == manifest.fingerprint and not (tmp_path / "again/mine/train").exists()
    build(folder, "--name", "whole", "--split", "all", "--workers", "1")
    assert len(keys(tmp_path / "out/whole/all")) == 30


def test_labels_that_cannot_be_read_stop_every_part_that_is_built_alone(tmp_path: Path):
    for folder in ("images", "labels"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
    (tmp_path / "photos/classes.txt").write_text("cat\ndog\n")
    for i in range(30):
        (tmp_path / f"photos/images/{i}.jpg").write_bytes(jpeg(i))
        (tmp_path / f"photos/labels/{i}.txt").write_text(f"{i % 2} 0.5 0.5 0.2 0.2\n" if i != 7 else "nonsense\n")
    for parts in (["val"], ["test", "val"], []):
        chosen = [word for part in parts for word in ("--split", part)]
        command = ["build-shards", str(tmp_path / "photos"), "--name", "mine", "--out", str(tmp_path / "out"), *chosen]
        result = CliRunner().invoke(app, command, env={"COLUMNS": "500"})
        assert result.exit_code == 2 and "7.txt: 'nonsense' is not a class index" in result.output, parts
        skipped = CliRunner().invoke(app, [*command, "--on-error", "skip", "--overwrite"])
        assert skipped.exit_code == 0 and "1 quarantined" in skipped.output, skipped.output


def test_a_handful_stays_together(tmp_path: Path):
    said = build(photographs(tmp_path / "photos", FEWEST - 1), "--name", "mine", "--workers", "1")
    assert f"fewer than {FEWEST} photographs" in said and (tmp_path / "out/mine/all/dataset.json").is_file()


@pytest.mark.parametrize("seed", range(20))
def test_every_class_that_can_is_in_every_part_and_copies_stay_together(seed: int):
    chance = random.Random(seed)
    positives = [[0], [1], [1], [2], [2], [2]] + [[3 + chance.randrange(2)] for _ in range(60)]
    numbers = [chance.random() for _ in positives]
    side = assign([*positives, [4]], [*numbers, numbers[0]])
    assert side[-1] == side[0] == "train"  # class 0 has one photograph: training gets it, and its copy
    shown = {part: {k for one, s in zip(positives, side) for k in one if s == part} for part in PARTS}
    assert shown["train"] == {0, 1, 2, 3, 4}
    assert {2, 3, 4} <= shown["val"] & shown["test"]


def test_many_rare_classes_take_half_as_much_again_and_are_counted():
    chance = random.Random(1)
    positives = [[int(400 * chance.random() ** 2)] for _ in range(1200)]
    side = assign(positives, [chance.random() for _ in positives])
    for part in ("val", "test"):
        assert 0.15 * 1200 < side.count(part) <= 0.225 * 1200
    assert {k for one, s in zip(positives, side) for k in one if s == "train"} == {k for one in positives for k in one}


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_holds_among_few(seed: int):
    chance = random.Random(seed)
    side = assign([[n % 3] for n in range(24)], [chance.random() for _ in range(24)])
    assert max(side.count("val"), side.count("test")) <= 0.225 * 24


@pytest.mark.parametrize("seed", range(5))
def test_copies_count_each_for_the_bound(seed: int):
    chance = random.Random(seed)
    numbers = [number for number in (chance.random() for _ in range(120)) for _ in range(3)]
    side = assign([[n // 6] for n in range(360)], numbers)
    assert max(side.count("val"), side.count("test")) <= 0.225 * 360


def test_series_stay_whole_only_where_val_and_test_get_half_their_share():
    """A long series may fill one of the two and leave nothing to the other."""
    whole = 0
    for seed in range(40):
        chance = random.Random(seed)
        looks = [look for look in [chance.getrandbits(64) for _ in range(12)] for _ in range(chance.choice([1, 2, 30]))]
        side, kept = _sides([[0]] * len(looks), [chance.random() for _ in looks], looks, [""] * len(looks))
        fewest = min(side.count("val"), side.count("test"))
        assert fewest >= 0.075 * len(looks), seed
        if kept:
            whole += 1
            assert all(len({one for one, look in zip(side, looks) if look == scene}) == 1 for scene in set(looks))
    assert 0 < whole < 40


def scenes(folder: Path, rows: Sequence[tuple[int, int, str]], head: str = "image,labels,site") -> Path:
    """A photograph per row: of a scene, a frame of it, at a site."""
    folder.mkdir(exist_ok=True)
    lines = [head]
    for scene, frame, site in rows:
        (folder / f"{scene}_{frame}.jpg").write_bytes(picture(scene, shift=4 * frame))
        lines.append(f"{scene}_{frame}.jpg,{'cat' if scene % 2 else 'dog'},{site}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


def parts_of(out: Path) -> dict[str, list[str]]:
    return {key: part for part in PARTS for key in keys(out / part)}


def test_frames_of_one_scene_stay_together_unasked(tmp_path: Path):
    folder = scenes(tmp_path / "photos", [(scene, frame, "") for scene in range(20) for frame in range(3)])
    said = build(folder, "--name", "mine", "--workers", "1")
    assert "no splits, so photographs are divided, by their content: " in said
    assert "for test; kept in one part: 60 that look nearly like another one; --split all leaves them in one" in said
    parts = parts_of(tmp_path / "out/mine")
    assert len(parts) == 60 and set(parts.values()) == set(PARTS)
    assert all(parts[f"{scene}_{frame}"] == parts[f"{scene}_0"] for scene in range(20) for frame in range(3))
    divided = read_manifest(tmp_path / "out/mine/train").provenance["divided"]
    assert divided.endswith("val and test; kept together: 60 that look nearly like another one")


def test_scenes_so_alike_that_nothing_would_be_left_to_judge_by_are_divided(tmp_path: Path):
    folder = scenes(tmp_path / "photos", [(0, frame, "") for frame in range(30)])
    for frame in range(30):
        (folder / f"0_{frame}.jpg").write_bytes(picture(0, quality=60 + frame))
    said = build(folder, "--name", "mine", "--workers", "1")
    assert "divided, by their content: " in said and "kept in one part" not in said
    assert set(parts_of(tmp_path / "out/mine").values()) == set(PARTS)


@pytest.mark.parametrize("group", ["site", "folder"])
def test_a_group_is_never_parted(tmp_path: Path, group: str):
    sites = ["Nord", "Süd", "Ost", "West", "Tal", "Berg", "See"]
    folder = tmp_path / "photos"
    scenes(folder, [(scene, 0, sites[scene % 7]) for scene in range(56)])
    if group == "folder":
        for scene in range(56):
            (folder / sites[scene % 7]).mkdir(exist_ok=True)
            (folder / f"{scene}_0.jpg").rename(folder / sites[scene % 7] / f"{scene}_0.jpg")
    said = build(folder / "labels.csv", "--name", "mine", "--workers", "1", "--group", group)
    assert "40 for train, 8 for val, 8 for test; kept in one part: those of each of 7 groups;" in said
    parts = parts_of(tmp_path / "photos/out/mine")
    assert len({(scene % 7, parts[f"{scene}_0"]) for scene in range(56)}) == 7


def test_photographs_of_no_group_are_divided_each_by_itself(tmp_path: Path):
    rows = [(scene, 0, "Nord" if scene < 10 else "") for scene in range(60)]
    said = build(scenes(tmp_path / "photos", rows), "--name", "mine", "--workers", "1", "--group", "site")
    assert "kept in one part: those of one group (50 are of none);" in said
    parts = parts_of(tmp_path / "out/mine")
    assert len({parts[f"{scene}_0"] for scene in range(10)}) == 1
    assert {parts[f"{scene}_0"] for scene in range(10, 60)} == set(PARTS)


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([(scene, 0, "NS"[scene % 2]) for scene in range(30)], (), "2 groups of photographs cannot be divided so that"),
        ([(scene, 0, "N") for scene in range(30)], ("--split", "all"), "is not divided, so --group says nothing"),
        ([(scene, 0, "N") for scene in range(30)], ("--group", "sote"), "no column 'sote', as --group says"),
    ],
)
def test_groups_that_cannot_be_kept_are_refused(tmp_path: Path, rows, arguments: tuple[str, ...], message: str):
    folder = scenes(tmp_path / "photos", rows)
    words = ["build-shards", str(folder), "--out", str(tmp_path / "out"), "--group", "site", *arguments]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output
    assert not (tmp_path / "out").exists()


def test_whole_sets_fill_test_and_val_but_not_beyond():
    sizes = [40, 9, 9, 12, 10, 20]
    numbers = [n / 10 for n, size in enumerate(sizes) for _ in range(size)]
    side = assign([[0]] * 100, numbers, whole_sets=True)
    of_set = dict(zip(numbers, side))
    # Val would have 22 with the fifth, and has 12 without it, which is nearer to 15.
    assert [of_set[n / 10] for n in range(6)] == ["train", "test", "test", "val", "train", "train"]


def test_classes_that_no_part_but_training_shows_are_said(tmp_path: Path):
    folder = photographs(tmp_path / "photos", 40)
    rows = (folder / "labels.csv").read_text().splitlines()
    (folder / "labels.csv").write_text("\n".join([rows[0], "0.jpg,owl", *rows[2:]]))
    said = build(folder, "--name", "mine", "--workers", "1")
    few = (
        r"val has one or none of [^;]*'owl' \(\d of 3 classes\); test has one or none of [^;]*'owl' \(\d of 3 classes\)"
    )
    assert re.search(f"too few photographs to judge some classes by: {few}", said), said


def test_a_class_that_a_single_photograph_shows_cannot_be_judged():
    """None where two do; names are bounded."""
    assert too_few_to_judge({"val": {"cat": 2, "owl": 1, "dog": 0}, "test": {"cat": 9}}) == (
        "too few photographs to judge some classes by: val has one or none of 'owl', 'dog' (2 of 3 classes)"
    )
    assert too_few_to_judge({"test": {"cat": 2}}) == ""
    many = too_few_to_judge({"val": dict.fromkeys("012345678", 0), "test": {"train": 1}})
    assert "val has one or none of '0', '1', '2', '3', '4', '5' and 3 more (9 of 9 classes); test has " in many
    assert many.endswith("test has one or none of 'train' (1 of 1 class)")  # which is a class, and no part
