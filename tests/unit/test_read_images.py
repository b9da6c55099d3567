"""Which pictures are meant by what a caller gives, and how each is read: files, lists, addresses, arrays, shards."""

from __future__ import annotations

import io
import os
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from msldata.errors import BadInputError, UserError
from msldata.storage import LocalStorage
from msltrain.use import read_images
from msltrain.use.read_images import (
    Photo,
    Picture,
    find_images,
    given_pictures,
    is_image_start,
    plain_name,
    read_photo,
    read_pixels,
    read_square,
)
from tests.smallshards import photo, write_images
from tests.tinydata import encode

JPEG = photo(1)


def write(root: Path, **files: bytes | str) -> Path:
    """Files by name, where ``__`` stands for a slash and ``_`` before the suffix for a dot."""
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def names(root: Path, *inputs: str | Path) -> list[str]:
    return [picture.name.removeprefix(f"{root}/") for picture in find_images(inputs)]


@pytest.mark.parametrize("shape", [(6, 4, 3), (6, 4)])
def test_an_array_is_seen_as_it_was_when_it_was_given(shape):
    array = np.zeros(shape, np.uint8)
    [picture] = given_pictures(array)
    array[:] = 255  # as a caller does who reads one photograph after the other into it
    assert not read_pixels(picture).any()


def test_a_mirrored_view_of_an_array_is_an_image_too():
    array = np.zeros((6, 4, 3), np.uint8)
    array[:, :2] = 200
    square_1CSS = read_square(given_pictures(array[:, ::-1])[0], 4)
    assert square_1CSS[0, :, :, 3].min() > 100 and not square_1CSS[0, :, :, 0].any()


def test_what_is_given_keeps_its_order(tmp_path: Path):
    write(tmp_path, b_jpg=JPEG, a_jpg=JPEG)
    grey, colour = np.full((2, 5), 7, np.uint8), Image.new("RGB", (3, 2), (1, 2, 3))
    found = given_pictures([grey, tmp_path / "b.jpg", colour, str(tmp_path)])
    there = [f"{tmp_path}/{name}.jpg" for name in ("b", "a", "b")]
    assert [picture.name for picture in found] == ["image 0", there[0], "image 2", *there[1:]]
    assert read_pixels(found[0]).tolist() == np.full((2, 5, 3), 7).tolist()
    assert read_pixels(found[2]).tolist() == [[[1, 2, 3]] * 3] * 2


def test_a_pillow_image_is_seen_in_its_colours():
    image = Image.new("P", (3, 2), 1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    [picture] = given_pictures(image)
    assert read_pixels(picture).tolist() == [[[9, 8, 7]] * 3] * 2


def test_one_is_as_good_as_a_list_of_one(tmp_path: Path):
    write(tmp_path, a_jpg=JPEG)
    for one in (tmp_path / "a.jpg", str(tmp_path / "a.jpg"), Image.new("RGB", (3, 2)), np.zeros((2, 3), np.uint8)):
        assert len(given_pictures(one)) == len(given_pictures([one])) == 1
    batch = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    assert [read_pixels(picture).tolist() for picture in given_pictures(batch)] == batch.tolist()
    with pytest.raises(UserError, match="no images were given"):
        given_pictures([])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((0, 4), np.uint8),
    ],
)
def test_arrays_that_are_no_photographs(array: np.ndarray):
    with pytest.raises(UserError) as refused:
        given_pictures([np.zeros((2, 2), np.uint8), array])
    assert str(refused.value) == (
        f"image 1: an array of {array.dtype} {array.shape}; give uint8 (H, W, 3) in RGB, or (H, W) in grey"
    )


def test_folders_are_searched_and_what_is_named_twice_is_taken_once(tmp_path: Path):
    write(tmp_path, b_jpg=JPEG, c__a_PNG=JPEG, a_jpeg=JPEG)
    inputs = (tmp_path / "b.jpg", tmp_path, f"{tmp_path}/*.jp*", str(tmp_path / "c" / "a.PNG"))
    assert names(tmp_path, *inputs) == ["b.jpg", "a.jpeg", "c/a.PNG"]
    assert names(tmp_path, f"{tmp_path}/**/*") == ["a.jpeg", "b.jpg", "c/a.PNG"]
    assert names(tmp_path, f"{tmp_path}/*") == ["a.jpeg", "b.jpg"]
    assert find_images([tmp_path / "b.jpg"])[0].read() == JPEG


