"""The synthetic dataset: determinism, VOC layout, and labels equal to what was drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msldata.errors import StorageError, UserError
from msldata.sources.kinds import open_source
from msldata.sources.voc import parse_objects
from msldata.synthetic.dataset import OCCLUDED_FROM, annotation_xml, is_difficult, write_synthetic_voc
from msldata.synthetic.scenes import CLASSES, Creature, _account, draw_scene

SIZE = 48
NUM_TRAIN, NUM_TEST = 30, 70  # across the border of two chunks


def write(root: Path, num_workers: int = 1, seed: int = 3) -> Path:
    write_synthetic_voc(
        root, num_train=NUM_TRAIN, num_test=NUM_TEST, image_size=SIZE, seed=seed, num_workers=num_workers
    )
    return root / "VOCdevkit" / "VOC2007"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("synthetic"))


def scene(number: int, seed: int = 3) -> tuple[Image.Image, tuple[Creature, ...]]:
    return draw_scene(SIZE, np.random.default_rng([seed, number]))


def test_a_place_that_cannot_be_written_is_one_clear_message(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="VOCdevkit/VOC2007: not a directory"):
        write_synthetic_voc(tmp_path / "file", num_train=2, num_test=1, image_size=32, seed=0, num_workers=1)


def test_same_bytes_with_one_and_two_workers(dataset: Path, tmp_path: Path):
    assert contents(write(tmp_path, num_workers=2)) == contents(dataset)


def test_an_image_does_not_depend_on_how_many_there_are(dataset: Path, tmp_path: Path):
    write_synthetic_voc(tmp_path, num_train=4, num_test=1, image_size=SIZE, seed=3, num_workers=1)
    few, many = contents(tmp_path / "VOCdevkit" / "VOC2007"), contents(dataset)
    for number in range(1, 6):
        for name in (f"JPEGImages/{number:06d}.jpg", f"Annotations/{number:06d}.xml"):
            assert few[name] == many[name]


def test_another_seed_gives_other_images(dataset: Path, tmp_path: Path):
    assert contents(write(tmp_path, seed=4))["JPEGImages/000001.jpg"] != contents(dataset)["JPEGImages/000001.jpg"]


@pytest.mark.parametrize(("split", "first", "last"), [("trainval", 1, NUM_TRAIN), ("test", NUM_TRAIN + 1, 100)])
def test_voc_source_reads_what_was_drawn(dataset: Path, split: str, first: int, last: int):
    source = open_source("voc2007", dataset, split)
    assert source.labels.classes == CLASSES
    records = list(source.records())
    assert [record.key for record in records] == [f"{number:06d}" for number in range(first, last + 1)]
    for record, number in zip(records, range(first, last + 1), strict=True):
        _, creatures = scene(number)
        clear = {creature.name for creature in creatures if not is_difficult(creature, SIZE)}
        assert set(source.labels.names(record.positives)) == clear
        assert set(source.labels.names(record.ignored)) == {creature.name for creature in creatures} - clear
        assert [item.class_index for item in record.objects] == [CLASSES.index(c.name) for c in creatures]
        for item, creature in zip(record.objects, creatures, strict=True):
            left, top, right, bottom = creature.box
            assert item.box == (left, top, right - left, bottom - top)
            assert 0 <= left < right <= SIZE and 0 <= top < bottom <= SIZE
            assert item.truncated == creature.truncated
            assert item.occluded == (creature.covered_fraction >= OCCLUDED_FROM)


def test_train_and_val_make_trainval(dataset: Path):
    lists = {
        name: (dataset / f"ImageSets/Main/{name}.txt").read_text().split() for name in ("train", "val", "trainval")
    }
    assert lists["train"] + lists["val"] == lists["trainval"]
    assert len(lists["val"]) == 6


def test_images_hold_every_class_every_flag_and_several_objects(dataset: Path):
    objects = [item for record in open_source("voc2007", dataset, "test").records() for item in record.objects]
    assert {item.class_index for item in objects} == set(range(len(CLASSES)))
    assert len(objects) > 3 * NUM_TEST
    for flag in ("truncated", "occluded", "difficult"):
        share = np.mean([getattr(item, flag) for item in objects])
        assert 0 < share < 0.6, f"{flag}: {share}"


def test_jpegs_are_rgb_of_the_size_asked_for(dataset: Path):
    with Image.open(dataset / "JPEGImages" / "000001.jpg") as image:
        assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")
        drawn, _ = scene(1)
        difference = np.abs(np.asarray(image, dtype=np.int16) - np.asarray(drawn, dtype=np.int16))
        assert difference.mean() < 6


def test_visible_pixels_are_counted():
    # A 8x8 painted map (4x4 finished pixels): object 1 keeps two thirds of its 24 pixels, object 2 is gone.
    owner = np.zeros((8, 8), np.uint8)
    owner[2:6, 0:4] = 1
    owner[2:6, 4:8] = 3
    first, third = _account(["crab", "fish", "shell"], owner, [32, 10, 16], [24, 10, 16])
    assert (first.name, first.box, first.visible_area) == ("crab", (0, 1, 2, 3), 4.0)
    assert first.visible_fraction == 16 / 32
    assert first.covered_fraction == pytest.approx(1 - 16 / 24)
    assert first.truncated
    assert (third.name, third.box, third.truncated, third.covered_fraction) == ("shell", (2, 1, 4, 3), False, 0.0)


def test_nothing_covers_the_foremost_and_what_is_cut_off_touches_a_border():
    """By the pixels alone, at all four borders."""
    borders = set()
    for number in range(30):
        *others, foremost = scene(number)[1]
        assert foremost.covered_fraction == 0 <= min(creature.covered_fraction for creature in others)
        assert foremost.truncated == (foremost.visible_fraction < 0.97)
        touched = {side for side in range(4) if foremost.box[side] == (0, 0, SIZE, SIZE)[side]}
        assert touched or foremost.visible_fraction == 1
        borders |= touched if foremost.truncated else set()
    assert borders == {0, 1, 2, 3}


def test_difficult_is_barely_visible_or_tiny():
    plain = Creature("fish", (0, 0, 9, 9), 60.0, 1.0, 0.0, False)
    assert not is_difficult(plain, 128)
    assert is_difficult(replace(plain, visible_fraction=0.14), 128)
    assert is_difficult(replace(plain, visible_area=24.0), 128)
    assert not is_difficult(replace(plain, visible_area=25.0), 128)


def test_xml_counts_pixels_from_one():
    text = annotation_xml(7, 128, (Creature("fish", (0, 4, 10, 128), 60.0, 1.0, 0.2, True),))
    for line in ("<xmin>1<", "<ymin>5<", "<xmax>10<", "<ymax>128<", "<occluded>1<", "<truncated>1<", "<difficult>0<"):
        assert line in text


def test_a_finished_dataset_is_left_alone(tmp_path: Path):
    folder = write(tmp_path)
    before = (folder / "JPEGImages" / "000001.jpg").stat()
    write(tmp_path)
    assert (folder / "JPEGImages" / "000001.jpg").stat() == before


def test_other_options_and_other_data_are_never_overwritten(tmp_path: Path):
    folder = write(tmp_path)
    with pytest.raises(UserError, match="other options"):
        write(tmp_path, seed=4)
    (folder / "synthetic.json").unlink()
    with pytest.raises(UserError, match="not a synthetic dataset"):
        write(tmp_path)
    assert len(contents(folder)) == 205


def test_an_interrupted_run_leaves_no_dataset_and_is_made_good(dataset: Path, tmp_path: Path):
    staged = tmp_path / "VOCdevkit" / "VOC2007.part"
    (staged / "JPEGImages").mkdir(parents=True)
    (staged / "JPEGImages" / "999999.jpg").write_bytes(b"half")
    assert contents(write(tmp_path)) == contents(dataset)
    assert not staged.exists()


@pytest.mark.parametrize("options", [{"num_train": 1}, {"num_test": 0}, {"image_size": 16}])
def test_impossible_options_are_refused(tmp_path: Path, options: dict[str, int]):
    with pytest.raises(UserError, match="at least 2 and 1 images of 32 pixels"):
        write_synthetic_voc(
            tmp_path, seed=0, num_workers=1, **{"num_train": 5, "num_test": 5, "image_size": 64, **options}
        )


def test_own_class_list_decides_names_and_order(dataset: Path, tmp_path: Path):
    folder = write(tmp_path)
    path = folder / "ImageSets" / "Main" / "classes.txt"
    path.write_text("\n".join(reversed(CLASSES)) + "\n\n")
    assert open_source("voc2007", folder, "test").labels.classes == CLASSES[::-1]
    path.write_text("fish\nfish\n")
    with pytest.raises(UserError, match=r"classes\.txt: these classes are named twice: fish"):
        open_source("voc2007", folder, "test")
    with pytest.raises(UserError, match="unknown class 'fish'"):
        parse_objects(annotation_xml(1, 64, (Creature("fish", (0, 0, 9, 9), 60.0, 1.0, 0.0, False),)).encode(), "1.xml")


def test_its_provenance_does_not_claim_to_be_voc2007(dataset: Path):
    source = open_source("voc2007", dataset, "test")
    assert "flickr" not in source.licence
    assert source.dataset == "voc-layout"
    assert source.provenance["source"] != "VOC2007"
    assert "ImageSets/Main/classes.txt" in source.provenance["files"]
