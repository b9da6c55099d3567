"""CVAT's own XML: boxes, tags, outlines, subsets, and what is wrong or hostile in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from msldata.errors import BadInputError, UserError
from msldata.sources.kinds import KINDS, open_source, recognise
from msldata.sources.source import SourceOptions
from msltrain.__main__ import app
from tests.tinydata import jpeg

LABELS = "".join(f"<label><name>{name}</name><type>any</type></label>" for name in ("fox", "Wölfe", "badger"))
JOINT = "<label><name>paw</name><type>points</type><parent>fox</parent></label>"
START = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta><{0}>'
META = f"{START}<name>night</name><labels>{LABELS}{JOINT}</labels></{{0}}></meta>"
BOX = '<box label="fox" source="manual" occluded="1" xtl="1.5" ytl="2.0" xbr="9.5" ybr="8.0" z_order="0">{}</box>'
SHAPES = {
    "a.jpg": BOX.format('<attribute name="age">old</attribute>') + '<tag label="badger" source="manual"></tag>',
    "Süd/b 1.jpg": '<polygon label="Wölfe" occluded="0" points="1,1;9,1;9,9"></polygon>',
    "c.jpg": BOX.format("").replace("z_order", 'rotation="30.0" z_order'),
    "d.jpg": "",
}


def export(
    folder: Path, shapes=SHAPES, *, meta: str = META.format("task"), subsets=("",), name="annotations.xml"
) -> Path:
    rows = [
        f'<image id="{number}" name="{image}" {f"""subset="{subset}" """ * bool(subset)}width="24" height="16">'
        f"{inside}</image>"
        for subset in subsets
        for number, (image, inside) in enumerate(shapes.items())
    ]
    (folder / name).write_text("\n".join([meta, *rows, "</annotations>"]), encoding="utf-8")
    for number, image in enumerate(shapes):
        file = folder / "images" / image
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(number))
    return folder


def shown(root: Path, split: str = "all", **options) -> dict[str, list[str]]:
    source = open_source("cvat", root, split, options=SourceOptions(**options))
    return {record.image: source.labels.names(record.positives) for record in source.records()}


def test_boxes_tags_and_outlines(tmp_path):
    root = export(tmp_path)
    for place in (root, root / "annotations.xml"):
        assert recognise(place)[0] == "cvat"
        source = open_source("cvat", place, "all")
        assert source.labels.classes == ("fox", "Wölfe", "badger")  # in their order, and no joint of a skeleton
        records = list(source.records())
        assert [(record.image, record.positives) for record in records] == [
            ("images/a.jpg", (0, 2)),
            ("images/Süd/b 1.jpg", (1,)),
            ("images/c.jpg", (0,)),
        ]
        (fox,) = records[0].objects
        assert (fox.class_index, fox.box, fox.area, fox.occluded) == (0, (1.5, 2.0, 8.0, 6.0), 48.0, True)
        assert records[0].size == (24, 16) and not records[1].objects and not records[2].objects  # one is turned
        assert source.counts == {"dropped_without_annotations": 1}
    assert shown(root, keep_unlabelled=True)["images/d.jpg"] == []


def test_a_project_and_its_subsets(tmp_path):
    meta = META.format("project")
    for subset in ("Train", "Test"):
        (tmp_path / "images" / subset).mkdir(parents=True)
        (tmp_path / "images" / subset / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "annotations.xml").write_text(
        f'{meta}<image id="1" name="a.jpg" subset="Train" width="24" height="16"><tag label="fox"/></image>'
        '<image id="2" name="a.jpg" subset="Test" width="24" height="16"><tag label="badger"/></image></annotations>'
    )
    assert KINDS["cvat"].splits(tmp_path) == ("train", "test")
    assert shown(tmp_path, "train") == {"images/Train/a.jpg": ["fox"]}
    assert shown(tmp_path, "test") == {"images/Test/a.jpg": ["badger"]}
    with pytest.raises(UserError, match="no split 'val'; known are: train, test"):
        open_source("cvat", tmp_path, "val")


def test_the_images_may_lie_beside_a_file_of_another_name(tmp_path):
    export(tmp_path, name="task 7.xml")
    for image in SHAPES:
        (tmp_path / image).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / image).rename(tmp_path / image)
    assert recognise(tmp_path)[0] == "cvat" and list(shown(tmp_path)) == ["a.jpg", "Süd/b 1.jpg", "c.jpg"]


def test_classes_may_be_given(tmp_path):
    root = export(tmp_path, {"a.jpg": '<tag label="fox"/>'}, meta=START.format("task") + "</task></meta>")
    with pytest.raises(UserError, match="it names no labels; give them with --classes FILE"):
        shown(root)
    (tmp_path / "classes.txt").write_text("badger\nfox\n")
    source = open_source("cvat", root, "all", options=SourceOptions(classes=tmp_path / "classes.txt"))
    assert source.labels.classes == ("badger", "fox") and next(source.records()).positives == (1,)


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ('<box label="fox" xtl="1" ytl="2" xbr="1" ybr="9"/>', "image 'a.jpg': a box of 'fox' without area"),
        ('<box label="fox" xtl="1" ytl="2" xbr="wide" ybr="9"/>', "xbr is 'wide', not a number"),
        ('<box label="fox" xtl="1" ytl="2" xbr="nan" ybr="9"/>', "without area"),
        ('<tag label="wolf"/>', "unknown labels 'wolf'"),
        ("<tag/>", "unknown labels ''"),
    ],
)
def test_what_makes_no_sense_is_named_and_may_be_left_out(tmp_path, inside, message):
    root = export(tmp_path, {"a.jpg": inside, "b.jpg": '<tag label="fox"/>'})
    with pytest.raises(BadInputError, match=message):
        shown(root)
    source = open_source("cvat", root, "all")
    errors: list[BadInputError] = []
    source.reject = errors.append
    assert [record.image for record in source.records()] == ["images/b.jpg"] and len(errors) == 1


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/passwd", ""])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    image = f'<image id="0" name="{name}" width="2" height="2"><tag label="fox"/></image>'
    (tmp_path / "annotations.xml").write_text(f"{META.format('task')}{image}</annotations>")
    with pytest.raises(BadInputError, match="its name is no path below the folder"):
        shown(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', "document type declarations"),
        ("<annotations><image>", "not valid XML"),
        ("<annotations><version>1.1</version><track/></annotations>", "annotations of a video"),
        ("<annotation><object/></annotation>", "no image of CVAT's in it"),
    ],
)
def test_another_file_is_refused(tmp_path, text, message):
    (tmp_path / "annotations.xml").write_text(text)
    with pytest.raises(BadInputError, match=message):
        open_source("cvat", tmp_path, "all")


def test_vocs_xml_is_not_cvats(tmp_path):
    (tmp_path / "annotations.xml").write_text("<annotation></annotation>")
    with pytest.raises(UserError, match="not taken for any kind"):
        recognise(tmp_path)


def test_it_is_built(tmp_path):
    (tmp_path / "photos").mkdir()
    root = export(tmp_path / "photos")
    words = ["build-shards", str(root), "--name", "mine", "--out", str(tmp_path / "out"), "--workers", "1"]
    result = CliRunner().invoke(app, [*words, "--split", "all"])
    assert result.exit_code == 0, result.output
    assert "3 classes: fox 2, Wölfe 1, badger 1" in " ".join(result.output.split())


def test_photographs_that_it_does_not_list_are_named(tmp_path):
    root = export(tmp_path, subsets=("Train", "Val"))
    assert open_source("cvat", root, "train").notes == ()  # what another subset has is listed
    (root / "images" / "Süd" / "new.jpg").write_bytes(jpeg(9))
    (note,) = open_source("cvat", root, "val").notes
    assert note == "1 photograph is not in annotations.xml: images/Süd/new.jpg; it is left out"
