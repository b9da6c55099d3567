"""Samples that a program makes, as shards: the same dataset as from files, and what is no sample."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import msldata
import msltrain
from msldata.errors import BadInputError, UserError
from tests.smallshards import photo

CLASSES = ("bird", "boat", "cat")


def samples(number: int = 7) -> Iterator[tuple]:
    """JPEG bytes, PIL images and arrays in turn; labels as names and as numbers."""
    for n in range(number):
        pixels = np.asarray(Image.open(io.BytesIO(photo(n, 40 + n, 30))))
        image = (photo(n), Image.fromarray(pixels), pixels, pixels[:, :, 0])[n % 4]
        labels = ([CLASSES[n % 3]], np.eye(3)[n % 3], [1, 0, -1], "cat")[n % 4]
        yield f"s{n}", image, labels


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_they_are_a_dataset_like_any_other(tmp_path: Path):
    out = tmp_path / "mine" / "train"
    manifest = msldata.write_shards(samples(), out, classes=CLASSES, samples_per_shard=3, workers=1)
    assert (manifest.dataset, manifest.split, manifest.num_samples, len(manifest.shards)) == ("mine", "train", 7, 3)
    assert manifest.classes == CLASSES and manifest.label_histogram["cat"] == {"positive": 2, "ignored": 2}
    assert not msldata.verify(out).findings
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["train"], "what was kept meanwhile is gone"
    loader = msltrain.Loader(out, msltrain.StreamConfig(image_size=16, batch_size=7, num_threads=1), training=False)
    with loader:
        [batch] = list(loader)
    assert batch.keys == [f"s{n}" for n in range(7)]
    assert batch.target_BK.tolist()[:4] == [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert batch.ignore_BK.tolist()[2] == [False, False, True]
    tars = b"".join(file.read_bytes() for file in sorted(out.glob("*.tar")))
    assert photo(0) in tars and photo(4) in tars, "JPEGs keep their bytes"


def test_written_again_it_does_nothing_and_of_other_bytes_it_is_another_dataset(tmp_path: Path):
    out, more = tmp_path / "mine" / "train", {"classes": CLASSES, "samples_per_shard": 3, "workers": 1}
    first = msldata.write_shards(samples(), out, **more)
    before = contents(out)
    times = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    assert msldata.write_shards(samples(), out, **more) == first
    assert times == {file: file.stat().st_mtime_ns for file in out.iterdir()}
    (out / "dataset.json").unlink()
    last = max(out.glob("*.tar"))
    last.unlink()  # as a build that was stopped leaves it
    kept = min(out.glob("*.tar")).stat().st_mtime_ns
    assert msldata.write_shards(samples(), out, **more) == first and contents(out) == before
    assert min(out.glob("*.tar")).stat().st_mtime_ns == kept, "a complete shard is not written again"
    turned = [(key, Image.fromarray(np.zeros((30, 40, 3), np.uint8)), labels) for key, _, labels in samples()]
    with pytest.raises(UserError, match="overwrite=True"):
        msldata.write_shards(turned, out, **more)
    assert contents(out) == before
    assert msldata.write_shards(turned, out, overwrite=True, **more).fingerprint != ""
    assert contents(out) != before


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (("a", photo(0), ["brid"]), r"sample 'a': no class 'brid'; did you mean bird\?"),
        (
            ("a", photo(0), [1, 0]),
            r"sample 'a': its labels are \[1, 0\]; give names, or for each of 3 classes 1, 0, or",
        ),
        (("a", photo(0), [0, 2, 0]), r"sample 'a': its labels are \[0, 2, 0\]"),
        (("a", photo(0), 1), r"sample 'a': its labels are a int"),
        (
            ("a", np.zeros((3, 8, 8), np.uint8), []),
            r"sample 'a': its image is a ndarray of uint8 \(3, 8, 8\); give the",
        ),
        (("a", np.zeros((8, 8, 3)), []), r"sample 'a': its image is a ndarray of float64"),
        (("a.b", photo(0), []), r"sample key 'a\.b': must be printable text without dots"),
        ((7, photo(0), []), r"sample 1: its key is a int; it must be text"),
        (photo(0), r"sample 1: is no \(key, image, labels\)"),
        (("first", photo(0), []), r"first"),
    ],
)
def test_what_is_no_sample_is_named(sample, said: str, tmp_path: Path):
    with pytest.raises(UserError, match=said):
        msldata.write_shards([("first", photo(1), []), sample], tmp_path / "mine/train", classes=CLASSES, workers=1)
    assert not list(tmp_path.glob("mine/*/*.tar")) and not list(tmp_path.glob("mine/.msl-samples-*"))


def test_nothing_is_no_dataset(tmp_path: Path):
    with pytest.raises(UserError, match=r"^mine train: no samples were given; a generator gives its samples once$"):
        msldata.write_shards(iter(()), tmp_path / "mine/train", classes=CLASSES)


def test_a_broken_image_ends_it_or_is_left_out_by_its_key(tmp_path: Path):
    given = [*samples(20), ("broken", photo(3)[:300], ["cat"])]
    with pytest.raises(BadInputError, match=r"^samples/broken\.[0-9a-f]{16}: "):
        msldata.write_shards(given, tmp_path / "mine/train", classes=CLASSES, workers=1)
    manifest = msldata.write_shards(given, tmp_path / "mine/train", classes=CLASSES, workers=1, on_error="skip")
    assert manifest.num_samples == 20 and manifest.counts["quarantined"] == 1
    assert '"broken.' in (tmp_path / "mine/train/quarantine.jsonl").read_text()


def test_one_sample_at_a_time_is_asked_for(tmp_path: Path):
    """Nothing collects them: what was asked for before is on disk when the next one is."""
    seen = []

    def counted():
        for number, sample in enumerate(samples(5)):
            [folder] = [tmp_path / "mine"] if number else [None]
            seen.append(0 if folder is None else len(list(folder.glob(".msl-samples-*/s*"))))
            yield sample

    msldata.write_shards(counted(), tmp_path / "mine/train", classes=CLASSES, workers=1)
    assert seen == [0, 1, 2, 3, 4]
