"""What the documentation promises: its commands parse, its links lead somewhere, its first page stays short."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from click import Command

from msldata.errors import UserError
from msltrain.__main__ import app
from msltrain.recipes import RECIPES, configure
from tests.contract.test_layout import tracked_files

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PAGES = sorted(
    [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "shards/README.md")] + [*DOCS.glob("*.md")]
)
NAMES = [page.relative_to(REPOSITORY).as_posix() for page in PAGES]

FENCE = re.compile(r"^```(?P<kind>\w*)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`(?P<text>msl [^`\n]+)`(?!`)")
LINK = re.compile(r"(?<!`)!?\[[^\]\n]*\]\((?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)")

PROGRAM = typer.main.get_command(app)


def blocks(page: Path, kind: str) -> list[str]:
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [match["text"] for match in found if match["kind"] == kind]


def commands(page: Path) -> list[list[str]]:
    """The words of every line of a bash block that calls the program, also through torchrun."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for program in ("msl", "msltrain", "cli.py"):
                if program in words and (words[0] in ("msl", "srun", "torchrun") or words[1:2] == ["cli.py"]):
                    found.append(words[words.index(program) + 1 :])
                    break
    return found


def subcommand(words: list[str]) -> tuple[Command, list[str]]:
    name, *rest = words
    assert name in PROGRAM.commands, f"msl has no command '{name}'"
    return PROGRAM.commands[name], rest


@pytest.mark.parametrize("name", NAMES)
def test_commands_parse(name):
    for words in commands(REPOSITORY / name):
        if words[0].startswith("-"):
            continue
        command, rest = subcommand(words)
        try:
            command.make_context(words[0], [word for word in rest if word != "…"])
        except SystemExit as error:  # --help
            assert error.code == 0, words
        except Exception as error:
            pytest.fail(f"{name}: msl {' '.join(words)}: {error}")


def test_commands_that_need_nothing_parse():
    """Also their defaults: a path that was no text once ended `make demo` with a traceback."""
    for name, command in PROGRAM.commands.items():
        if not any(parameter.required for parameter in command.params):
            command.make_context(name, [])


@pytest.mark.parametrize("name", NAMES)
def test_commands_in_sentences_exist(name):
    for match in SPAN.finditer(FENCE.sub("", (REPOSITORY / name).read_text(encoding="utf-8"))):
        words = match["text"].split()[1:]
        if words[0].startswith("-") or words[0] in ("COMMAND", "…"):
            continue
        command, rest = subcommand(words)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in rest:
            if word.startswith("--"):
                assert word.partition("=")[0] in {*known, "--help"}, f"{name}: {match['text']}: no such option"


@pytest.mark.parametrize("name", NAMES)
def test_recipes_and_settings_exist(name):
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    text = "\n".join(line for line in text.splitlines() if not line.startswith(("+", "-", "Try it: ")))
    for recipe in re.findall(r"--recipe ([a-z][\w-]+)(?![\w/-])", text):
        assert recipe in RECIPES, f"{name}: no recipe '{recipe}'"
    for setting in re.findall(r"--set ([a-z_]+\.[a-z_]+=[\w.]+)", text):
        if setting == "section.field=value":
            continue
        try:
            configure("msl-c-voc2007", settings=[setting.rstrip(".")])
        except UserError as error:
            # A field whose value asks for a second setting is named by its message; one that is unknown is a fault.
            assert "no field" not in str(error) and "no section" not in str(error), f"{name}: {setting}: {error}"


def anchors(page: Path) -> set[str]:
    """As GitHub and the site make them of headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()).strip() for title in titles)
    return {re.sub(r" ", "-", title) for title in plain}


@pytest.mark.parametrize("page", [path for path in tracked_files() if path.suffix == ".md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for match in LINK.finditer(text):
        target, anchor = match["target"], (match["anchor"] or "").removeprefix("#")
        if "://" in target:
            continue
        place = (page.parent / target).resolve() if target else page
        assert place.exists(), f"{page.name}: {match[0]} leads nowhere"
        assert place.is_relative_to(REPOSITORY), f"{page.name}: {match[0]} leads out of the repository"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{page.name}: {match[0]}: no such heading"


def test_the_first_page_is_short():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900
    prose = FENCE.sub("\n\n", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))
    prose = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", prose)
    lines = [line for line in prose.splitlines() if not line.startswith(("|", "#"))]
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        for sentence in re.split(r"(?<=[.!?])\s+|\n- ", paragraph):
            assert len(sentence.split()) <= 30, f"{len(sentence.split())} words: {sentence}"


def test_every_page_is_in_the_menu():
    menu = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    missing = [page.name for page in DOCS.glob("*.md") if page.name not in menu.replace("- ", "").split()]
    assert not missing, f"add to nav of mkdocs.yml: {missing}"


def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocstrings", reason="install the extra 'docs'")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    site = tmp_path / "site"
    reference = (site / "reference" / "index.html").read_text(encoding="utf-8")
    assert 'id="msltrain.Loader"' in reference and "Example:" not in reference
    assert "load_state_dict" in reference and "files/examples/plain_pytorch.py.txt" in (
        site / "python" / "index.html"
    ).read_text("utf-8")
    assert "shards/reef/trainval" in (site / "tutorial" / "index.html").read_text(encoding="utf-8")
    assert "dataset.json" in (site / "contract" / "index.html").read_text(encoding="utf-8")


USE = """
import torch
from msltrain.models.build import build_model
from msltrain.recipes import configure
config = configure("pocket", settings=["model.head=mean", "model.weights="])
model = build_model(config.model, 3, image_size=64).eval()
assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
"""


def test_the_diffs_for_contributors_apply_and_work(ready_programs, tmp_path):
    tree = tmp_path / "tree"
    for package in ("msldata", "msltrain"):  # with what is compiled already, which goes by the time of the source
        shutil.copytree(REPOSITORY / package, tree / package)
    shutil.copy(REPOSITORY / "cli.py", tree)
    diffs = blocks(REPOSITORY / "CONTRIBUTING.md", "diff")
    assert len(diffs) == 2
    for diff in diffs:
        done = subprocess.run(["git", "apply", "-"], cwd=tree, input=diff, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        (photos / f"{number}.png").write_bytes(_png(number))
        (photos / f"{number}.txt").write_text("cat\n" if number else "cat\ndog\n")
    environment = {"PYTHONPATH": str(tree), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    for words in (["cli.py", "build-shards", photos, "--name", "mine", "--out", tmp_path / "out"], ["-c", USE]):
        done = subprocess.run(
            [ready_programs / "ready-python", *words],
            cwd=tree,
            env=environment,
            text=True,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out/mine/all/dataset.json").is_file()


def _png(number: int) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (32, 24), (60 * number, 90, 30)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
def test_the_notebook_runs():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(DOCS / "tour.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    text = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "nothing wrong" in text and len(re.findall(r"mAP \d+\.\d %", text)) == 4
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    assert sum("image/png" in output.data for output in pictures) == 4


def test_the_notebook_shows_nothing_of_one_machine():
    assert not re.search(r"(?<![\w.])/(home|root|work|tmp)/", (DOCS / "tour.ipynb").read_text(encoding="utf-8"))
