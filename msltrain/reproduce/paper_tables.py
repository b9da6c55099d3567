"""Which grids make up the paper's tables and Fig. 3, and what in them is ours."""

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
    """Names the table by its content."""
    grids: tuple[str, ...]
    """In `msltrain.recipes.ablations.GRIDS`."""
    reading: str = ""
    """How to read it, and what in it is ours."""
    errata: tuple[str, ...] = ()
    """Names in `msltrain.reproduce.published_numbers.ERRATA` that concern the whole table."""
    with_others: bool = False
    """Whether rows of the paper's table without a row in the grids are shown too."""
    curves: bool = False
    """Whether it is drawn as curves over the hidden share of the images."""

    @property
    def label(self) -> str:
        """The label in the paper, such as ``Table 5``."""
        return self.name.replace("-", " ").capitalize()


TABLES: dict[str, PaperTable] = {
    table.name: table
    for table in (
        PaperTable(
            name="table-1",
            title="VOC2007: MSL beside other methods",
            grids=("main-voc2007",),
            with_others=True,
            reading="Rows without a run are other methods, as the paper lists them; “pre”: pretrained on COCO.",
            errata=("gains", "readme", "protocol"),
        ),
        PaperTable(
            name="table-2",
            title="COCO-2014: MSL beside other methods",
            grids=("main-coco2014",),
            with_others=True,
            reading="The number behind a method is the side of its input images. MSL is trained at 448.",
            errata=("gains", "readme", "protocol"),
        ),
        PaperTable(
            name="table-3",
            title="What the masked branch and the label consistency add",
            grids=("loss-terms",),
            reading="The paper names the parts, not their weights: those of the masked branch alone (0.3, 0.2, 0) and "
            "of the consistency alone (0.5, 0, 0.5) are ours. So is the matched baseline.",
            errata=("baseline", "protocol"),
        ),
        PaperTable(
            name="table-4",
            title="MSL with a ViT and with a ResNet",
            grids=("architectures", "architectures-coco2014"),
            reading="Both under CSRA: ViT-L/16 at 224 pixels, ResNet-101 with CutMix at 448.",
            errata=("baseline", "table-9"),
        ),
        PaperTable(
            name="table-5",
            title="Keep masks with and without binarisation",
            grids=("binarisation",),
            errata=("binarisation",),
        ),
        PaperTable(
            name="table-6",
            title="How much is hidden: masks of the high subset, or of the low one",
            grids=("mask-subsets", "mask-subsets-coco2014"),
            reading="Both subsets together are ours.",
        ),
        PaperTable(
            name="table-7",
            title="Weights of the three terms of the loss",
            grids=("loss-weights",),
            reading="(0.2, 0.3, 0.5), (0.6, 0.2, 0.2) and (0.1, 0.1, 0.8) are ours.",
        ),
        PaperTable(
            name="table-8",
            title="MSL and masked autoencoders, in both readings",
            grids=("masked-autoencoder", "masked-autoencoder-coco2014"),
            reading="The row MAE can be read as hiding random patches in the masked branch (random-patches, three "
            "quarters of them), or as fine-tuning a ViT that was pretrained as a masked autoencoder (pretrained-…, on "
            "ImageNet by MAE's authors). Both are here; we claim neither. The other rows on a ViT are ours.",
        ),
        PaperTable(
            name="table-9",
            title="A plain pooled head, CSRA, and MSL with the plain head, on two networks",
            grids=("plain-head", "plain-head-coco2014"),
            reading="That the rows “w/ MSL” have the plain head is inferred from Tables 4 and 9.",
        ),
        PaperTable(
            name="figure-3",
            title="What holes cost: mAP, CR and CF1 over the hidden share of the image",
            grids=("robustness-voc2007", "robustness-coco2014"),
            reading="The paper's end points are the CSRA baseline and MSL on test images behind the released “high” "
            "masks; they are drawn at 54.7 %, the mean of these.",
            errata=("figure-3", "figure-3-masks", "batchnorm", "protocol"),
            curves=True,
        ),
        PaperTable(
            name="rivals",
            title="MSL beside CSRA, ASL, ML-Decoder, Query2Label and SpliceMix",
            grids=("rivals-voc2007", "rivals-coco2014"),
            reading="Not a table of the paper. All rows train one network, ResNet-101 with CutMix weights, at 448 "
            "pixels for as many epochs, each with the head, loss, augmentation, optimiser and schedule of its "
            "authors; linear is a pooled linear head with cross-entropy. The authors' own numbers are of other "
            "networks: TResNet-L for ASL, for ML-Decoder (pretrained on ImageNet-21k) and, on VOC2007, for "
            "Query2Label. With the published values every rival trains its own network.",
            errata=("protocol",),
        ),
    )
}


def with_resnet_cut(config: TrainConfig, file: Path | None) -> TrainConfig:
    """A run with the authors' own weights if the recipe has a stand-in for them; without a file, the same run.

    Raises:
        UserError: there is no such file.
    """
    if file is None or config.model.weights != resnet_cut().weights:
        return config
    if not file.is_file():
        raise UserError(f"--resnet-cut {file}: there is no such file; the recipes' own weights need no option")
    return replace(config, model=replace(config.model, weights=str(file)))


def choose_tables(names: Sequence[str]) -> list[PaperTable]:
    """The tables with these names, in the paper's order; without names, all. Raises a UserError that lists them."""
    for name in names:
        if name not in TABLES:
            raise UserError(f"no table '{name}'; there are: {', '.join(TABLES)}")
    return [table for table in TABLES.values() if not names or table.name in names]


def grid_as_table(grid: str) -> PaperTable:
    """The table with only this grid, under the paper's name if it has one."""
    for table in TABLES.values():
        if grid in table.grids and not table.curves:
            return replace(table, grids=(grid,))
    if grid not in GRIDS:
        raise UserError(f"no grid '{grid}'; there are: {', '.join(GRIDS)}")
    return PaperTable(name=grid, title=what_it_varies(grid), grids=(grid,))
