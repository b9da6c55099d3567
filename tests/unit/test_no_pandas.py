"""The programs do without pandas where pyarrow would import it, and leave it to everybody else."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOOK = "import sys; from msldata.workers.no_pandas import hide_pandas; hide_pandas(); hide_pandas(); "
CONVERT = "import pyarrow as pa; pa.array([1, 2]).to_numpy(); pa.table({'a': [[1.0], []]}).to_pylist(); "


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_conversions_do_without():
    pytest.importorskip("pandas")
    assert run(f"{CONVERT}import sys; print('pandas' in sys.modules)") == "True", "pyarrow needs no hiding any more"
    # Called from a module of ours, as the programs do.
    ours = f"exec(compile({CONVERT!r}, 'ours', 'exec'), {{'__name__': 'msltrain.measures'}}); "
    assert run(f"{LOOK}{ours}print('pandas' in sys.modules)") == "False"


def test_others_get_it():
    pytest.importorskip("pandas")
    assert run(f"{LOOK}import pandas; print(pandas.Series([1, 2]).sum())") == "3"
    assert (
        run(f"{LOOK}print(sum(name == '_NoPandas' for name in (type(one).__name__ for one in sys.meta_path)))") == "1"
    )
