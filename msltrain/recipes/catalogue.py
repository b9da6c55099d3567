"""The list of recipes by name: METHOD-NETWORK-DATASET, with ``-paper`` for the published values."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from msltrain.config import TrainConfig
from msltrain.recipes import paper as published
from msltrain.recipes import rivals, small
from msltrain.recipes.cost import gpu_hours
from msltrain.recipes.own import OWN, OWN_BASELINE, own, own_baseline
from msltrain.recipes.variants import baseline, distilled, matched_baseline, tuned

NO_NUMBER = "no published number"
_LINE = re.compile(r"``msl train --recipe (?P<name>[\w-]+)`` · (?P<source>.+) · (?P<number>.+)")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One named run. Calling it gives the config."""

    name: str
    what: str
    """What the run is, in one line."""
    make: Callable[[], TrainConfig]
    source: str
    """Where the published number comes from."""
    number: str
    """The published number, or that there is none."""

    def __call__(self) -> TrainConfig:
        return self.make()

    @property
    def gpu_hours(self) -> float | None:
        """Estimated hours on one H100 or H200; see `msltrain.recipes.cost`."""
        return gpu_hours(self())


def _family(function: Callable[[], TrainConfig]) -> Iterator[Recipe]:
    """MSL, our own loss and two baselines in our default form, then MSL and baseline as published."""
    target = function.__name__.replace("_", "-")
    what = _first_line(function)
    numbers = {match["name"]: match for match in _LINE.finditer(inspect.getdoc(function) or "")}
    msl, plain = numbers[f"msl-{target}"], numbers[f"baseline-{target}"]

    def entry(name: str, what: str, make: Callable[[], TrainConfig], source: str, number: str) -> Recipe:
        return Recipe(name=name, what=what, make=make, source=source, number=number)

    yield entry(f"msl-{target}", f"MSL: {what}", lambda: tuned(function()), msl["source"], msl["number"])
    yield entry(
        f"distil-{target}",
        "the same with our own loss: the masked image learns what the network says of the whole one",
        lambda: distilled(tuned(function())),
        "ours",
        NO_NUMBER,
    )
    yield entry(
        f"baseline-{target}",
        "its plain baseline",
        lambda: baseline(tuned(function())),
        plain["source"],
        plain["number"],
    )
    yield entry(
        f"matched-{target}",
        "its baseline with the recognition loss weighted as in MSL",
        lambda: matched_baseline(tuned(function())),
        "ours",
        NO_NUMBER,
    )
    yield entry(f"msl-{target}-paper", _as_published("MSL", msl["source"]), function, msl["source"], msl["number"])
    yield entry(
        f"baseline-{target}-paper",
        _as_published("its baseline", plain["source"]),
        lambda: baseline(function()),
        plain["source"],
        plain["number"],
    )


def _as_published(what: str, source: str) -> str:
    """What the paper or its code's authors published with these values; the first weights differ, see `paper`."""
    if not source.startswith(("Table", "official README")):
        return f"{what} with the published values, a run that nobody published"
    return f"{what} as published, but for the first weights"


def _rival(function: Callable[[], TrainConfig]) -> Recipe:
    match = _LINE.search(inspect.getdoc(function) or "")
    assert match is not None and match["name"] == function.__name__.replace("_", "-")
    return Recipe(
        name=match["name"],
        what=_first_line(function),
        make=function,
        source=match["source"],
        number=match["number"],
    )


def _single(name: str, function: Callable[[], TrainConfig]) -> Recipe:
    return Recipe(name=name, what=_first_line(function), make=function, source="ours", number=NO_NUMBER)


def _first_line(function: Callable[[], TrainConfig]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0].replace("`", "")


_PUBLISHED = (
    published.c_voc2007,
    published.r_voc2007,
    published.v_voc2007,
    published.c_coco2014,
    published.r_coco2014,
    published.v_coco2014,
    published.v_wider,
    published.b_wider,
)

_RIVALS = (
    rivals.csra_c_voc2007,
    rivals.csra_c_coco2014,
    rivals.asl_t_voc2007,
    rivals.asl_t_coco2014,
    rivals.mldecoder_t_voc2007,
    rivals.mldecoder_t_coco2014,
    rivals.q2l_r_voc2007,
    rivals.q2l_r_coco2014,
    rivals.splicemix_r_voc2007,
    rivals.splicemix_r_coco2014,
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _single(OWN, own),  # what most people want comes first
        _single(OWN_BASELINE, own_baseline),
        *(entry for function in _PUBLISHED for entry in _family(function)),
        *map(_rival, _RIVALS),
        _single("smoke", small.smoke),
        _single("demo", small.demo),
        _single("demo-baseline", small.demo_baseline),
        _single("demo-augmentation", small.demo_augmentation),
        _single("demo-distil", small.demo_distil),
    )
}