@pytest.mark.parametrize("suffix", "jpg jpeg jpe jfif png webp bmp gif tif tiff ppm pgm jp2 avif heic heif JPG".split())
def test_a_file_that_is_called_an_image_is_taken_for_one(tmp_path: Path, suffix: str):
    """What is wrong with it is said when it is read; passed over, nobody would know."""
    (tmp_path / f"a.{suffix}").write_bytes(b"<html>")
    assert names(tmp_path, tmp_path) == [f"a.{suffix}"]


def test_what_cannot_be_looked_into_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(13, "denied")

    write(tmp_path, a_jpg=JPEG, b=JPEG)
    monkeypatch.setattr(read_images, "regular", refuse)
    assert names(tmp_path, tmp_path) == ["a.jpg"]


def test_what_is_no_image_is_passed_over_and_said(tmp_path: Path):
    write(tmp_path, a_jpg=JPEG, b=JPEG, c_dat=JPEG, d_txt="a", e_doc="b", g="c", h_jpg__i_xyz="d")
    said: list[str] = []
    found = find_images([tmp_path], said.append)
    assert [picture.name.removeprefix(f"{tmp_path}/") for picture in found] == ["a.jpg", "b", "c.dat"]
    assert said == [f"{tmp_path}: 3 images; 4 other files left out: d.txt, e.doc, g and 1 more"]
    (tmp_path / "g").unlink()
    find_images([tmp_path / "a.jpg", tmp_path], said.append)
    assert said[1:] == [f"{tmp_path}: 2 images; 3 other files left out: d.txt, e.doc, i.xyz"]


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ((), UserError, r"^no images were named; give image files, folders or patterns"),
        (("none.jpg",), FileNotFoundError, r"none\.jpg"),
        (("empty",), UserError, r"empty: no images here; looked for \.jpg, .*, and how other files begin"),
        (("*.jpg",), UserError, r"\*\.jpg: no images here"),
        (("pipe",), UserError, r"pipe: .*; give a file, a folder or a pattern"),
        (("list.csv",), UserError, r"list\.csv: no column names the photographs; call the one that counts 'image'"),
        (("list.tsv",), UserError, r"list\.tsv: no column names the photographs"),
        (("list.parquet",), UserError, r"list\.parquet: not a parquet table"),
        (("other.parquet",), UserError, r"other\.parquet: no column names the photographs"),
        (("list.txt",), UserError, r"list\.txt: no images here"),
    ],
)
def test_where_there_is_nothing_it_is_said(tmp_path: Path, given: tuple[str, ...], error: type, says: str):
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    write(tmp_path, list_csv="thing,label\nx,y\n", list_tsv="thing\tlabel\nx\ty\n", list_txt="\n \n")
    write(tmp_path, list_parquet="image")
    pq.write_table(pa.table({"thing": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(error, match=says):
        find_images([str(tmp_path / name) for name in given])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000"])
def test_files_without_a_suffix_begin_as_images_do(kind: str):
    assert is_image_start(encode(Image.new("RGB", (20, 20)), kind)[:16])


@pytest.mark.parametrize(
    ("start", "is_one"),
    [
        (b"II*\0" + bytes(12), True),
        (b"MM\0*" + bytes(12), True),
        (b"P5\n20 20", True),
        (b"\xff\x4f\xff\x51" + bytes(12), True),
        *[(b"\0\0\0\x18ftyp" + brand, True) for brand in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")],
        *[(b"\0\0\0\x18ftyp" + brand, True) for brand in (b"heim", b"heis", b"hevc", b"hevx")],
        (b"\0\0\0\x18ftypisom", False),  # a film
        (b"\0\0\0\x18moovavif", False),
        (b"RIFF\0\0\0\0WAVE", False),
        (b"XXXX\0\0\0\0WEBP", False),
        (b"P7\n", False),
        (b"GIF", False),
        (b"%PDF-1.7", False),
    ],
)
def test_beginnings(start: bytes, is_one: bool):
    assert is_image_start(start) == is_image_start(start + b"\0\0\0\0") == is_one


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.txt", "\ufeffb.jpg\n\n  c/a.jpg \nnone.jpg\n"),
        ("l.csv", "\ufeffFile_Name,label\nb.jpg,x\n,y\nc/a.jpg,z\nnone.jpg,z\n"),
        ("l.tsv", "label\tURL\nx\tb.jpg\ny\t\nz\tc/a.jpg\nz\tnone.jpg\n"),
        ("L.CSV", 'label,image\n"x,y",b.jpg\nz,c/a.jpg\nz,none.jpg\n'),
        ("l.parquet", {"n": [1, 2, 3, 4], "Image_Path": ["b.jpg", None, "c/a.jpg", "none.jpg"]}),
    ],
)
def test_lists_name_pictures_from_their_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str | dict
):
    write(tmp_path, b_jpg=JPEG, c__a_jpg=JPEG)
    if isinstance(content, str):
        (tmp_path / name).write_text(content, encoding="utf-8")
    else:
        pq.write_table(pa.table(content), tmp_path / name)
    found = find_images([tmp_path / name])
    assert [picture.name.removeprefix(f"{tmp_path}/") for picture in found] == ["b.jpg", "c/a.jpg", "none.jpg"]
    assert found[1].read() == JPEG
    with pytest.raises(BadInputError, match=r"none\.jpg: no such file"):
        read_photo(found[2])  # one line's mistake is this one's error
    monkeypatch.chdir(tmp_path / "c")
    assert [picture.name for picture in find_images([f"../{name}"])] == ["../b.jpg", "../c/a.jpg", "../none.jpg"]


@pytest.mark.parametrize("column", ["image", "file", "path", "url", "file_name", "filename", "image_path"])
def test_columns_that_name_pictures(tmp_path: Path, column: str):
    write(tmp_path, a_jpg=JPEG, l_csv=f"label,{column}\nx,a.jpg\n")
    assert names(tmp_path, tmp_path / "l.csv") == ["a.jpg"]


def test_a_list_may_hold_names_that_are_no_text(tmp_path: Path):
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(JPEG)
    (tmp_path / "l.txt").write_bytes(b"caf\xe9.jpg\n")
    [picture] = find_images([tmp_path / "l.txt"])
    assert (picture.name, picture.read()) == (f"{tmp_path}/caf\\xe9.jpg", JPEG)


def test_a_list_may_name_folders_addresses_and_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, c__b_jpg=JPEG, c__a_jpg=JPEG, d__x_jpg=JPEG)
    write(tmp_path, l_txt=f"c\nhttp://127.0.0.1/y.jpg\n{tmp_path}/d/x.jpg\n~/z.jpg\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names(tmp_path, tmp_path / "l.txt") == [
        "c/a.jpg", "c/b.jpg", "http://127.0.0.1/y.jpg", "d/x.jpg", "z.jpg"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("größe.jpg", "größe.jpg"),
        ("a\\b.jpg", "a\\b.jpg"),
        (b"caf\xe9.jpg", "caf\\xe9.jpg"),
        (b"a\\b\xe9.jpg", "a\\\\b\\xe9.jpg"),
        ("caf\\xe9.jpg", "caf\\\\xe9.jpg"),
        ("\ud800.jpg", "\\xed\\xa0\\x80.jpg"),
    ],
)
def test_two_files_never_have_one_name(name: str | bytes, plain: str):
    assert plain_name(os.fsdecode(name)) == plain


