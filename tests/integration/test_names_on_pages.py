"""Names of classes, files, models, runs and settings are shown as they are on every page, and are never markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from msldata.inspect.preview_page import draw_page
from msldata.inspect.tiles import Box, Label, Preview, Tile
from msldata.pages.colours import class_colour
from msltrain.config import ModelConfig
from msltrain.grids.results import CURVE_MEASURES, CurvePoint, Measures, OverSeeds
from msltrain.measures.metrics import SUMMARY
from msltrain.report.write_report import write_report
from msltrain.reproduce.comparison_page import to_html, to_markdown
from msltrain.reproduce.content import Content, GridContent, RowContent, RunState, TableContent
from msltrain.reproduce.paper_tables import TABLES
from msltrain.reproduce.published_numbers import Published
from msltrain.robustness.curves import compute_curves
from msltrain.robustness.figure import robustness_markdown, robustness_page
from msltrain.runs.run_places import WHOLE
from tests.integration.test_report import predictions, run

EVIL = "<b>&\"'</b><script>alert(1)</script>|`x`\n# y"
"""Where a page or a table forgets itself, it shows."""
MARKUP = re.compile(r"""<b>&"|<script>alert""")


class Texts(HTMLParser):
    """All text and all attributes of a page; what a browser would show or say."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[str] = []
        self.scripts = 0
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.found += [value for name, value in attrs if value and name != "src"]

    def handle_data(self, data):
        self.found.append(data)


def assert_shown(page: str, *, num_scripts: int, times: int) -> None:
    assert not MARKUP.search(page)
    texts = Texts(page)
    assert texts.scripts == num_scripts
    assert sum(EVIL in text for text in texts.found) >= times


def assert_plain(markdown: str) -> None:
    """No HTML, no code, no cell and no line that a name began; commands are indented, and shown as they are."""
    markdown = re.sub(r"(?m)^    .*", "", markdown)
    assert not re.search(r"<b>|<script", markdown) and not re.search(r"(?m)^# y", markdown)
    assert r"&lt;b&gt;&amp;" in markdown and r"\|\`x\` # y" in markdown
    tables = re.split(r"\n\n", markdown)
    for table in (block for block in tables if block.startswith("|")):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


@pytest.fixture(scope="module")
def classes() -> tuple[str, ...]:
    return (EVIL, f"2{EVIL}", f"3{EVIL}")


def test_report(classes, tmp_path):
    def evil(entry):
        keys = tuple(f"{key}{EVIL}" for key in entry.keys)
        return replace(entry, classes=classes, keys=keys, origin=replace(entry.origin, dataset=EVIL, checkpoint=EVIL))

    runs = []
    for number, each in enumerate((run("a", 2.0, 0.6), run("b", 2.0, 2.5, weights="b", seed=21))):
        config = replace(each.config, model=ModelConfig(backbone=f"{number}{EVIL}"))
        masked = {f"{name}{EVIL}": evil(entry) for name, entry in each.masked.items()}
        name, files = f"{each.name}{EVIL}", {"whole": EVIL}
        runs.append(replace(each, name=name, clean=evil(each.clean), masked=masked, config=config, files=files))
    file = write_report(tmp_path / "r.html", title=EVIL, runs=runs, commands=[EVIL], environment={EVIL: EVIL})
    assert_shown(file.read_text("utf-8"), num_scripts=1, times=100)
    assert_plain(file.with_suffix(".md").read_text("utf-8"))


def test_robustness(classes):
    found = {}
    for name, skill in ((f"One{EVIL}", 1.0), (f"Two{EVIL}", 2.0)):
        whole = predictions(skill, 1)
        hidden = predictions(skill, 2, 0.3)
        hidden = replace(hidden, origin=replace(hidden.origin, kind=EVIL, skipped=(EVIL,)))
        whole = replace(whole, origin=replace(whole.origin, skipped=(EVIL,)))
        found[name] = {WHOLE: whole, f"{EVIL}-30-40": hidden}
    curves = compute_curves(found)
    assert_shown(robustness_page(curves), num_scripts=1, times=21)
    assert_plain(robustness_markdown(curves))


def test_reproduce():
    spreads = {name: OverSeeds({0: 0.5, 1: 0.6}) for name in SUMMARY}
    row = RowContent(
        name=EVIL,
        run=EVIL,
        measures={EVIL: {WHOLE: Measures(spreads=spreads, hole_fraction=0, num_samples=1)}},
        published=(Published(source=EVIL, values={"mAP": 1.0, "CR": 2.0}),),
        changes={EVIL: EVIL},
    )
    points = [
        CurvePoint(condition=EVIL, hole_fraction=x, spreads={name: spreads[name] for name in CURVE_MEASURES})
        for x in (0.0, 0.3)
    ]
    grid = GridContent(
        name="loss-terms",
        conditions={WHOLE: None, EVIL: 0.3},
        num_seeds=2,
        checkpoints=(EVIL,),
        rows=(row,),
        curves={EVIL: points},
        end_points={},
        pictures=EVIL,
    )
    table = replace(TABLES["table-3"], title=EVIL, reading=EVIL, errata=())
    content = Content(
        title=EVIL,
        subject=EVIL,
        headline=EVIL,
        caveats=(EVIL,),
        tables=(TableContent(table=table, grids=(grid,)),),
        states=(RunState(name=EVIL, state=f"failed: {EVIL}", log=EVIL),),
        command=EVIL,
    )
    assert_shown(to_html(content), num_scripts=1, times=21)
    assert_plain(to_markdown(content))


def test_preview():
    label, box = Label(EVIL, class_colour(0), False), Box(EVIL, class_colour(0), 0, 0, 1, 1, faint=False)
    tile = Tile(EVIL, Image.new("RGB", (4, 4)), (label, replace(label, ignored=True)), (box,))
    assert_shown(draw_page(Preview(EVIL, EVIL, (tile,))), num_scripts=0, times=7)


def test_no_module_makes_markup():
    packages = [Path(__file__).resolve().parents[2] / name for name in ("msldata", "msltrain")]
    for file in (file for package in packages for file in package.rglob("*.py")):
        text = file.read_text("utf-8")
        assert not re.search(r"Markup|</?(div|span|t[dhr]|p|b|i|li|ul|a|svg|html)\b[^<>\n]*>", text), (
            f"{file}: markup belongs into a template"
        )
        # Markdown shows names through one function, which needs it.
        assert "html import escape" not in text or file.name == "text.py", f"{file}: templates escape by themselves"


def test_one_colour_a_class():
    colours = [class_colour(index) for index in range(1000)]
    assert len(set(colours)) == 1000 and all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)
