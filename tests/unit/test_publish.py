"""One way to publish a dataset: whoever has lost the folder to another build publishes nothing."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace

import obstore.store
import pytest

from msldata.build.folder import QUARANTINE_NAME, BuildFolder
from msldata.build.shards import build_shards, plan_build
from msldata.build.writer import ShardWriter
from msldata.contract.manifest import IMAGES, MANIFEST_NAME, Manifest
from msldata.errors import UserError
from msldata.sources.kinds import open_source
from msldata.storage import LocalStorage, RemoteStorage
from msldata.storage import lock as remote_lock
from tests.conftest import REPOSITORY
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