class Bucket(LocalStorage):
    """A folder that is called by an address, and writes down what is asked of it."""

    def __init__(self, root: Path, url: str, asked: list[str]):
        super().__init__(root)
        self.url, self._asked = url, asked

    def path(self, name: str = "") -> None:  # type: ignore[override]
        return None

    def where(self, name: str) -> str:
        return f"{self.url}/{name}"

    def exists(self, name: str) -> bool:
        self._asked.append(f"{self.url}/{name}")
        return os.path.isfile(f"{self.root}/{name}")  # noqa: PTH113

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of a store of which ``tmp_path`` is the root."""
    asked: list[str] = []
    monkeypatch.setattr(read_images, "open_storage", lambda url: Bucket(tmp_path / url.partition("://")[2], url, asked))
    return asked


def test_addresses_in_a_store(tmp_path: Path, asked: list[str]):
    write(tmp_path, bucket__c__a_jpg=JPEG, bucket__c__b=JPEG, bucket__c__d=bytes(20), bucket__c__e=JPEG[:15])
    write(tmp_path, bucket__c__f_dat=JPEG, bucket__c__g__h_PNG=JPEG, bucket__c__v1_2__k=JPEG[:16])
    [one] = find_images(["s3://bucket/c/a.jpg"])
    assert (one.name, one.read(), asked) == ("s3://bucket/c/a.jpg", JPEG, [])
    said: list[str] = []
    found = find_images(["s3://bucket/c"], said.append)
    there = ("a.jpg", "b", "g/h.PNG", "v1.2/k")
    assert [picture.name for picture in found] == [f"s3://bucket/c/{name}" for name in there]
    assert all(picture.read() == JPEG for picture in found[:3]) and asked == ["s3://bucket/c/dataset.json"]
    assert said == ["s3://bucket/c: 4 images; 3 other files left out: d, e, f.dat"]


def test_addresses_on_the_web(tmp_path: Path, asked: list[str]):
    """Only what may be a dataset is asked for; whatever is none is one image."""
    write_images(tmp_path / "host" / "shards", [2])
    for url in ("http://host/a.jpg", "https://host/photo?id=3", "http://host/a.JPG?size=2"):
        assert [picture.name for picture in find_images([url])] == [url] and not asked
    assert [picture.name for picture in find_images(["https://host/photo/3"])] == ["https://host/photo/3"]
    assert asked == ["https://host/photo/3/dataset.json"]


def test_a_dataset_is_meant_by_its_folder_and_by_its_name_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for split, number in (("train", 2), ("test", 1)):
        write_images(tmp_path / "shards" / "mine" / split, [number])
    said: list[str] = []
    by_name, by_folder = find_images(["mine"], said.append), find_images(["shards/mine"], said.append)
    assert [one.name for one in by_name] == [one.name for one in by_folder] and len(by_name) == 3 and not said
    assert all(one.read() for one in by_name)
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "mine" / "a.jpg")
    assert [one.name for one in find_images(["mine"])] == ["mine/a.jpg"], "what is here comes first, as in training"


def test_samples_of_shards_come_in_stored_order_and_are_checked(tmp_path: Path):
    manifest = write_images(tmp_path, [2, 3])
    found = find_images([tmp_path])
    assert [picture.name for picture in found] == [f"{tmp_path}#s00000{number}" for number in range(5)]
    assert found[3].read() == photo(3, 43, 39)
    tar = tmp_path / manifest.shards[1].name
    content = tar.read_bytes()
    place = content.index(photo(3, 43, 39))
    tar.write_bytes(content[: place + 99] + bytes([content[place + 99] ^ 1]) + content[place + 100 :])
    with pytest.raises(BadInputError, match=rf"#s000003: the bytes in {tar.name} do not match their CRC-32"):
        read_photo(found[3])
    assert found[2].read() == photo(2, 42, 38)


@pytest.mark.parametrize(("num_bytes", "is_refused"), [(1 << 20, False), ((1 << 20) + 1, True), (1 << 21, True)])
def test_a_download_that_is_too_large_is_refused_and_not_cut(monkeypatch, num_bytes, is_refused):
    asked = []

    def answer(request: urllib.request.Request, timeout: float) -> io.BytesIO:
        asked.append((request.full_url, request.get_header("User-agent"), request.get_header("Accept"), timeout))
        return io.BytesIO(bytes(num_bytes))

    assert read_images.MAX_DOWNLOAD == 104_857_600, "100 MiB"
    monkeypatch.setattr(read_images, "MAX_DOWNLOAD", 1 << 20)
    monkeypatch.setattr(urllib.request, "urlopen", answer)
    [picture] = find_images(["http://127.0.0.1/a.jpg"])
    if is_refused:
        with pytest.raises(BadInputError, match=r"http://127\.0\.0\.1/a\.jpg: larger than 1 MiB"):
            read_photo(picture)
    else:
        assert picture.read() == bytes(num_bytes)
    assert asked == [("http://127.0.0.1/a.jpg", "msl-predict", "image/*", 30)]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (urllib.error.HTTPError("u", 404, "Not Found", {}, None), "the server says 404 Not Found"),  # type: ignore[arg-type]
        (urllib.error.URLError("no route"), r"the server cannot be reached \(no route\)"),
        (TimeoutError("timed out"), "timed out"),
    ],
)
def test_what_a_server_says_instead(monkeypatch: pytest.MonkeyPatch, error: Exception, says: str):
    def fail(request: object, timeout: float) -> None:
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    [picture] = find_images(["http://127.0.0.1/a.jpg"])
    with pytest.raises(BadInputError, match=rf"^http://127\.0\.0\.1/a\.jpg: {says}"):
        read_photo(picture)


def test_a_photograph_is_decoded_as_large_as_it_is_needed_and_once(monkeypatch: pytest.MonkeyPatch):
    decoded: list[int] = []
    decode = read_images.decode
    monkeypatch.setattr(read_images, "decode", lambda data, by=1: decoded.append(by) or decode(data, by))
    looks: list[bytes] = []
    upright_size = read_images.upright_size
    monkeypatch.setattr(read_images, "upright_size", lambda data: looks.append(data) or upright_size(data))
    seen = Photo(photo(2, 1600, 1200))
    assert seen.size == seen.size == (1600, 1200) and not decoded and len(looks) == 1
    assert seen.pixels(100).shape == (150, 200, 3) and seen.pixels(100).shape == (150, 200, 3)
    assert seen.square(100).shape == (1, 3, 100, 100) and decoded == [8]
    assert seen.pixels().shape == (1200, 1600, 3) and seen.pixels().shape == (1200, 1600, 3)
    assert decoded == [8, 1]


def test_an_array_has_width_and_height_too():
    array = np.zeros((2, 4, 3), np.uint8)
    array[:, 2:] = 200
    seen = Photo(array)
    assert seen.size == (4, 2) and seen.pixels(2) is array
    assert seen.square(4)[0, 0].tolist() == [[0, 0, 200, 200]] * 4
    turned = Photo(np.ascontiguousarray(array.transpose(1, 0, 2)))
    assert turned.square(4)[0, 0].T.tolist() == [[0, 0, 200, 200]] * 4
    file = np.frombuffer(JPEG[: len(JPEG) // 3 * 3], np.uint8).reshape(1, -1, 3)  # pixels that look like a file
    assert Photo(file).size == (file.shape[1], 1)


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (OSError("a.jpg: is odd."), "a.jpg: is odd"),
        (ValueError(" is a box. "), "a.jpg: is a box"),
        (BadInputError("b.jpg", "is worse"), "b.jpg: is worse"),
    ],
)
def test_whatever_makes_an_image_unusable_names_it(failure: Exception, says: str):
    def fail() -> bytes:
        raise failure

    with pytest.raises(BadInputError, match=rf"^{says}(;|$)"):
        read_photo(Picture("a.jpg", fail))


def test_what_is_no_image_is_named_when_it_is_looked_at(tmp_path: Path):
    seen = read_photo(Picture("a.jpg", lambda: b"<html>"))
    for look in (lambda: seen.size, seen.pixels, lambda: seen.square(8)):
        with pytest.raises(BadInputError, match=r"^a\.jpg: "):
            look()
    with pytest.raises(BadInputError, match=r"^image: "):
        Photo(b"<html>").pixels()
    write(tmp_path, a_jpg=JPEG)
    assert read_square(tmp_path / "a.jpg", 8).tolist() == Photo(JPEG).square(8).tolist()


def test_a_square_is_made_without_a_warning():
    """Torch gives memory of another shape the right one, and complains of it to whoever predicts."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Photo(JPEG).square(8).shape == (1, 3, 8, 8)


def test_a_table_of_photographs_needs_a_header_and_not_its_spaces(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    table = tmp_path / "photographs.csv"
    table.write_text('labels, image\n"cat", "a.jpg"\n')
    assert [Path(picture.name).name for picture in find_images([table])] == ["a.jpg"]
    table.write_text("a.jpg,cat\na.jpg,dog\n")
    with pytest.raises(UserError, match=r"it seems to have no header line, for it begins with 'a\.jpg, cat'"):
        find_images([table])
