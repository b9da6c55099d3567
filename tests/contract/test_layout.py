"""The shape of the repository: imports point down, files stay short, nothing private is committed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = sorted([*REPOSITORY.glob("msldata/**/*.py"), *REPOSITORY.glob("msltrain/**/*.py")])
SHARED_WITH_TRAINING = {
    "msldata.console",
    "msldata.errors",
    "msldata.contract.format",
    "msldata.storage",
    "msldata.contract.keepmask",
}
"""All that msltrain may know of msldata: it must run where no dataset was ever converted."""

# Lower layers first; a module may import from its own layer and from those before it.
MSLTRAIN_LAYERS = (
    (
        "stream",
        "losses",
        "ranking",
        "metrics",
        "predictions",
        "distributed",
        "events",
        "interrupt",
        "launch",
        "steps",
        "display",
    ),
    ("config", "interval", "holdout"),
    ("strata", "bootstrap", "thresholds", "testtime", "measured"),
    ("models", "optim", "siamese", "sharding", "recipes"),
    ("checkpoint", "rundir", "runmirror", "trackers"),
    ("anycheckpoint", "classnames", "forward", "objectboxes", "holes", "pictures", "placescores", "overlay"),
    ("learner", "traindata", "resume", "validation", "evaluate", "predict", "recalibrate", "released"),
    ("robustness", "study", "studymodel", "unfinished", "curves", "modelcard", "export"),
    ("trainer", "series", "report", "serve", "predicted"),
    ("demo", "grid"),
    ("reproduce",),
    ("commands",),
)


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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_packages_know_only_what_they_may(path):
    package = path.relative_to(REPOSITORY).parts[0]
    for name in imports_of(path):
        if package == "msldata":
            assert not re.match(r"(torch|torchvision|timm|msltrain)(\.|$)", name), f"{path} imports {name}"
        elif re.match(r"msldata(\.|$)", name) and name != "msldata":
            assert any(name == known or name.startswith(f"{known}.") for known in SHARED_WITH_TRAINING), (
                f"{path} imports {name}"
            )
        assert not name.startswith("cli"), f"{path} imports the command line"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_files_stay_readable(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 500, f"{path} has {len(lines)} lines; split it"
    if lines:
        assert ast.get_docstring(ast.parse("\n".join(lines))), f"{path} does not say what it is for"


def layer_of(module: str) -> int:
    first = module.split(".")[1]
    for level, names in enumerate(MSLTRAIN_LAYERS):
        if first in names:
            return level
    raise AssertionError(f"{module} has no layer: add it to MSLTRAIN_LAYERS")


def test_training_imports_point_down():
    for path in MODULES:
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        if parts[0] != "msltrain" or parts == ("msltrain", "__init__"):
            continue
        own = layer_of(".".join(parts))
        for name in imports_of(path):
            if name.startswith("msltrain."):
                assert layer_of(name) <= own, f"{path} imports {name}, which lies above it"


def test_help_needs_no_heavy_library():
    code = (
        "import sys, cli; "
        "heavy = {'torch', 'timm', 'matplotlib', 'pycocotools', 'pyarrow', 'obstore'} & set(sys.modules); "
        "sys.exit(f'cli imports {sorted(heavy)} at start' if heavy else 0)"
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


def test_constraints_are_exact_and_carry_no_address():
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!-]+", line), line
