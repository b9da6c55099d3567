"""The gallery: wins and failures, whole and behind their keep mask, with each model's first answers below."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from PIL import Image

from msltrain.report.examples import Example, answer, cross_entropy, hide
from msltrain.report.open_runs import WHOLE, RunReport, describe_condition

LONG_SIDE = 400
"""Pixels of the longer side of an embedded image."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The chosen images of one condition."""

    condition: str
    wins: Sequence[Example]
    failures: Sequence[Example]

    def figures(self, runs: Sequence[RunReport]) -> str:
        """Wins and failures as HTML, each under its head; nothing where there are none."""
        losses_RN = [cross_entropy(run.conditions[self.condition]) for run in runs]
        first, last = runs[0].name, runs[-1].name
        several = len(runs) > 1
        titles = (
            f"Where {last} improves most on {first}" if several else f"Where {last} does best",
            f"Where {last} falls furthest behind {first}" if several else f"Where {last} does worst",
        )
        parts = []
        for title, examples in zip(titles, (self.wins, self.failures), strict=True):
            if examples:
                figures = "\n".join(
                    _figure(example, runs, self.condition, [loss_N[example.row] for loss_N in losses_RN])
                    for example in examples
                )
                parts.append(f'<h3>{escape(title)}</h3>\n<div class="gallery">{figures}</div>')
        return "\n".join(parts)

    def to_json(self, runs: Sequence[RunReport]) -> list[dict[str, Any]]:
        """What each image shows and what each model says to it."""
        return [
            {
                "key": runs[0].clean.keys[example.row],
                "group": group,
                "condition": self.condition,
                "models": [
                    {
                        "name": run.name,
                        "cross_entropy": float(cross_entropy(run.conditions[self.condition])[example.row]),
                        "top3": {
                            condition: answer(run.conditions[condition], example.row)
                            for condition in dict.fromkeys((WHOLE, self.condition))
                        },
                    }
                    for run in runs
                ],
            }
            for group, examples in (("win", self.wins), ("failure", self.failures))
            for example in examples
        ]


def _figure(example: Example, runs: Sequence[RunReport], condition: str, losses: Sequence[float]) -> str:
    """The whole and the masked picture side by side, each with the answers of all runs below it."""
    clean = runs[0].clean
    truth = [name for name, positive in zip(clean.classes, clean.target_NK[example.row], strict=True) if positive]
    ignored = [name for name, flag in zip(clean.classes, clean.ignore_NK[example.row], strict=True) if flag]
    shown = ", ".join(truth) or "none of the classes"
    key = clean.keys[example.row]
    caption = f"<b>{escape(key)}</b> shows {escape(shown)}"
    if ignored:
        caption += f"; not counted: {escape(', '.join(ignored))}"
    if len(runs) == 1:
        caption += f". Cross-entropy {losses[0]:.2f}"
    else:
        named = (f"{escape(run.name)} {loss:.2f}" for run, loss in zip(runs, losses, strict=True))
        caption += f". Cross-entropy: {', '.join(named)}"
    hidden = 0.0
    parts = [_view(example.image, f"Photograph {key}: {shown}", runs, WHOLE, example.row)]
    if example.keep_mask_HW is not None:
        hidden = 100 * (1 - float(example.keep_mask_HW.mean()))
        caption += f"; {hidden:.0f} % hidden"
        alt = f"Photograph {key} with {hidden:.0f} % hidden"
        masked = hide(example.image, example.keep_mask_HW, runs[0].config.stream.mean)
        parts.append(_view(masked, alt, runs, condition, example.row))
    order = f'data-key="{escape(key)}" data-hidden="{hidden:.1f}" data-classes="{len(truth)}"'
    return f'<figure class="example" {order}><figcaption>{caption}.</figcaption>{"".join(parts)}</figure>'


_VERDICTS: Mapping[str, tuple[str, str, str]] = {
    "right": ("right", "✓", "right"),
    "wrong": ("wrong", "✗", "wrong"),
    "missed": ("missed", "○", "missed"),
    "below": ("below", "·", ""),
    "not counted": ("below", "·", "not counted"),
}


def _view(image: Image.Image, alt: str, runs: Sequence[RunReport], condition: str, row: int) -> str:
    answers = []
    for run in runs:
        items = []
        for name, score, verdict in answer(run.conditions[condition], row):
            style, sign, words = _VERDICTS[verdict]
            items.append(
                f'<li class="{style}"><span>{sign} {escape(name)}{words and f" <small>{words}</small>"}</span>'
                # Rounded down, so that 49.7 % never reads as a prediction.
                f"<span>{int(100 * score)} %</span></li>"
            )
        answers.append(f'<div class="answer"><b>{escape(run.name)}</b><ol>{"".join(items)}</ol></div>')
    where = describe_condition(condition, runs[0].conditions[condition])
    size = f'width="{image.width}" height="{image.height}"'
    return (
        f'<div><img src="{data_uri(image)}" {size} alt="{escape(alt)}">'
        f'<div class="answers" role="group" aria-label="Answers on {escape(where)}">{"".join(answers)}</div></div>'
    )


def data_uri(image: Image.Image) -> str:
    """The image as a JPEG inside a ``data:`` address, at most ``LONG_SIDE`` pixels long."""
    small = image.convert("RGB")
    small.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
