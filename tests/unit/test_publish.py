"""One way to publish a dataset: whoever has lost the folder to another build publishes nothing."""

from __future__ import annotations

import json
import subprocess

import obstore.store
import pytest

from msldata.build.folder import QUARANTINE_NAME, BuildFolder
from msldata.contract.manifest import MANIFEST_NAME, Manifest
from msldata.errors import UserError
from msldata.storage import LocalStorage, RemoteStorage
from msldata.storage import lock as remote_lock
from tests.conftest import REPOSITORY

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
