"""What ``import msldata`` and ``import msltrain`` offer: light, typed, and shown by examples that run."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import msldata
import msltrain
from tests.workspace import NUM_TEST, NUM_TRAINVAL, make_workspace

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = [(package, name) for package in (msldata, msltrain) for name in package.__all__]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    root = make_workspace(tmp_path_factory.mktemp("workspace"))
    config = msltrain.recipe(
        "demo",
        data=root / "shards" / "voc2007" / "trainval",
        keep_masks=root / "shards" / "masks" / "high",
        settings=["optim.num_epochs=1", "stream.batch_size=8", "stream.image_size=32"],
    )
    msltrain.train(config, root / "runs" / "msl")
    return root


@pytest.fixture
def at_work(workspace, monkeypatch) -> Path:
    """In the workspace, as a user would be."""
    monkeypatch.chdir(workspace)
    return workspace


def names_at_hand() -> dict:
    modules = {"dataclasses": dataclasses, "msldata": msldata, "msltrain": msltrain, "np": np, "torch": torch}
    return {**modules, "Image": Image, "Path": Path}


@pytest.mark.parametrize(("package", "name"), NAMES, ids=[name for _, name in NAMES])
def test_every_name_ends_in_an_example_that_runs(package, name, at_work, capsys):
    text, found, example = inspect.getdoc(getattr(package, name)).partition("\nExample:\n")
    assert found and text.strip(), f"{package.__name__}.{name} shows no example at the end of its docstring"
    exec(compile(textwrap.dedent(example), f"<{package.__name__}.{name}>", "exec"), names_at_hand())


def test_a_run_that_is_there_is_refused_or_continued_in_pythons_words(at_work):
    config = msltrain.recipe("smoke", data="shards/voc2007/trainval", keep_masks="shards/masks/high")
    with pytest.raises(msldata.UserError, match=r'continue it with resume="auto", or choose another folder with run='):
        msltrain.train(config, "runs/msl")
    with pytest.raises(msldata.UserError, match=r"\(run=\)\. allow_changes=True continues it all the same"):
        msltrain.train(config, "runs/msl", resume="auto")


def test_the_page_on_python_runs_from_top_to_bottom(at_work, capsys):
    text = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    assert len(blocks) >= 8
    shown, line = {"__name__": "__main__"}, text.count("\n", 0, text.index("```python")) + 1
    for block in blocks:
        line = text.count("\n", 0, text.index(block)) + 1
        exec(compile("\n" * (line - 1) + block, "docs/python.md", "exec"), shown)
    assert "epoch 1/" in capsys.readouterr().err, "training says how far it is"
    assert {name for _, name in NAMES if re.search(rf"\b{name}\b", text)} >= {
        *msldata.__all__,
        *(set(msltrain.__all__) - {"Batch", "Metrics", "Predictions", "TrainConfig", "TrainResult"}),
    }


@pytest.mark.parametrize("package", [msldata, msltrain])
def test_a_type_checker_sees_every_name_and_no_other(package):
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    [guarded] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imported = {}
    for node in guarded.body:
        for alias in node.names:
            imported[alias.asname or alias.name] = getattr(importlib.import_module(node.module), alias.name)
    assert sorted(imported) == sorted(package.__all__)
    assert all(getattr(package, name) is value for name, value in imported.items())
    assert set(package.__all__) <= set(dir(package))
    assert (Path(package.__file__).parent / "py.typed").is_file()
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'trian'"):
        _ = package.trian


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import msldata, msldata.api", "torch numpy pyarrow PIL simplejpeg obstore pycocotools matplotlib typer rich"),
        ("import msltrain, msltrain.api", "torch torchvision timm numpy pyarrow PIL obstore matplotlib typer rich"),
        (
            "import msltrain; dir(msltrain); msltrain.LossConfig, msltrain.StreamConfig",
            "torch torchvision timm pyarrow",
        ),
        ("import msldata; [getattr(msldata, name) for name in msldata.__all__]", "torch torchvision timm pyarrow"),
    ],
)
def test_importing_is_light(code, heavy):
    check = f"import sys; {code}; sys.exit(', '.join(set({heavy.split()!r}) & set(sys.modules)) or 0)"
    subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY, check=True, timeout=60)


def test_places_may_be_text_or_paths(at_work):
    for folder in ("shards/voc2007/test", Path("shards/voc2007/test"), at_work / "shards/voc2007/test"):
        assert not msldata.verify(folder, against=type(folder)("shards/voc2007/trainval")).findings
        assert msldata.describe(folder).num_samples == NUM_TEST
        with msltrain.Loader(folder, msltrain.StreamConfig(image_size=32), training=False) as loader:
            assert sum(len(batch) for batch in loader) == NUM_TEST
    one = msltrain.KeepMasks.open("shards/masks/high", 32)
    both = msltrain.KeepMasks.open([Path("shards/masks/high"), "shards/masks/low"], 32)
    assert 0 < len(one) < len(both)
    with pytest.raises(msldata.UserError, match=r"give it as text: 's3://bucket/shards'"):
        msldata.verify(Path("s3://bucket/shards"))


def test_the_functions_do_what_the_commands_do(at_work):
    from msltrain.recipes import configure

    config = msltrain.recipe("smoke", data=Path("a"), keep_masks="s3://b/c", settings="optim.lr=0.5")
    expected = configure("smoke", train="a", keep_masks=["s3://b/c"], settings=["optim.lr=0.5"])
    assert config == expected and config.data.keep_masks == ("s3://b/c",)
    predictions, metrics = msltrain.evaluate("runs/msl", "shards/voc2007/test", out="predictions.parquet")
    assert len(predictions.keys) == NUM_TEST and Path("predictions.parquet").is_file()
    plain = msltrain.compute_metrics(
        torch.from_numpy(predictions.logit_NK), predictions.target_NK.tolist(), predictions.ignore_NK
    )
    assert plain.summary() == metrics.summary()
    training, validation = msltrain.hold_out("shards/voc2007/trainval", 0.05)
    trained = [line for line in Path("runs/msl/metrics.jsonl").read_text().splitlines() if "validation_mAP" in line]
    assert training.num_samples + validation.num_samples == NUM_TRAINVAL and trained


def test_what_compute_metrics_refuses():
    with pytest.raises(msldata.UserError, match=r"logits \(2, 1\), targets \(2,\)"):
        msltrain.compute_metrics([[1.0], [2.0]], [1, 0])
    with pytest.raises(msldata.UserError, match="neither 0 nor 1"):
        msltrain.compute_metrics([[1.0], [2.0]], [[1], [-1]])
    with pytest.warns(UserWarning, match="before the sigmoid"):
        msltrain.compute_metrics([[0.9], [0.2]], [[1], [0]])
    targets = np.arange(100)[:, None] < 10
    for rows, published in ((targets, 1.0), (targets[::-1], 0.0566)):
        with pytest.warns(UserWarning, match=r"10 positives share their logit.* mAP is 10.00 % and not"):
            assert msltrain.compute_metrics(np.zeros((100, 1)), rows).mAP == pytest.approx(published, abs=1e-3)
    ignored = msltrain.compute_metrics([[3.0], [2.0], [1.0]], [[0], [1], [0]], ignore=[[1], [0], [0]], classes=["cat"])
    assert ignored.mAP == 1.0 and ignored.classes[0].name == "cat"


def test_a_predictor_takes_paths_pictures_and_arrays(at_work):
    predictor = msltrain.load("runs/msl", device="cpu")
    file = Path("photos/street.jpg")
    image = Image.open(file).convert("RGB")
    found = predictor.predict([str(file), file, image, np.asarray(image)])
    assert [one.file for one in found] == ["photos/street.jpg", "photos/street.jpg", "image 2", "image 3"]
    assert len({one.scores for one in found[:2]}) == 1 and len(found[0].scores) == len(predictor.classes)
    for other in found[2:]:  # decoded by Pillow, not by the stream's decoder
        assert dict(other.scores) == pytest.approx(dict(found[0].scores), abs=0.02)
    assert dict(predictor.predict(image)[0].scores) == pytest.approx(dict(found[2].scores), abs=1e-5)
    grey = np.asarray(image.convert("L"))
    batch_NHWC = np.stack([np.asarray(image)] * 3)
    assert len(predictor.predict(batch_NHWC, batch_size=2)) == 3
    assert predictor.predict(grey, top_k=2)[0].scores == predictor.predict(image.convert("L"), top_k=2)[0].scores
    assert [one.file for one in predictor.predict("photos")] == ["photos/harbour.jpg", "photos/street.jpg"]
    for wrong, said in (
        (np.zeros((3, 8, 8), np.uint8), r"image 0: an array of uint8 \(3, 8, 8\)"),
        ([image, np.zeros((8, 8, 3), np.float32)], r"image 1: an array of float32"),
        ([], "no images were given"),
    ):
        with pytest.raises(msldata.UserError, match=said):
            predictor.predict(wrong)


def test_a_broken_photograph_is_left_out_as_the_command_does_and_a_warning_names_it(at_work, tmp_path):
    whole = Path("photos/street.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole)
    (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 3])
    predictor = msltrain.load("runs/msl", device="cpu")
    with pytest.warns(UserWarning, match=r"^1 of 2 images could not be read.*b\.jpg") as warned:
        good, broken = predictor.predict(tmp_path)
    assert warned[0].filename == __file__, "it points at whoever called predict"
    assert good.scores and not good.error and broken.error and not broken.scores and broken.error in str(broken)
    with pytest.raises(msldata.UserError, match=r'b\.jpg: .*on_error="skip"$') as caught:
        predictor.predict(tmp_path, on_error="fail")
    assert "--" not in str(caught.value)
    with pytest.raises(msldata.UserError, match="on_error is 'stop'"):
        predictor.predict(tmp_path, on_error="stop")


def test_python_says_what_becomes_of_options_that_it_has_no_parameter_for(at_work, tmp_path):
    torch.save({"weight": torch.zeros(2, 2)}, tmp_path / "w.pth")
    with pytest.raises(msldata.UserError, match=r"\(--recipe, --model are options of .* here in `foreign`\)$"):
        msltrain.Predictor(tmp_path / "w.pth")
    (tmp_path / "table.csv").write_text("p;q\n1;2\nx;y\n", encoding="utf-8")
    with pytest.raises(msldata.UserError, match=r"call it again with --image-column .* here in `options`\)"):
        msldata.open_source("table", tmp_path / "table.csv", "all")


@pytest.mark.parametrize("name", ["plain_pytorch", "timm_model", "accelerate_loop", "lightning_module"])
def test_the_examples_run(name, at_work, capsys):
    file = REPOSITORY / "examples" / f"{name}.py"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 40
    for library in re.findall(r"^(?:import|from) (accelerate|lightning|timm)\b", file.read_text(), re.MULTILINE):
        pytest.importorskip(library, reason=f"examples/{name}.py needs {library}; install the extra 'test'")
    runpy.run_path(str(file), run_name="__main__")
    assert re.search(r"loss|validation_loss", capsys.readouterr().out)
