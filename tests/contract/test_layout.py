"""The shape of the repository: imports point down, files stay short, nothing private is committed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from msltrain.hub import space

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = sorted([*REPOSITORY.glob("msldata/**/*.py"), *REPOSITORY.glob("msltrain/**/*.py")])
SHARED_WITH_TRAINING = ("errors", "python_words", "console", "progress", "pages", "storage", "workers", "contract")
"""All that msltrain may know of msldata: it must run where no dataset was ever converted."""

# A package may import from itself and from those named before it.
ORDER = {
    "msldata": (
        *("errors", "python_words", "console", "progress", "pages", "storage", "workers", "contract", "synthetic"),
        *("sources", "build", "masks", "inspect", "api", "commands", "__main__"),
    ),
    "msltrain": (
        *(
            "typed_values",
            "settings",
            "registered",
            "pages",
            "hosts",
            "measures",
            "stream",
            "config",
            "models",
            "recipes",
            "runs",
        ),
        *("training", "evaluation", "use", "hub", "robustness", "report", "grids", "demo", "reproduce"),
        *("api", "commands", "__main__"),
    ),
}
APART = {"training", "evaluation", "use"}
"""Of these none imports another: what they share stands above them."""


def imports_of(path: Path) -> set[str]:
    """Absolute names of the modules a file imports, at any depth of its code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return found


def layer_of(module: Sequence[str]) -> int:
    order = ORDER[module[0]]
    assert module[1] in order, (
        f"{'.'.join(module)} has no place: add it to ORDER, or put it into a package that has one"
    )
    return order.index(module[1])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_imports_point_down(path):
    own = path.relative_to(REPOSITORY).with_suffix("").parts
    for name in imports_of(path):
        other = name.split(".")
        assert other[0] != "cli", f"{path} imports the command line"
        if own[0] == "msldata":
            assert other[0] not in ("torch", "torchvision", "timm", "msltrain"), f"{path} imports {name}"
        if other[0] not in ORDER or len(other) == 1 or own[1] in ("__init__", "__main__"):
            continue
        if other[0] == own[0]:
            assert layer_of(other) <= layer_of(own), f"{path} imports {name}, which lies above it"
            assert own[1] not in APART or other[1] not in APART - {own[1]}, f"{path} imports {name}"
        else:
            allowed = (*SHARED_WITH_TRAINING, "commands") if own[1] == "commands" else SHARED_WITH_TRAINING
            assert other[1] in allowed, f"{path} imports {name}"


def test_rooms_hold_a_handful_of_files():
    for folder in {path.parent for path in MODULES}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 16, f"{folder} holds {len(files)} files"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_files_stay_readable(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 500, f"{path} has {len(lines)} lines; split it"
    if lines:
        assert ast.get_docstring(ast.parse("\n".join(lines))), f"{path} does not say what it is for"


def test_help_needs_no_heavy_library():
    code = (
        "import sys, msltrain.__main__; "
        "heavy = {'torch', 'timm', 'matplotlib', 'pycocotools', 'pyarrow', 'obstore'} & set(sys.modules); "
        "sys.exit(f'the program imports {sorted(heavy)} at start' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=60)


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [REPOSITORY / name for name in listing.stdout.split() if (REPOSITORY / name).exists()]


def test_no_data_and_no_private_paths_are_committed():
    private = re.compile(r"(/(home|root|work)/[a-z]|--(extra-)?index-url)")
    for path in tracked_files():
        assert path.stat().st_size < 400_000, f"{path} is {path.stat().st_size} bytes: data does not belong here"
        if path.suffix in {".py", ".md", ".toml", ".txt", ".json", ""} and path != Path(__file__).resolve():
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not private.search(text), f"{path} holds a path or address of one machine: {private.search(text)}"


def test_pages_and_styles_are_part_of_the_wheel():
    shipped = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    listed = {f"{package.replace('.', '/')}/{name}" for package, names in shipped.items() for name in names}
    names = (path.relative_to(REPOSITORY) for path in tracked_files() if path.suffix != ".py")
    assert listed == {name.as_posix() for name in names if name.parts[0] in ("msldata", "msltrain")}


def test_a_space_promises_what_the_program_promises():
    promised = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    assert set(space._NEEDS) <= set(promised)


def test_constraints_are_exact_and_carry_no_address():
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!-]+", line), line
