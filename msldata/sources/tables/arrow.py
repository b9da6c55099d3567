"""Arrow and parquet files, as Hugging Face ``datasets`` saves them: one of their columns may hold the images."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from msldata.errors import UserError, counted, few_of
from msldata.storage import FileInfo, LocalStorage, Storage, regular

if TYPE_CHECKING:
    import pyarrow as pa

_MAGIC = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG", ".png"), (b"RIFF", ".webp"), (b"GIF8", ".gif"), (b"BM", ".bmp"))


@dataclass(frozen=True, slots=True)
class ArrowRows:
    """The rows of one file."""

    rows: list[Mapping[str, Any]]
    image_column: str | None
    """The column that holds the images themselves; in ``rows`` it holds their names in ``EmbeddedImages``."""
    classes: dict[str, tuple[str, tuple[str, ...]]]
    """For each column whose values are positions in a list of names: the field of its objects that they are in, if it
    holds objects, and the list. If there is one such column, ``rows`` holds the names themselves."""


def read_arrow(folder: Storage, name: str) -> ArrowRows:
    """Read all but the images.

    Raises:
        ValueError: not a file of that kind. UserError: images inside a file at a remote place.
    """
    import pyarrow as pa

    from msldata.contract.parquet import UnreadableParquet

    try:
        table = _open_bytes(folder.read(name), name) if folder.path(name) is None else _open(str(folder.path(name)))
    except UnreadableParquet as error:
        raise ValueError(f"not a parquet file, or one that cannot be read ({error})") from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not an arrow file ({error})") from None
    images = [item.name for item in table.schema if _holds_images(item.type)]
    if len(images) > 1:
        raise ValueError(f"images in the columns {' and '.join(images)}; keep one of them")
    image_column = images[0] if images else None
    if image_column is not None and folder.path(name) is None:
        raise UserError(f"{folder.where(name)}: holds its images itself; copy it to this machine first")
    if len(set(table.column_names)) < table.num_columns:
        twice = next(one for one in table.column_names if table.column_names.count(one) > 1)
        raise ValueError(f"two columns are called {twice!r}; keep one of them")
    others = table.drop_columns(images).to_pylist() if images else table.to_pylist()
    features = _features(table.schema)
    named = {column: found for column in table.column_names if (found := _class_label(features.get(column)))}
    if len(named) == 1:
        ((column, (part, classes)),) = named.items()
        for row in others:
            row[column] = named_cell(row[column], part, classes)
    if image_column is not None:
        column = table.column(image_column)
        for number, row in enumerate(others):
            row[image_column] = f"{name}/{number:08d}{_suffix(column[number])}"
    return ArrowRows(others, image_column, named)


class EmbeddedImages(Storage):
    """Images inside arrow and parquet files, under the names ``FILE/ROW.jpg``.

    Args:
        folder: of the files, on this machine.
        column: the column with the images, each as its bytes or as the path of a file.
    """

    can_list = False

    def __init__(self, folder: Storage, column: str):
        self.folder = folder
        self.column = column
        self.url = folder.url

    def child(self, name: str) -> Storage:
        raise NotImplementedError("images in a file have no folders")

    def list_files(self) -> list[FileInfo]:
        raise NotImplementedError("images in a file are not listed")

    def exists(self, name: str) -> bool:
        return self.folder.exists(PurePosixPath(name).parent.as_posix())

    def read(self, name: str) -> bytes:
        path = PurePosixPath(name)
        file = self.folder.path(path.parent.as_posix())
        cell = _open(str(file)).column(self.column)[int(path.stem)].as_py() or {}
        if cell.get("bytes") is not None:
            return bytes(cell["bytes"])
        if cell.get("path"):
            there = Path(cell["path"])
            return LocalStorage(there.parent).read(there.name)
        raise FileNotFoundError(f"{self.where(name)}: the row has no image")

    def read_ranges(self, name: str, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        data = self.read(name)
        return [data[start : start + length] for start, length in zip(starts, lengths, strict=True)]

    def put(self, name: str, data: bytes | Path) -> None:
        raise NotImplementedError("images are only read")

    def delete(self, name: str) -> None:
        raise NotImplementedError("images are only read")

    def path(self, name: str = "") -> Path | None:
        return None

    def where(self, name: str) -> str:
        return self.folder.where(name)


def saved_splits(folder: Storage) -> dict[str, tuple[str, ...]]:
    """The files of each split of a folder that ``save_to_disk`` wrote, under ``""`` where there are no splits."""
    if folder.exists("dataset_dict.json"):
        splits = json.loads(folder.read("dataset_dict.json"))["splits"]
        return {split: _saved_files(folder, f"{split}/") for split in splits}
    if folder.exists("state.json") and folder.exists("dataset_info.json"):
        return {"": _saved_files(folder, "")}
    return {}


_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.parquet")


def refuse_missing_parts(files: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError where files of a split are not there: each says how many there are, as the hub names them."""
    for names in files.values():
        found = [match for name in names if (match := _PART.fullmatch(name))]
        for match in found:
            whole = {f"{match[1]}-{number:05d}-of-{match[3]}.parquet" for number in range(int(match[3]))}
            if missing := sorted(whole.difference(names)):
                raise ValueError(
                    f"of {counted(len(whole), 'file')} these are missing: {few_of(missing)}; fetch them too"
                )
            if other := next((one[0] for one in found if one[3] != match[3]), ""):
                raise ValueError(f"{match[0]} and {other} are of two divisions of one dataset; move one of them away")


