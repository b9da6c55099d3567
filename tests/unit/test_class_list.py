"""A list of classes: one name per line, in UTF-8 or refused."""

from __future__ import annotations

import json

import pytest

from msldata.contract.records import quoted, read_class_list
from msldata.errors import UserError
from msldata.sources.kinds import open_source
from msldata.sources.source import SourceOptions
from msldata.storage import LocalStorage


def test_names_are_stripped_and_blank_lines_skipped(tmp_path):
    (tmp_path / "classes.txt").write_bytes("\ufeffKüken \r\n\r\n chat\n".encode())
    assert read_class_list(LocalStorage(tmp_path), "classes.txt").classes == ("Küken", "chat")


@pytest.mark.parametrize(
    ("content", "message"),
    [("Küken\n".encode("latin-1"), "not UTF-8 text"), (b"a\nb\na\n", "named twice: a"), (b"\n", "names no classes")],
)
def test_what_would_be_stored_wrong_is_refused(tmp_path, content, message):
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"classes\.txt: .*{message}"):
        read_class_list(LocalStorage(tmp_path), "classes.txt")


def test_a_blank_line_above_a_name_is_refused_where_lines_are_counted(tmp_path):
    place = LocalStorage(tmp_path)
    for content, line in (("cat\n\ndog\n\n", 2), ("\ncat\n", 1)):
        (tmp_path / "classes.txt").write_text(content)
        with pytest.raises(UserError, match=f"line {line} is blank, and the labels count lines"):
            read_class_list(place, "classes.txt", counted=True)
    (tmp_path / "classes.txt").write_text("cat\ndog\n\n\n")
    assert read_class_list(place, "classes.txt", counted=True).classes == ("cat", "dog")


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such list of classes"):
        read_class_list(LocalStorage(tmp_path), "classes.txt")


LISTED = ("cat",)
MISSING = ("bee", "dog", "eel")


def _table(folder):
    rows = [f"{number}.jpg,{name}" for number, name in enumerate((*LISTED, "dog", "bee", "dog", "eel"))]
    (folder / "labels.csv").write_text("\n".join(["image,labels", *rows]))
    return "table", folder / "labels.csv"


def _folders(folder):
    for name in (*LISTED, *MISSING):
        (folder / "photos" / name).mkdir(parents=True)
        (folder / "photos" / name / "1.jpg").write_bytes(b"")
    return "folders", folder / "photos"


def _coco(folder):
    (folder / "images").mkdir()
    categories = [{"id": number, "name": name} for number, name in enumerate((*LISTED, *MISSING))]
    content = {"images": [], "annotations": [], "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))
    return "coco", folder / "instances.json"


@pytest.mark.parametrize("kind", [_table, _folders, _coco])
def test_all_classes_that_a_list_lacks_are_named_at_once(tmp_path, kind):
    """Each would otherwise cost another build."""
    (tmp_path / "names.txt").write_text("\n".join(LISTED))
    dataset, place = kind(tmp_path)
    with pytest.raises(UserError, match=r"names\.txt") as refused:
        open_source(dataset, place, "all", options=SourceOptions(classes=str(tmp_path / "names.txt")))
    assert all(f"'{name}'" in str(refused.value) for name in MISSING), refused.value


def test_of_many_that_it_lacks_the_first_are_named():
    assert quoted([str(number) for number in range(1000)]).endswith(", '10', '11' and 988 more")
    assert quoted(["a"]) == "'a'"
