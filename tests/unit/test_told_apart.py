"""Photographs taken for the same or not, numbers that divide them, and what a sample keeps of the one before."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from msldata.build.copies import Photograph, copies_said, find_copies
from msldata.build.divide import _number, divide
from msldata.build.sample import SampleMaker
from msldata.build.spool import spooled
from msldata.build.writer import ShardWriter
from msldata.contract.manifest import IMAGES, Manifest
from msldata.contract.records import LabelSpace, Record
from msldata.errors import BadInputError
from msldata.sources.source import fail
from msldata.storage import LocalStorage
from msldata.storage.lock import own_folder
from tests.tinydata import jpeg

ROW = {"width": 4, "height": 4, "positives": [0], "ignored": [], "objects": []}


def test_copies_have_one_checksum_and_one_length(tmp_path, monkeypatch):
    """The checksum alone, of 32 bits, is shared by chance in a dataset of a hundred thousand."""
    monkeypatch.setattr("msldata.build.writer.crc32", lambda data: 7)
    out = LocalStorage(tmp_path)
    with ShardWriter(out, "d-s-000000.tar", kind=IMAGES, plan="plan") as writer:
        for key, data in (("a", b"-"), ("b", b"--"), ("c", b"-")):
            writer.add(key, [(".jpg", data)], ROW)
        info = writer.publish()
    manifest = Manifest(kind=IMAGES, dataset="d", split="s", classes=("cat",), shards=(info,))
    assert [[photo.key for photo in one] for one in find_copies([(out, manifest)])] == [["a", "c"]]


@pytest.mark.parametrize(
    ("labels", "ignored", "said"),
    [
        (["cat", "cat", "cat"], ["", "", ""], "with the same labels"),
        (["cat", "cat", "dog"], ["", "", ""], "with labels that differ"),
        (["cat", "cat", "cat"], ["dog", "dog", ""], "with labels that differ"),
    ],
)
def test_labels_of_copies_differ_where_one_of_them_does(labels, ignored, said):
    """A class that is ignored on one of them and not on another differs as well."""
    copies = [
        Photograph("s", "d-s-000000.tar", key, (shown,), (left,) if left else ())
        for key, shown, left in zip("abc", labels, ignored)
    ]
    plan: Any = SimpleNamespace(split="s", shards=())
    (sentence,) = copies_said([copies], [(plan, LocalStorage(Path("out/s")))])
    assert said in sentence


def test_the_number_of_a_photograph_is_the_same_for_ever():
    assert _number(b"abc") == 0xBA7816BF8F01 / 2**48


def test_a_source_that_was_too_small_to_be_divided_rejects_as_before(tmp_path):
    class Odd:
        dataset, split, labels, licence = "d", "all", LabelSpace(("cat",)), ""
        images, reject = LocalStorage(tmp_path), staticmethod(fail)

        def __init__(self) -> None:
            self.provenance: dict[str, Any] = {}
            self.counts: dict[str, int] = {}

        def records(self):
            self.reject(BadInputError("a.jpg", "odd"))
            yield Record("b", "b.jpg", (0,))

    ((name, whole),) = divide(Odd()).items()
    with pytest.raises(BadInputError, match=r"a\.jpg: odd"):
        list(whole.records())
    assert name == "all"


def test_the_size_of_a_file_that_cannot_be_read_is_not_that_of_the_one_before(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    (tmp_path / "c.jpg").write_bytes(b"no image")
    maker = SampleMaker(LocalStorage(tmp_path), ["cat"], None)
    maker.make(Record("a", "a.jpg", (0,)))
    assert maker.num_bytes_read == len(jpeg(0))
    for name, size in (("b.jpg", -1), ("c.jpg", 8)):
        with pytest.raises(BadInputError):
            maker.make(Record("b", name, (0,)))
        assert maker.num_bytes_read == size


def test_pixels_that_are_missing_before_an_end_that_is_there_are_found_by_decoding(tmp_path):
    whole = jpeg(0, 64, 64)
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    record = Record("a", "a.jpg", (0,))
    assert SampleMaker(LocalStorage(tmp_path), ["cat"], None).make(record).members
    with pytest.raises(BadInputError, match=r"a\.jpg: "):
        SampleMaker(LocalStorage(tmp_path), ["cat"], None, decode=True).make(record)


def test_samples_of_a_program_are_named_by_what_is_in_them():
    """A build that goes on must not keep what it wrote of another photograph under the same key."""

    def names(*pixels: int) -> list[str]:
        samples = [(f"k{n}", np.full((4, 4, 3), value, np.uint8), [1]) for n, value in enumerate(pixels)]
        with spooled(samples, ["cat"], "d", "s", None) as source:
            return [record.image for record in source.records()]

    assert names(1, 2) == names(1, 2) and names(1, 2)[0] == names(1, 3)[0] and names(1, 2)[1] != names(1, 3)[1]


def test_samples_that_a_killed_program_left_are_gone(tmp_path):
    """And those of one that is running are not."""
    for name in ("dead", "running"):
        (tmp_path / f".msl-samples-{name}").mkdir()
        (tmp_path / f".msl-samples-{name}" / "a.0").write_bytes(b"1")
    samples = [("k", np.zeros((4, 4, 3), np.uint8), [1])]
    with own_folder(LocalStorage(tmp_path / ".msl-samples-running"), "program"):
        with spooled(samples, ["cat"], "d", "s", tmp_path):
            names = {path.name for path in tmp_path.iterdir()}
            assert len(names) == 2 and ".msl-samples-dead" not in names
        assert [path.name for path in tmp_path.iterdir()] == [".msl-samples-running"]
        assert (tmp_path / ".msl-samples-running" / "a.0").exists()