def _saved_files(folder: Storage, below: str) -> tuple[str, ...]:
    state = json.loads(folder.read(f"{below}state.json"))
    if state.get("_indices_data_files"):
        raise UserError(
            f"{folder.where(below)}: rows were selected after saving; call flatten_indices() and save again"
        )
    return tuple(f"{below}{PurePosixPath(entry['filename']).name}" for entry in state["_data_files"])


def _open(path: str) -> pa.Table:
    """The file, mapped where it can be: an arrow file takes no memory, a parquet file as much as it holds."""
    facts = Path(path).stat()
    return _opened(path, (facts.st_mtime_ns, facts.st_size))


@lru_cache(maxsize=4)
def _opened(path: str, version: tuple[int, int]) -> pa.Table:
    """``version``: another one after every change, or a table that was mended would be the one from before."""
    import pyarrow as pa

    from msldata.contract.parquet import read_parquet

    if path.endswith(".parquet"):
        with open(path, "rb", opener=regular) as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if Path(path).stat().st_size else b""
        return read_parquet(data)  # type: ignore[arg-type]
    return pa.ipc.open_stream(pa.memory_map(path)).read_all()


def _open_bytes(data: bytes, name: str) -> pa.Table:
    import pyarrow as pa

    from msldata.contract.parquet import read_parquet

    return read_parquet(data) if name.endswith(".parquet") else pa.ipc.open_stream(pa.BufferReader(data)).read_all()


def _holds_images(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind) and any(item.name == "bytes" for item in kind)


def _features(schema: Any) -> Mapping[str, Any]:
    """What ``datasets`` notes about the columns in the file's own metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, Mapping) else {}


def _class_label(feature: Any) -> tuple[str, tuple[str, ...]] | None:
    """The names of a ``ClassLabel``, of a list of them, or of those in a list of objects, with their field there."""
    if isinstance(feature, list) and feature:
        feature = feature[0]
    if isinstance(feature, Mapping) and feature.get("_type") in ("Sequence", "List", "LargeList"):
        return _class_label(feature.get("feature"))
    if not isinstance(feature, Mapping):
        return None
    if feature.get("_type") == "ClassLabel":
        return "", _class_names(feature.get("names"))
    if "_type" in feature:
        return None
    inside = [(part, found[1]) for part, kind in feature.items() if (found := _class_label(kind)) and not found[0]]
    return inside[0] if len(inside) == 1 else None


def _class_names(names: Any) -> tuple[str, ...]:
    """Raises ValueError unless they are a list of different names."""
    known = names or []
    if not isinstance(known, list) or not all(isinstance(name, str) for name in known):
        raise ValueError("its class names are no list of names")
    if len(set(known)) < len(known):
        raise ValueError(f"two classes are called {next(name for name in known if known.count(name) > 1)!r}")
    return tuple(known)


def named_cell(value: Any, part: str, names: Sequence[str]) -> Any:
    """The names that the positions in a cell stand for, or names. Raises ValueError for anything else."""
    if isinstance(value, Mapping) and part in value:
        return named_cell(value[part], "", names)
    if isinstance(value, list):
        return [named_cell(item, part, names) for item in value]
    if value is None or value == -1:
        return None  # a row that was never labelled
    if isinstance(value, str) and value in names:
        return value
    if type(value) is not int:
        raise ValueError(f"{value!r} is not the index of a class")
    if not 0 <= value < len(names):
        raise ValueError(f"class index {value} of {len(names)}")
    return names[value]


def _suffix(cell: Any) -> str:
    start = cell["bytes"].as_py()[:4] if cell.is_valid and cell["bytes"].is_valid else b""
    return next((suffix for magic, suffix in _MAGIC if start.startswith(magic)), ".img")


def places(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows, each with its place in words."""
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))
