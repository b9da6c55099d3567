"""Parquet without pandas, which pyarrow would import for nothing."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder

_ASKING = ("msldata", "msltrain", "pyarrow")


class _NoPandas(MetaPathFinder):
    """Hides pandas from pyarrow, but from nobody else."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname != "pandas":
            return
        frame = sys._getframe(1)
        while frame.f_back is not None and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] in _ASKING:
            raise ModuleNotFoundError("not needed by pyarrow", name=fullname)


def hide_pandas() -> None:
    """Spare this process a quarter of a second: to turn a list into an array, or an array into numpy's, pyarrow checks
    whether it is a pandas Series and, if pandas is installed, imports it for that. (It is C that imports: the caller's
    frame is ours.) For programs of our own; a library must not change what others import.
    """
    if not any(isinstance(finder, _NoPandas) for finder in sys.meta_path):
        sys.meta_path.insert(0, _NoPandas())
