"""What is installed: the two packages with their pages, and a program that no file of the user's can stand for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        if not name.startswith(("tests/", "benchmarks/")) and (REPOSITORY / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (found,) = place.glob("*.whl")
    return found


def test_the_wheel_holds_the_two_packages_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"msldata", "msltrain"}
    tracked = subprocess.run(
        ["git", "ls-files", "msldata", "msltrain"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert set(tracked.stdout.split()) <= set(names)


def test_installed_it_runs_beside_files_that_bear_its_names(wheel, tmp_path):
    site, work = tmp_path / "site", tmp_path / "work"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(pip, check=True)
    work.mkdir()
    for name in ("cli", "msltrain", "msldata"):
        (work / f"{name}.py").write_text('print("mine")\n')
    environment = {**os.environ, "PYTHONPATH": str(site)}
    for arguments in (("--version",), ("synthesize", "--out", "drawn", "--help"), ("train", "--help")):
        done = subprocess.run(
            [str(site / "bin" / "msl"), *arguments], cwd=work, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0 and "mine" not in done.stdout, done.stderr
    # The steps of the demo are processes of their own: they must be the same program, not the user's file.
    code = (
        "import sys; sys.path[:] = [p for p in sys.path if p]; import pathlib, subprocess, msltrain\n"
        "from msltrain.hosts.program import program_command, program_environment\n"
        "assert pathlib.Path(msltrain.__file__).is_relative_to(sys.argv[1]), msltrain.__file__\n"
        "subprocess.run(program_command('--version'), env=program_environment(), check=True)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(site)], cwd=work, env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith("msltrain ") and "mine" not in done.stdout, done.stderr
