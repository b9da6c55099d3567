"""The class names of a weights file, which holds none itself."""

from __future__ import annotations

from pathlib import Path

from msldata.errors import UserError
from msldata.format import read_manifest
from msldata.storage import open_storage


def read_classes(location: str) -> tuple[str, ...]:
    """Class names in the order of the outputs.

    Args:
        location: shards of the dataset that the file was trained on, or a text file with one name per line.

    Raises:
        FileNotFoundError: there is nothing there.
        UserError: it is neither, or names none, or one twice.
    """
    file = Path(location).expanduser()
    if file.is_file():
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise UserError(f"{location}: not a text file; one class name per line is needed") from None
        classes = tuple(line.strip() for line in lines if line.strip())
    else:
        classes = read_manifest(open_storage(location)).classes
    if not classes:
        raise UserError(
            f"{location}: names no classes; give shards with a class list, or a file with one name per line"
        )
    for name in classes:
        if classes.count(name) > 1:
            raise UserError(f"{location}: names the class '{name}' twice")
    return classes
