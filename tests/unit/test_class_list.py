"""A list of classes: one name per line, in UTF-8 or refused."""

from __future__ import annotations

import pytest

from msldata.contract.records import read_class_list
from msldata.errors import UserError
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


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such list of classes"):
        read_class_list(LocalStorage(tmp_path), "classes.txt")
