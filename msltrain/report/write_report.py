"""Put the report together: one HTML file that needs no network, and the same numbers as Markdown and JSON beside it.

Without its script only sorting is missing from the page.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import os
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from msldata.storage import LocalStorage
from msltrain.report import sections
from msltrain.report.examples import choose, read_examples
from msltrain.report.gallery import Gallery
from msltrain.report.holecurves import read_study
from msltrain.report.markdown import to_markdown
from msltrain.report.numbers import compute_numbers, to_json
from msltrain.report.open_runs import RunReport, check_comparable


def write_report(
    out_html: str | Path,
    *,
    title: str,
    runs: Sequence[RunReport],
    shards: str | Path | None = None,
    robustness: str | Path | None = None,
    num_examples: int = 12,
    commands: Sequence[str] = (),
    next_commands: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Path:
    """Write the report on one run, or the comparison of several, as one self-contained HTML page, atomically.

    The same numbers go beside it under the same name with ``.md`` and ``.json``.

    Args:
        out_html: the file to write.
        title: heading of the page.
        runs: the reference (baseline) first; all measured on the same samples and keep masks.
        shards: the test shards the runs were measured on; without them the page has no example images.
        robustness: folder of a robustness study on the same shards.
        num_examples: how many images to show.
        commands: what was run to get here, as typed.
        next_commands: what to run next with real data.
        environment: name → value shown at the end; by default what ``describe_environment`` finds.

    Raises:
        UserError: the runs are not comparable, or shards or study are not those of the predictions.
        FileNotFoundError: there is no study.
        StorageError: a file cannot be written.
    """
    check_comparable(runs)
    out_html = Path(out_html)
    curves = None if robustness is None else read_study(robustness, runs)
    gallery = None if shards is None else _gallery(runs, shards, num_examples)
    numbers = compute_numbers(runs, curves)
    texts = {
        out_html.with_suffix(".json").name: to_json(numbers, title, gallery.to_json(runs) if gallery else []),
        out_html.with_suffix(".md").name: to_markdown(numbers, title),
    }
    parts = [
        sections.opening(title, numbers),
        sections.accuracy(numbers),
        sections.strata(numbers),
        sections.robustness(numbers),
        sections.examples(gallery, numbers),
        sections.classes(numbers),
        sections.companions(numbers),
        sections.training(numbers),
        sections.method(numbers),
        sections.commands(commands, next_commands),
        sections.environment(numbers, describe_environment() if environment is None else environment, list(texts)),
    ]
    # The page last: who finds it finds what it speaks of.
    for name, text in {**texts, out_html.name: _assemble(title, parts)}.items():
        LocalStorage(out_html.parent).put(name, text.encode())
    return out_html


def describe_environment() -> dict[str, str]:
    """Program, library and machine versions; nothing that names the user or the host."""
    versions = {name: importlib.metadata.version(name) for name in ("msltrain", "torch", "timm", "numpy", "pillow")}
    return {
        "msl": versions.pop("msltrain"),
        "Python": platform.python_version(),
        **versions,
        "System": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _gallery(runs: Sequence[RunReport], shards: str | Path, num_examples: int) -> Gallery:
    hardest = list(runs[0].conditions)[-1]
    wins, failures = choose(runs, hardest, num_examples)
    shown = read_examples([*wins, *failures], runs[0].conditions[hardest], shards) if wins or failures else []
    return Gallery(condition=hardest, wins=shown[: len(wins)], failures=shown[len(wins) :])


def _assemble(title: str, parts: Sequence[str]) -> str:
    """The page, with its contents listed and its tables and figures numbered."""
    opening, *rest = (part for part in parts if part)
    body = "\n".join(rest)
    links = "".join(
        f'<a href="#{anchor}">{text}</a>' for anchor, text in re.findall(r'<h2 id="([\w-]+)">(.*?)</h2>', body)
    )
    counted: Counter[str] = Counter()

    def number(match: re.Match[str]) -> str:
        counted[match[1]] += 1
        return f"<b>{match[1]} {counted[match[1]]}."

    body = f'{opening}\n<nav aria-label="Contents">{links}</nav>\n{body}'
    body = re.sub(r"<b>(Table|Figure) #\.", number, body)
    folder = importlib.resources.files("msltrain.report")
    style, script = (folder.joinpath(name).read_text("utf-8") for name in ("page.css", "sort.js"))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )
