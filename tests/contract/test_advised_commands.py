"""Every command that a message, a docstring or a page of docs advises can be typed: its name, options and arguments."""

from __future__ import annotations

import ast
import re
import shlex

import pytest
import typer
from typer.testing import CliRunner

from msldata.commands.program import of_other_commands
from msldata.errors import UserError
from msltrain.__main__ import app
from tests.contract.test_layout import MODULES, REPOSITORY

PROGRAM = typer.main.get_command(app)
COMMANDS = PROGRAM.commands
_QUOTED = re.compile(r"`(msl [a-z][^`]*)`")
_BARE = re.compile(
    r"(?<![\w`./-])(msl (?:" + "|".join(sorted(COMMANDS, key=len, reverse=True)) + r")(?![\w-])[^`\n;,()]*)"
)
_NOT_TYPED = re.compile(
    r"  | #| first$| first and| to | and | or | is | where | with | on | in | as | does | can | again"
)


def advised(text: str) -> list[str]:
    """The commands in a text: between backticks, or as far as a bare one seems to go, over continued lines too."""
    text = re.sub(r"\\\n\s*", "", text)
    quoted = _QUOTED.findall(text)
    bare = [_NOT_TYPED.split(command)[0] for command in _BARE.findall(_QUOTED.sub("", text))]
    return [command.rstrip(" .:…").replace("…", "X") for command in quoted + bare]


def texts(source: str) -> list[str]:
    """All strings of a program, those in pieces put together, with X for what is filled in."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values))
    return found


def problem(command: str) -> str:
    """Why it cannot be typed; empty if it can."""
    name, *words = shlex.split(command, comments=True)[1:]
    if name not in COMMANDS:
        return f"no command {name}"
    known = {option: one for one in COMMANDS[name].params for option in (*one.opts, *one.secondary_opts)}
    room = [one.nargs for one in COMMANDS[name].params if one.param_type_name == "argument"]
    num_given, waiting = 0, False
    for word in words:
        if word.startswith("--"):
            option, _, value = word.partition("=")
            if option != "--help" and option not in known:
                return f"msl {name} has no option {option}"
            waiting = option != "--help" and not known[option].is_flag and not value
        elif waiting:
            waiting = False
        else:
            num_given += 1
    if num_given > len(room) and -1 not in room:
        return f"msl {name} takes {len(room)} arguments, not {num_given}"
    return ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_what_messages_advise_can_be_typed(path):
    wrong = {c: why for text in texts(path.read_text(encoding="utf-8")) for c in advised(text) if (why := problem(c))}
    assert not wrong


def test_what_pages_advise_can_be_typed():
    pages = [*REPOSITORY.glob("docs/*.md"), REPOSITORY / "CHANGELOG.md"]
    wrong = {c: why for page in pages for c in advised(page.read_text(encoding="utf-8")) if (why := problem(c))}
    assert pages and not wrong


PLAIN = {"dataset", "entry.dataset", "first.split", "repo"} | {"models", "named", "out", "place", "shards"}
"""Filled into commands: names of our own, in which no space can be; and what was quoted where it was made."""


def filled_in(source: str) -> set[str]:
    """The expressions that a program fills into the commands that it advises."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            text = "".join(
                part.value if isinstance(part, ast.Constant) else f"\x00{number}\x01"
                for number, part in enumerate(node.values)
            )
            numbers = re.findall("\x00(\\d+)\x01", " ".join(advised(text)))
            found |= {ast.unparse(node.values[int(number)].value) for number in numbers}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_a_place_in_an_advised_command_is_quoted(path):
    names = PLAIN | {
        "inspect/doctor.py": {"split"},
        "commands/recipes.py": {"name"},
        "build/copies.py": {"first", "second"},
        "runs/run_places.py": {"called"},
    }.get("/".join(path.parts[-2:]), set())
    found = filled_in(path.read_text(encoding="utf-8")) - names
    assert not {one for one in found if not re.match(r"shlex\.(quote|join)\(|out_option\(", one)}


def test_a_folder_with_a_space_can_be_pasted_back(tmp_path):
    folder = tmp_path / "Meine Fotos (Köln, 2024)"
    folder.mkdir()
    result = CliRunner().invoke(app, ["train", str(folder)], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert result.output.endswith(f"build them first: msl build-shards '{folder}' --name NAME\n")


_OPTION = re.compile(r"(?<![\w/=`-])--[a-z][a-z-]*[a-z](?![\w-])")
OF_OTHERS = {
    "msldata/build/other_tars.py": {"--sort"},  # tar's
    "msldata/workers/ray.py": {"--head"},  # ray's
    "msltrain/hosts/interrupt.py": {"--signal"},  # sbatch's
}
"""Options of other programs, by module."""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_every_option_that_is_advised_is_one(path):
    params = [*PROGRAM.params, *(one for command in COMMANDS.values() for one in command.params)]
    known = {option for one in params for option in (*one.opts, *one.secondary_opts)} | {"--help"}
    known |= OF_OTHERS.get(path.relative_to(REPOSITORY).as_posix(), set())
    said = {option for text in texts(path.read_text(encoding="utf-8")) for option in _OPTION.findall(text)}
    assert said <= known


@pytest.mark.parametrize("running", sorted(COMMANDS))
def test_a_message_says_whose_an_option_is_that_the_command_lacks(running):
    said = of_other_commands("a server; give --cache DIR, or see `msl train --weights X` (--sort)", COMMANDS, running)
    has = "--cache" in {option for one in COMMANDS[running].params for option in one.opts}
    assert said == (
        "" if has else " (--cache is an option of msl train, msl bench-stream, msl evaluate, msl robustness)"
    )


def test_predict_says_whose_the_cache_is(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise UserError("this web server only sends whole files; give --cache DIR")

    monkeypatch.setattr("msltrain.use.read_images.find_images", refuse)
    (tmp_path / "model.pth").touch()
    command = ["predict", "--checkpoint", str(tmp_path / "model.pth"), "a.jpg"]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert "give --cache DIR (--cache is an option of msl train, " in result.output


def test_the_parser_finds_faults():
    assert problem("msl evaluate CHECKPOINT SHARDS --out FILE") == "msl evaluate takes 1 arguments, not 2"
    assert problem("msl evaluate --chekpoint RUN") == "msl evaluate has no option --chekpoint"
    assert advised("x; run msl verify X; then") == ["msl verify X"]
    assert problem("msl verify X") == "" == problem("msl train --recipe NAME --data DIR")
