"""Every command block of the README and of the docs runs in bash, page by page, from top to bottom in one folder.

The folder holds what the pages take for granted (`made`); object store and hub are stand-ins on loopback. `SMALLER`
says what is typed otherwise than it is printed, and `NOT_RUN` what is not typed, and why.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import yaml
from safetensors.torch import save

from tests import hubserver, readyprogram, s3server
from tests.contract.test_docs import FENCE, NAMES, REPOSITORY
from tests.integration.test_own_photographs import photographs
from tests.tinydata import make_coco
from tests.workspace import make_workspace

SETTINGS = ["optim.num_epochs=1", "stream.batch_size=8", "stream.image_size=32", "model.backbone=test_resnet"]
FAST = " ".join(f"--set {setting}" for setting in SETTINGS)
SMALLER = {
    r"\\\n\s*": "",
    r"(?m)[ \t]+# .*$": "",
    r"\b(msl|msltrain) train .*": rf"\g<0> {FAST}",
    r"\bmsl ablate .*": rf"\g<0> --seeds 0 {FAST} --set model.weights=",
    r"AWS_(\w+)=…": r"AWS_\1=$AWS_\1",
    r"--generate \d+": "--generate 24 --size 32 --per-subset 0",
    r"--num-train 600 --num-test 200": "--num-train 24 --num-test 12",
    r"\bmsl bench-stream .*": r"\g<0> --image-size 32 --seconds 0.2",
    r"\bmsl reproduce .*": r"\g<0> --dry-run",  # days of a GPU; test_reproduce runs the smoke scale
    r"\bruns/coco\b": "runs/coco-$RANDOM",  # each a way of its own to the same run
    r"--weights lvd1689m": "--weights r160_in1k",
    r"--nnodes 2 --nproc-per-node 8": "--nnodes 1 --nproc-per-node 2",
    r"--rdzv-endpoint \S+": "--rdzv-endpoint 127.0.0.1:0",
    r"\bSOURCE\b": "photographs",
    r"\bFOLDER\b": "datasets/other_tars",
    r"\bFILE\b": "runs/other",
    r"--ray-address auto": "--ray-address local",
    r"/scratch/|(?<= )/cache": "scratch/",
    r'revision="v2"': 'revision="main"',
    r'recipe\("own", (.*)\)': rf'recipe("own", \1, settings={SETTINGS})',
}
"""What is printed → what is typed: small data, one epoch, this host."""

AT_ONCE = {
    r" --processes 2": " --processes 1",
    r" --engine ray --ray-address local": "",
    r"torchrun .* msltrain": "msl",
    r"\bmsl ablate .*": r"\g<0> --dry-run",
}
"""What the default suite leaves to `slow`, and to tests of their own: to start further interpreters."""

LONG = ("docs/after-training.md", "docs/hub.md", "docs/own-photographs.md")
"""Pages that run as `slow` alone; what they show has tests of its own: test_export, test_hub, test_own_photographs."""

BY_OTHER_TESTS = {
    ("docs/python.md", ""): "integration/test_public_face.py::test_the_page_on_python_runs_from_top_to_bottom",
    ("docs/evaluation.md", "import sys"): "integration/test_report_command.py::test_the_script_of_the_docs_finds",
    ("docs/recipes.md", "msl import-checkpoint"): "golden/test_released.py::test_an_imported_checkpoint_runs_like",
    ("docs/runs.md", "torchrun"): "integration/test_processes.py::test_two_hosts_by_the_real_torchrun",
    ("CONTRIBUTING.md", "diff"): "contract/test_docs.py::test_the_diffs_for_contributors_apply_and_work",
}
"""Page and beginning of the block → beginning of the test that runs it."""

NOT_RUN = {
    ("docs/after-training.md", "const {"): "JavaScript that needs npm's sharp and onnxruntime-node",
    ("docs/data.md", "datasets/"): "a listing",
    ("docs/tutorial.md", "python3 -m venv"): "the installation, which `make` has done before this test runs",
    ("CONTRIBUTING.md", "make test"): "the suite would run itself",
    ("CONTRIBUTING.md", "python -m pytest"): "the suite would run itself",
    ("CONTRIBUTING.md", "make mutants"): "hours",
    ("shards/README.md", "SELECT"): "DuckDB is not among the test packages",
}
"""Page and beginning of the block → why it cannot run here; what is bash is still parsed."""

PREPARED = f"""
cp -r photos photographs
cp -r photos new-photographs
ls photos/*.jpg > list.txt
mkdir shards/mydata
cp -r shards/voc2007/trainval shards/mydata/all
msl build-shards datasets/COCO2014 > log
msl train --recipe demo --run runs/msl {FAST} >> log
for name in baseline base other msl-c-voc2007; do cp -r runs/msl runs/$name; done
"""
"""What is there before a page is begun."""
BEFORE = {
    "docs/hub.md": "msl build-shards photos --name mine > log; msl train mine >> log",
    "docs/tutorial.md": "rm -r datasets shards runs",
    "docs/recipes.md": "rm -r runs",
}
"""And what this page takes for granted besides, or must not find."""

SHELL = r"""
set -e
make() { command make --dry-run --directory "$REPOSITORY" "$@"; }
srun() { while [[ $1 == -* ]]; do shift; done; "$@"; }
scontrol() { echo "$@"; }
hf() { command hf "$@" --help; }
pip() { [[ $2 =~ \[(.*)\] ]] && grep -q "^${BASH_REMATCH[1]} = " "$REPOSITORY/pyproject.toml"; }
msl() {
    if [ "$1" != serve ]; then command msl "$@"; return; fi
    command msl "$@" --port 0 > serving & local server=$!
    until grep http: serving; do kill -0 $server; sleep 0.05; done
    kill -INT $server
    wait $server
}
SLURM_ARRAY_TASK_ID=1 SLURM_ARRAY_TASK_COUNT=1 SLURM_JOB_ID=7 SLURM_JOB_NODELIST=host-a
"""
"""Stand-ins for what is not here: a scheduler, an installation, the reader who opens the page and presses Ctrl-C."""


def blocks(name: str) -> list[tuple[str, str]]:
    """Language and text of every fenced block of a page."""
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    return [(match["kind"], match["text"]) for match in FENCE.finditer(text)]


def entry(table: dict[tuple[str, str], str], name: str, text: str) -> str:
    return next((why for (page, start), why in table.items() if page == name and text.startswith(start)), "")


def runnable(name: str) -> list[tuple[str, str]]:
    others = {**BY_OTHER_TESTS, **NOT_RUN}
    return [(kind, text) for kind, text in blocks(name) if not entry(others, name, text)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """An object store with the bucket ``bucket``, a hub with the weights of one network, the program on the PATH."""
    folder = tmp_path_factory.mktemp("around")
    (folder / "s3/bucket").mkdir(parents=True)
    with s3server.running(folder / "s3") as s3, hubserver.running() as hub:
        weights = save(timm.create_model("test_resnet").state_dict())
        hub.large[hashlib.sha256(weights).hexdigest()] = weights
        hub.repositories["model", "timm/test_resnet.r160_in1k"] = repository = hubserver.Repository()
        repository.commit({"model.safetensors": weights})
        own = {"HOME": str(folder), "REPOSITORY": str(REPOSITORY), "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"}
        own |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": hubserver.TOKEN, "HF_HOME": str(folder / "hf")}
        own |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        environment = {**os.environ, **s3.environment, **own}
        with readyprogram.running(folder, environment) as programs:
            yield environment | {"PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"}


def type_in(text: str, folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-c", SHELL + text], cwd=folder, env=environment, timeout=600,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stdout}"


@pytest.fixture(scope="module")
def made(tmp_path_factory, environment) -> Path:
    """What the pages take for granted: raw data, shards, masks, photographs, and runs of one model by many names."""
    root = make_workspace(tmp_path_factory.mktemp("made"))
    for split in ("train2014", "val2014"):
        numbers = range(1, 41)
        images = [{"id": n, "file_name": f"{n}.jpg", "width": 24, "height": 16} for n in numbers]
        boxes = [{"id": n, "image_id": n, "category_id": 1 + n % 2, "bbox": [1, 1, 9, 9]} for n in numbers]
        boxes = [box | {"area": 81, "iscrowd": 0} for box in boxes]
        names = [{"id": 1, "name": "bird"}, {"id": 2, "name": "boat"}]
        make_coco(root / "datasets/COCO2014", images, boxes, names, split)
    shutil.rmtree(root / "photos")
    photographs(root / "photos")
    type_in(PREPARED, root, environment)
    return root


def script(kind: str, text: str) -> str:
    """What bash runs of a block."""
    if kind == "yaml":
        [container] = yaml.safe_load(text)["spec"]["template"]["spec"]["containers"]
        text = shlex.join(["msl", *container["args"]])
    for printed, typed in SMALLER.items():
        text = re.sub(printed, typed, text)
    return f"ready-python <<'EOF'\n{text}EOF" if kind == "python" else text


def test_nothing_is_excepted_that_is_not_there():
    for page, start in (*BY_OTHER_TESTS, *NOT_RUN):
        assert any(text.startswith(start) for _, text in blocks(page)), f"{page} has no block that begins: {start}"
    for test in BY_OTHER_TESTS.values():
        file, _, name = test.partition("::")
        assert f"def {name}" in (REPOSITORY / "tests" / file).read_text(encoding="utf-8"), f"{test} is no test"


@pytest.mark.parametrize("name", NAMES)
def test_every_block_runs_or_says_why_not(name):
    for kind, text in runnable(name):
        assert kind in ("bash", "python", "yaml"), f"{name}: nothing here runs this block:\n{text}"
    for kind, text in blocks(name):
        if kind == "bash":
            subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    outside = FENCE.sub("", (REPOSITORY / name).read_text(encoding="utf-8"))
    assert not re.search(r"^(    |\t)(msl|make|pip|python|torchrun) ", outside, re.MULTILINE), "fence it as ```bash"


@pytest.mark.parametrize("code", [0, 2, 75])
@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name in NAMES for _, text in blocks(name) if "scontrol requeue" in text]
)
def test_a_job_ends_as_its_run_does_and_only_goes_back_when_it_should(name, text, code):
    """A script's exit code is that of its last line: `[ … ] && …` once made every finished job a failed one."""
    typed = f"{SHELL}set +e\nmsl() {{ return {code}; }}\ntorchrun() {{ return {code}; }}\n{text}"
    done = subprocess.run(["bash", "-c", typed], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stdout == ("requeue 7\n" if code == 75 or ("torchrun" in text and code) else "")


@pytest.mark.parametrize(
    ("name", "at_once"),
    [
        *(pytest.param(name, True, id=name) for name in NAMES if runnable(name) and name not in LONG),
        *(pytest.param(name, False, id=f"{name} whole", marks=pytest.mark.slow) for name in NAMES if runnable(name)),
    ],
)
def test_a_page_runs_from_top_to_bottom(name, at_once, made, environment, tmp_path):
    here = shutil.copytree(made, tmp_path / "here")
    type_in(script("bash", BEFORE.get(name, "")), here, environment)
    for kind, text in runnable(name):
        typed = script(kind, text)
        for several, one in AT_ONCE.items() if at_once else ():
            typed = re.sub(several, one, typed)
        type_in(typed, here, environment)
