"""One way to publish a dataset: whoever has lost the folder to another build publishes nothing."""

from __future__ import annotations

import io
import json
import os
import subprocess
from dataclasses import replace

import obstore.store
import pytest
import yaml
from PIL import Image

from msldata.build.folder import QUARANTINE_NAME, BuildFolder
from msldata.build.shards import Part, build_part, build_shards, finish_build, plan_build
from msldata.build.writer import ShardWriter
from msldata.contract.dataset_card import dataset_card
from msldata.contract.format import decode_index, encode_index
from msldata.contract.manifest import IMAGES, MANIFEST_NAME, Manifest, ShardInfo
from msldata.contract.resize_advice import _smaller, advise_resize
from msldata.errors import UserError
from msldata.sources.kinds import open_source
from msldata.storage import LocalStorage, RemoteStorage
from msldata.storage import lock as remote_lock
from tests.conftest import REPOSITORY
from tests.smallshards import photo, write_images
from tests.tinydata import jpeg

MANIFEST = Manifest(kind="images", dataset="d", split="s", classes=("cat",), shards=())
LEFT_OUT = [{"file": "a.jpg", "reason": "empty"}]


def test_a_lost_folder_is_not_published():
    out = RemoteStorage("memory://test", obstore.store.MemoryStore())
    folder = BuildFolder(out, [], "plan")
    with folder.claim():
        other = {"token": "another build", "beat": 1, "host": "elsewhere", "pid": 1}
        out.put(remote_lock.LOCK_NAME, json.dumps(other).encode())
        with pytest.raises(UserError, match="another build has taken over this folder"):
            folder.publish(MANIFEST)
        assert not out.exists(MANIFEST_NAME)


def test_publish_and_withdraw(tmp_path):
    out = LocalStorage(tmp_path)
    folder = BuildFolder(out, [], "plan")
    with folder.claim():
        folder.publish(MANIFEST, LEFT_OUT)
    assert json.loads(out.read(QUARANTINE_NAME)) == LEFT_OUT[0]
    assert Manifest.from_json(out.read(MANIFEST_NAME), "here") == MANIFEST
    folder.withdraw()
    assert not out.exists(MANIFEST_NAME) and not out.exists(QUARANTINE_NAME)


class Diary(LocalStorage):
    """A folder that writes down what is put into it, in order."""

    def __init__(self, root):
        super().__init__(root)
        self.names: list[str] = []

    def put(self, name, data):
        self.names.append(name)
        super().put(name, data)


def test_every_file_comes_before_the_one_that_vouches_for_it(tmp_path):
    """The tar, then its index; what other readers look for; the manifest, which makes it a dataset, last."""
    out = Diary(tmp_path)
    with ShardWriter(out, "d-s-000000.tar", kind=IMAGES, plan="plan") as writer:
        row = {"width": 4, "height": 4, "positives": [0], "ignored": [], "objects": []}
        writer.add("a", [(".jpg", b"-"), (".json", b"{}")], row)
        shard = writer.publish()
    BuildFolder(out, [shard.name], "plan").publish(replace(MANIFEST, shards=(shard,)), LEFT_OUT)
    assert out.names == [
        "d-s-000000.tar",
        "d-s-000000.parquet",
        QUARANTINE_NAME,
        "_info.json",
        "sizes.json",
        "croissant.json",
        MANIFEST_NAME,
    ]


def test_a_file_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """Else a power failure can leave a file with the right name and no content."""
    deeds: list[str] = []

    def watched(module, name):
        real = getattr(module, name)

        def deed(*arguments, **options):
            deeds.append(name)
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, deed)

    watched(os, "fsync")
    watched(os, "replace")
    LocalStorage(tmp_path).put("a.json", b"{}")
    assert deeds == ["fsync", "replace"]
    deeds.clear()
    with ShardWriter(LocalStorage(tmp_path), "d-s-000000.tar", kind=IMAGES, plan="plan") as writer:
        row = {"width": 4, "height": 4, "positives": [0], "ignored": [], "objects": []}
        writer.add("a", [(".jpg", b"-")], row)
        shard = writer.publish()
    assert deeds == ["fsync", "replace", "fsync", "replace"], "the tar, then its index"
    deeds.clear()
    BuildFolder(LocalStorage(tmp_path), [shard.name], "plan").publish(replace(MANIFEST, shards=(shard,)))
    assert deeds == ["fsync", *4 * ["fsync", "replace"]], "the names of the shards, then the last files"


def test_a_shard_that_left_an_image_out_is_tried_again(tmp_path):
    """As long as there is no manifest; a file that was mended in place may be as long as it was."""
    good, places = jpeg(0), [tmp_path / f"{name}.jpg" for name in "ab"]
    for place, data in zip(places, (good, bytes(len(good)))):
        place.write_bytes(data)
    (tmp_path / "labels.csv").write_text("image,labels\na.jpg,cat\nb.jpg,dog\n")
    out = LocalStorage(tmp_path / "out")

    def build() -> Manifest:
        plan = plan_build(open_source("table", tmp_path / "labels.csv", "all"))
        return build_shards(plan, out, num_workers=1, on_error="skip")

    assert build().num_samples == 1
    out.delete(MANIFEST_NAME)
    places[1].write_bytes(good)
    assert build().num_samples == 2


