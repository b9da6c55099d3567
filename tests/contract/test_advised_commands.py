"""Every command that a message, a docstring or a page of docs advises can be typed: its name, options and arguments."""

from __future__ import annotations

import ast
import re
import shlex

import pytest
import typer

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
    """The commands in a text: between backticks, or as far as a bare one seems to go."""
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


def test_the_parser_finds_faults():
    assert problem("msl evaluate CHECKPOINT SHARDS --out FILE") == "msl evaluate takes 1 arguments, not 2"
    assert problem("msl evaluate --chekpoint RUN") == "msl evaluate has no option --chekpoint"
    assert advised("x; run msl verify X; then") == ["msl verify X"]
    assert problem("msl verify X") == "" == problem("msl train --recipe NAME --data DIR")
