"""Names and paths are never read as markup, and reach the terminal without control characters."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.table import Table
from typer.testing import CliRunner

from msldata.console import SafeConsole, show, visible
from msldata.contract.publish import write_manifest
from msldata.storage import LocalStorage
from msltrain.__main__ import app
from tests.smallshards import write_images

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = sorted([*REPOSITORY.glob("msldata/**/*.py"), *REPOSITORY.glob("msltrain/**/*.py")])
MARKUP = re.compile(r"\[/?(bold|dim|italic|underline|red|green|yellow|blue|cyan|magenta)\b[^\]]*\]|\[/\]")
MAY_PRINT = {
    "msldata/commands/inspect.py": "JSON for programs, which escapes",
    "msltrain/commands/bench_stream.py": "JSON for programs, which escapes",
    "msltrain/commands/evaluate.py": "JSON for programs, which escapes",
    "msldata/contract/photograph.py": "lies beside model.py of an export",
    "msltrain/use/standalone.py": "becomes model.py of an export, a program of its own",
    "msltrain/grids/workers.py": "a job's log",
    "msltrain/demo/subprocesses.py": "a step's log",
}
HOSTILE = ("car [parked]", "[/x]", "[red]cat[/red]", "\x1b[31mcat\x1b[0m", "a\rb", "\u202etac", "\udcff")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_nothing_bypasses_the_consoles(path):
    """`msldata.console` reads no markup and lets no control character through; other ways to the terminal might."""
    name = path.relative_to(REPOSITORY).as_posix()
    if name == "msldata/console.py":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not MARKUP.search(node.value), f"{name}:{node.lineno}: use show(console, (text, style))"
        if isinstance(node, ast.ImportFrom) and name != "msldata/progress.py" and "rich" in (node.module or ""):
            torn = {"Progress", "Live"} & {one.name for one in node.names}
            assert not torn, f"{name}:{node.lineno}: use msldata.progress.Bars, which tears no lines"
        if isinstance(node, ast.Call):
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            markup = any(one.arg == "markup" and getattr(one.value, "value", True) for one in node.keywords)
            assert not markup and called not in ("Console", "from_markup", "rprint"), f"{name}:{node.lineno}: {called}"
            assert called != "echo", f"{name}:{node.lineno}: use show(console, …)"
            is_print = isinstance(node.func, ast.Name) and called == "print"
            assert not is_print or name in MAY_PRINT, f"{name}:{node.lineno}: use show(console, …)"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_shown_as_it_is(name):
    file = io.StringIO()
    console = SafeConsole(file=file, width=200, markup=False, force_terminal=True, color_system=None)
    table = Table("class")
    table.add_row(name)
    console.print(name)
    console.print(table)
    show(console, (name, "green"), f": {name}")
    shown = file.getvalue()
    assert shown.count(visible(name)) == 4 and not set("\x1b\r\u202e\udcff") & set(shown)


def test_what_is_visible():
    assert visible("café\tcar [parked]\n") == "café\tcar [parked]\n"
    assert visible("\x1b[31m\x07\x9b") == "\\x1b[31m\\x07\\x9b"


@pytest.mark.parametrize("command", ["info", "verify"])
def test_hostile_class_names_in_a_command(tmp_path, command):
    manifest = write_images(tmp_path / "data [1]", (4,))
    renamed = replace(manifest, classes=("car [parked]", "[/x]", "\x1b[31mcat"))
    write_manifest(LocalStorage(tmp_path / "data [1]"), renamed)
    result = CliRunner().invoke(app, [command, str(tmp_path / "data [1]")], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    assert "\x1b" not in result.output and "data [1]" in result.output
    if command == "info":
        assert "car [parked]" in result.output and "[/x]" in result.output and "\\x1b[31mcat" in result.output


def test_an_error_about_a_hostile_path(tmp_path):
    result = CliRunner().invoke(app, ["info", str(tmp_path / "[/x] \x1b[31m")])
    assert result.exit_code == 2 and "[/x] \\x1b[31m" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://anna:s3cret@host/x: not found", "https://***@host/x: not found"),
        ("s3://b/x?X-Amz-Signature=abc&part=2", "s3://b/x?***&part=2"),
        ("az://c/x?sv=1&sig=abc%3D", "az://c/x?sv=1&***"),
        ("http://host:80/a@b", "http://host:80/a@b"),
        ("mail anna@host", "mail anna@host"),
    ],
)
def test_passwords_in_addresses_are_left_out(text, shown):
    assert visible(text) == shown


@pytest.mark.parametrize("command", ["info", "verify", "evaluate", "predict"])
def test_no_command_echoes_a_password(tmp_path, command):
    place = "http://anna:s3cret@127.0.0.1:9/data"
    arguments = {"evaluate": ["--checkpoint", place, "--data", place], "predict": ["a.jpg", "--checkpoint", place]}
    (tmp_path / "a.jpg").write_bytes(b"x")
    for more in ([], ["one more", place]):
        words = [command, *arguments.get(command, [place]), *more]
        result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
        assert result.exit_code == 2 and "s3cret" not in result.output


def test_what_the_library_logs_is_shown_as_other_messages_are():
    program = """
import logging
import msltrain.__main__ as program
program._show_notes()
logging.getLogger("msltrain.stream").warning("%s is \x1b[31mred", "http://anna:s3cret@host/x")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0 and done.stdout == ""
    assert r"http://***@host/x is \x1b[31mred" in " ".join(done.stderr.split()) and "s3cret" not in done.stderr
