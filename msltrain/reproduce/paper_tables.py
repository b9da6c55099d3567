"""Which grids the paper's tables and Fig. 3 are, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from msldata.errors import UserError
from msltrain.config import TrainConfig
from msltrain.recipes.ablations import GRIDS, what_it_varies
from msltrain.recipes.backbones import resnet_cut


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One table or figure of the paper, or, for ``ablate``, one grid."""

    name: str
    title: str
    """By content."""
    grids: tuple[str, ...]
    """In `msltrain.recipes.ablations.GRIDS`."""
    reading: str = ""
    """What of the assignment is ours; empty where our sources state it."""
    errata: tuple[str, ...] = ()
    """Names in `msltrain.reproduce.published_numbers.ERRATA` that concern all of it."""
    curves: bool = False
    """Whether it is drawn over the hidden share of the images."""

    @property
    def label(self) -> str:
        """Such as ``Table 5``."""
        return self.name.replace("-", " ").capitalize()


_NUMBER_IS_OURS = (
    "That this ablation is the paper's Table {number} is our reading: our sources name the content of Tables 5, 8 and "
    "9, not of 3, 6 and 7."
)

TABLES: dict[str, PaperTable] = {
    table.name: table
    for table in (
        PaperTable(
            name="table-3",
            title="What each term of the loss adds",
            grids=("loss-terms",),
            reading=_NUMBER_IS_OURS.format(number=3),
            errata=("baseline", "protocol"),
        ),
        PaperTable(
            name="table-5",
            title="Keep masks with and without binarisation",
            grids=("binarisation",),
            errata=("binarisation",),
        ),
        PaperTable(
            name="table-6",
            title="How much is hidden: masks of the high subset, the low one, or both",
            grids=("mask-subsets",),
            reading=_NUMBER_IS_OURS.format(number=6),
        ),
        PaperTable(
            name="table-7",
            title="Shares of the three terms of the loss",
            grids=("loss-weights",),
            reading=_NUMBER_IS_OURS.format(number=7) + " Which shares the paper tried besides (0.3, 0.2, 0.5), our "
            "sources do not say; the others are ours.",
        ),
        PaperTable(
            name="table-8",
            title="MSL and masked autoencoders, in both readings",
            grids=("masked-autoencoder",),
            reading="The table can be read as hiding random patches in the masked branch (random-patches, three "
            "quarters of them), or as fine-tuning a ViT that was pretrained as a masked autoencoder (pretrained-…). "
            "Both are here; we claim neither.",
        ),
        PaperTable(
            name="table-9",
            title="MSL with a plain pooled head instead of CSRA, on two backbones",
            grids=("plain-head",),
            reading="That the rows “w/ MSL” are MSL with a plain pooled linear head is inferred from Tables 4 and 9; "
            "which backbones the table lists, our sources do not say.",
        ),
        PaperTable(
            name="figure-3",
            title="What holes cost: mAP, CR and CF1 over the hidden share of the image",
            grids=("robustness-voc2007", "robustness-coco2014"),
            reading="The paper's end points are read as the CSRA baseline and MSL on masked test images. How much "
            "these hide, our sources do not say; they are drawn at 54.7 %, the mean of the released “high” masks.",
            errata=("figure-3", "batchnorm", "protocol"),
            curves=True,
        ),
    )
}


def with_resnet_cut(config: TrainConfig, file: Path | None) -> TrainConfig:
    """A run with the authors' own weights where the recipe has a stand-in for them; without a file, the same run.

    Raises:
        UserError: there is no such file.
    """
    if file is None or config.model.weights != resnet_cut().weights:
        return config
    if not file.is_file():
        raise UserError(f"--resnet-cut {file}: there is no such file; the recipes' own weights need no option")
    return replace(config, model=replace(config.model, weights=str(file)))


def choose_tables(names: Sequence[str]) -> list[PaperTable]:
    """The tables of these names, in the paper's order; all without a name. Raises UserError that lists them."""
    for name in names:
        if name not in TABLES:
            raise UserError(f"no table '{name}'; there are: {', '.join(TABLES)}")
    return [table for table in TABLES.values() if not names or table.name in names]


def grid_as_table(grid: str) -> PaperTable:
    """The table that is this grid alone, by the paper's name where it has one."""
    for table in TABLES.values():
        if table.grids == (grid,):
            return table
    if grid not in GRIDS:
        raise UserError(f"no grid '{grid}'; there are: {', '.join(GRIDS)}")
    return PaperTable(name=grid, title=what_it_varies(grid), grids=(grid,))
