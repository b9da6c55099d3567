"""What mkdocs does not do by itself: pages from files that lie elsewhere, links to them, and examples as code.

mkdocs runs the functions as hooks; mkdocstrings loads the class as an extension. README.md is the first page, the
contract is the README of shards/: each text exists once.
"""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

PAGES = {
    "README.md": "index.md",
    "shards/README.md": "contract.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "measurements.md",
}
"""Files of the repository that are pages of the site."""

_LINK = re.compile(r"(?<!`)\[(?P<text>[^\]\n]*)\]\((?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)")
_TOGETHER = re.compile(r"^(?P<indent> {4,})(?P<first>\w+)(?P<others>(?:, \w+)+): ", re.MULTILINE)
_COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of ``PAGES``."""
    root = Path(config.config_file_path).parent
    for source, page in PAGES.items():
        text = _COMMENT.sub("", (root / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn the links of a file, which hold in the repository, into links of the site."""
    root = Path(config.config_file_path).parent
    source = next((name for name, made in PAGES.items() if made == page.file.src_uri), None)
    here = (root / source).parent if source else root / "docs"

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match["text"], match["target"], match["anchor"] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = Path(os.path.normpath(here / target))
        if path.is_relative_to(root / "docs") and path.suffix != ".py":  # those are no pages
            return f"[{text}]({path.relative_to(root / 'docs').as_posix()}{anchor})"
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else ""
        if name in PAGES:
            return f"[{text}]({PAGES[name]}{anchor})"
        if not path.is_file():
            return text if path.is_dir() else match[0]
        # Any other file of the repository goes along as it is.
        copy = f"files/{name}.txt"
        if files.get_file_from_path(copy) is None:
            content = path.read_text(encoding="utf-8")
            added = File.generated(config, copy, content=content)
            files.append(added)
        return f"[{text}]({copy})"

    return _LINK.sub(link, markdown)


class HouseStyle(griffe.Extension):
    """Our docstrings as griffe reads them: ``Example:`` is code, and ``a, b: …`` describes two arguments."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        value = _TOGETHER.sub(_apart, obj.docstring.value)
        text, found, example = value.partition("\nExample:\n")
        obj.docstring.value = value
        if found:
            code = textwrap.indent(textwrap.dedent(example).strip(), "    ")
            obj.docstring.value = f"{text}\nExamples:\n    ```python\n{code}\n    ```\n"


def _apart(match: re.Match[str]) -> str:
    indent, first = match["indent"], match["first"]
    rows = "".join(f"{indent}{name}: see `{first}`.\n" for name in match["others"].removeprefix(", ").split(", "))
    return f"{rows}{indent}{first}: "