def test_a_part_that_was_mended_is_no_longer_without_a_good_image(tmp_path):
    for number, data in enumerate((jpeg(0), b"")):
        (tmp_path / f"{number}.jpg").write_bytes(data)
    (tmp_path / "labels.csv").write_text("image,labels\n0.jpg,cat\n1.jpg,dog\n")
    out = LocalStorage(tmp_path / "out")
    for data in (b"", jpeg(1)):
        (tmp_path / "1.jpg").write_bytes(data)
        plan = plan_build(open_source("table", tmp_path / "labels.csv", "all"), samples_per_shard=1)
        for number in (1, 2):
            build_part(plan, out, Part(number, 2), num_workers=1, on_error="skip")
    manifest = finish_build(plan, out)
    assert manifest.shards.name == [task.name for task in plan.shards]
    assert (manifest.num_samples, manifest.counts["quarantined"]) == (2, 0)


def test_there_is_one_way_to_publish():
    found = subprocess.run(
        ["git", "grep", "-lw", "write_manifest", "--", "msldata", "msltrain"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if found.returncode > 1:
        pytest.skip("not a git checkout")
    assert found.stdout.split() == ["msldata/build/folder.py", "msldata/contract/publish.py"]


def test_the_card_of_two_splits():
    """Of which one lacks a class, and has a name that loaders do not take."""

    def manifest(split: str, sizes: list[tuple[int, int]], **positive: int) -> Manifest:
        shards = [
            ShardInfo(name=f"d-{split}-{n}.tar", num_samples=samples, num_bytes=num_bytes, sha256=f"{n}a" * 32)
            for n, (samples, num_bytes) in enumerate(sizes)
        ]
        histogram = {name.replace("_", "|"): {"positive": count, "ignored": 0} for name, count in positive.items()}
        return Manifest(
            kind=IMAGES, dataset="d_1", split=split, classes=("a|b", "cat"), shards=shards, label_histogram=histogram,
            licence="mine" if split == "train" else "theirs",
        )  # fmt: skip

    train, test = (
        manifest("train", [(300, 1_500_000), (704, 2_000_000)], a_b=900, cat=1),
        manifest("te-st", [(5, 640_000)], a_b=2),
    )
    lines = dataset_card("me/mine", [train, test]).splitlines()
    front = yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))
    assert front["size_categories"] == ["1K<n<10K"] and front["pretty_name"] == "d_1"
    assert front["configs"][0]["data_files"] == [
        {"split": "train", "path": "train/*.tar"},
        {"split": "te_st", "path": "te-st/*.tar"},
    ]
    for line in (
        "# d\\_1",
        "1,009 photographs with 2 classes, several of which may apply, as WebDataset shards with a sample index and a "
        "manifest per split.",
        f"| train | 1,004 | 2 | 3.5 | `{train.fingerprint[:16]}` |",
        f"| te-st | 5 | 1 | 0.6 | `{test.fingerprint[:16]}` |",
        "msl verify hf://datasets/me/mine/train",
        'samples = datasets.load_dataset("me/mine", split="train", streaming=True)',
        "| class | train | te-st |",
        "| --- | ---: | ---: |",
        "| a\\|b | 900 | 2 |",
        "| cat | 1 | 0 |",
        "mine; theirs",
    ):
        assert line in lines, line


def test_advice_on_large_photographs(tmp_path):
    """Of the first shard's three the one of the middle size stands for all five, whose bytes its mean says."""
    sizes = {"s000000": (330, 610), "s000001": (200, 900), "s000002": (700, 260)}
    photos = {key: photo(number, *size) for number, (key, size) in enumerate(sizes.items())}
    manifest = write_images(tmp_path, [3, 2], photos)
    storage = LocalStorage(tmp_path)
    for shard in manifest.shards:  # the small ones are not what the index says
        rows = decode_index(IMAGES, storage.read(shard.index_name), "x").to_pylist()
        for row in rows:
            row["width"], row["height"] = sizes.get(row["key"], (row["width"], row["height"]))
        storage.put(shard.index_name, encode_index(IMAGES, rows, shard, "test"))
    advice = advise_resize(storage, manifest, 64)
    assert advice is not None
    assert (advice.width, advice.height, advice.image_size, advice.shorter) == (700, 260, 64, 96)
    lengths = list(map(len, photos.values()))
    assert advice.num_bytes == int(sum(lengths) / 3 * 5)
    smaller = [len(_smaller(data, 96)) for data in photos.values()]
    assert advice.share_bytes == sum(smaller) / sum(lengths)
    assert Image.open(io.BytesIO(_smaller(photos["s000000"], 96))).size == (96, round(610 * 96 / 330))
    assert "700 × 260 pixels: 44 times what training at 64" in advice.said()
    assert advise_resize(storage, manifest, 87) is None  # 160, of which 260 is not twice as many
