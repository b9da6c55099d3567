"""Draw docs/picture.png: an image of the demo's test set, whole and half hidden, and what both of its models say.

    python docs/make_picture.py            # after `make demo`
    python docs/make_picture.py DEMO OUT   # from another folder of a demo, to another file

The image is chosen by a rule that needs no eye: of those on which no model errs while the image is whole, and the last
one not behind the heaviest masks either, the one where the answers there differ most in its favour. So it shows what a
success is; how often there is one is what the README's table says.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from msldata.contract.manifest import MANIFEST_NAME
from msltrain.measures.predictions import Predictions
from msltrain.report.examples import answer, cross_entropy, hide, read_examples
from msltrain.report.open_runs import RunReport, open_run

HIDDEN = "high"
MARKS = {"right": "✓", "wrong": "✗ not there", "missed": "missed", "below": "", "not counted": ""}
INK = {"right": "#15803d", "wrong": "#b91c1c", "missed": "#b45309", "below": "#57606a", "not counted": "#57606a"}


def main(demo: Path, out: Path) -> None:
    """Draw the picture of the demo that lies in ``demo``."""
    shards, masks = demo / "shards" / "reef" / "test", demo / "heldout-masks" / HIDDEN
    runs = [
        open_run(
            demo / "runs" / folder,
            name=name,
            clean=predictions_of(demo / "runs" / folder, shards, None),
            masked={HIDDEN: predictions_of(demo / "runs" / folder, shards, masks)},
        )
        for folder, name in (("baseline", "A plain model"), ("distil", "Ours"))
    ]
    row = choose(runs)
    [example] = read_examples([row], runs[0].masked[HIDDEN], shards, [str(masks)])
    assert example.keep_mask_HW is not None
    hidden = hide(example.image, example.keep_mask_HW, runs[0].config.stream.mean)
    share = 1 - float(np.mean(example.keep_mask_HW > 0))
    draw(out, [("whole", example.image), (f"{100 * share:.0f} % hidden", hidden)], runs, row)
    print(f"{out}: {runs[0].clean.keys[row]}, {out.stat().st_size / 1000:.0f} kB")


def predictions_of(run: Path, shards: Path, masks: Path | None) -> Path:
    """The predictions file that ``msl evaluate`` wrote for these shards, and these masks."""
    from msltrain.runs.run_places import default_file

    return default_file(run, shards, [masks] if masks else [])


def choose(runs: list[RunReport]) -> int:
    """The row of the image to show."""
    gain_N = cross_entropy(runs[0].masked[HIDDEN]) - cross_entropy(runs[-1].masked[HIDDEN])
    right_N = np.ones(len(gain_N), bool)
    for run in runs:
        right_N &= errors(run.clean) == 0
    several_N = runs[0].clean.target_NK.sum(axis=1) >= 2
    holds_N = right_N & (errors(runs[-1].masked[HIDDEN]) == 0)
    for wanted_N in (holds_N & several_N, holds_N, right_N, np.ones_like(right_N)):
        if wanted_N.any():
            return int(np.argmax(np.where(wanted_N, gain_N, -np.inf)))
    raise AssertionError("the last rule takes every image")


def errors(predictions: Predictions) -> np.ndarray:
    """Classes that were missed or invented, per image."""
    wrong_NK = (predictions.logit_NK >= 0) != (predictions.target_NK > 0)
    return (wrong_NK & ~predictions.ignore_NK).sum(axis=1)


def draw(out: Path, views: list[tuple[str, Image.Image]], runs: list[RunReport], row: int) -> None:
    """Two views side by side, under each what every model says of it."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(10.0, 3.2), dpi=110, facecolor="white")
    for column, (title, image) in enumerate(views):
        left = 0.01 + 0.5 * column
        axes = figure.add_axes((left, 0.04, 0.2656, 0.83))
        axes.imshow(image.convert("RGB").resize((256, 256), Image.Resampling.LANCZOS))
        axes.set_axis_off()
        figure.text(left, 0.925, title, size=12, weight="bold", color="#1f2328")
        for place, run in enumerate(runs):
            predictions = list(run.conditions.values())[column]
            top = 0.82 - 0.44 * place
            figure.text(left + 0.285, top, f"{run.name}:", size=11, weight="bold", color="#1f2328")
            for line, (name, score, verdict) in enumerate(said(predictions, row)):
                text = f"{name}  {score:.2f}  {MARKS[verdict]}"
                figure.text(left + 0.285, top - 0.08 * (line + 1), text, size=10.5, color=INK[verdict])
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    pyplot.close(figure)
    Image.open(out).convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(out, optimize=True)


def said(predictions: Predictions, row: int) -> list[tuple[str, float, str]]:
    """What is there or is claimed, highest score first; at most four lines."""
    scores = {name: (score, verdict) for name, score, verdict in answer(predictions, row, len(predictions.classes))}
    lines = [(name, *found) for name, found in scores.items() if found[1] in ("right", "wrong", "missed")]
    return lines[:4] or [("nothing", max(score for score, _ in scores.values()), "below")]


if __name__ == "__main__":
    given = [Path(word) for word in sys.argv[1:]]
    folder = given[0] if given else Path("demo")
    if not (folder / "shards" / "reef" / "test" / MANIFEST_NAME).is_file():
        sys.exit(f"{folder}: no finished demo; run: make demo")
    main(folder, given[1] if given[1:] else Path(__file__).with_name("picture.png"))
