"""Numbers that others published, in percent, and what is known to be wrong or unfair about them.

Nothing here was measured by us, and no test demands it of a run. A row that is absent has no number in our sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from msltrain.measures.metrics import harmonic_mean

PAPER, CSRA, MMPRETRAIN = "paper", "CSRA", "mmpretrain"
SOURCES: Mapping[str, str] = {
    PAPER: "Zunair and Ben Hamza, WACV 2024",
    CSRA: "CSRA's own authors, batches of 16",
    MMPRETRAIN: "mmpretrain's CSRA on VOC2007",
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """One source's numbers for one row, on whole test images."""

    source: str
    values: Mapping[str, float]
    """By measure, percent."""
    errata: Mapping[str, str] = field(default_factory=dict)
    """Measure → the name in `ERRATA` of what is wrong with its number."""


_TABLE2_MSL = {"mAP": 86.4, "CP": 90.1, "CR": 76.3, "CF1": 80.4, "OP": 89.1, "OR": 80.0, "OF1": 82.2}

PUBLISHED: Mapping[str, tuple[Published, ...]] = {
    "loss-terms/baseline": (
        Published(source=PAPER, values={"mAP": 93.7}, errata={"mAP": "baseline"}),
        Published(source=CSRA, values={"mAP": 95.2}),
        Published(source=MMPRETRAIN, values={"mAP": 95.5}),
    ),
    "loss-terms/msl": (Published(source=PAPER, values={"mAP": 96.1}),),
    "masked-autoencoder/msl": (Published(source=PAPER, values={"mAP": 95.0}),),
    "plain-head/resnet101-baseline": (Published(source=PAPER, values={"mAP": 92.9}, errata={"mAP": "plain-resnet"}),),
    "robustness-coco2014/baseline": (
        Published(source=PAPER, values={"mAP": 84.3}, errata={"mAP": "baseline"}),
        Published(source=CSRA, values={"mAP": 85.6}),
    ),
    "robustness-coco2014/msl": (
        Published(source=PAPER, values=_TABLE2_MSL, errata={"CF1": "table-2", "OF1": "table-2"}),
    ),
}
"""By run, as `msltrain.grids.plan` names it."""

FIGURE3: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "robustness-voc2007": {"mAP": (67.9, 86.7), "CR": (40.6, 71.3), "CF1": (55.0, 79.0)},
    "robustness-coco2014": {"mAP": (54.2, 74.8), "CR": (36.0, 59.4), "CF1": (48.4, 68.8)},
}
"""By grid and measure: the end points of Fig. 3, read as (CSRA baseline, MSL)."""
FIGURE3_HOLE_FRACTION = 0.547
"""Mean of the masks that the released code calls high."""


def _f1(precision: str, recall: str) -> str:
    return f"{harmonic_mean(_TABLE2_MSL[precision], _TABLE2_MSL[recall]):.1f}"


def _gain(grid: str) -> str:
    low, high = FIGURE3[grid]["mAP"]
    return f"{high - low:.1f}"


ERRATA: Mapping[str, str] = {
    "table-2": f"Table 2, MSL-C: CP {_TABLE2_MSL['CP']} and CR {_TABLE2_MSL['CR']} give CF1 {_f1('CP', 'CR')}, printed "
    f"is {_TABLE2_MSL['CF1']}; OP {_TABLE2_MSL['OP']} and OR {_TABLE2_MSL['OR']} give OF1 {_f1('OP', 'OR')}, printed "
    f"is {_TABLE2_MSL['OF1']}.",
    "figure-3": f"Fig. 3, VOC2007: 67.9 to 86.7 mAP is a gain of {_gain('robustness-voc2007')}; the text says 19.8.",
    "baseline": "The paper's CSRA baseline (93.7 on VOC2007, 84.3 on COCO-2014) is below what CSRA's own authors "
    "(95.2, 85.6) and mmpretrain (95.5) report. Inferred reasons: batches of 6 at a learning rate tuned for 16, and "
    "loss weights that halve the recognition loss for MSL only. The matched baseline learns recognition at MSL's rate.",
    "protocol": "The released trainer evaluates on the test set after every epoch, has no validation split, and always "
    "uses seed 0. Our column “best” is the best epoch on the validation split; the test set chose nothing.",
    "batchnorm": "In training with MSL, BatchNorm meets whole and masked batches in turn, so part of the robustness of "
    "Fig. 3 may be BatchNorm getting used to masked images. The recalibrated baseline is the control: its statistics "
    "were measured anew on masked training images, no weight was changed.",
    "binarisation": "“Without binarisation” multiplied visible pixels by 225/255 = 0.882 (the paper: 0.884): the "
    "released code read white as entry 225 of a palette.",
    "plain-resnet": "Tables 1 and 2 list “ResNet-101” (92.9 and 79.4). That it is this network with a plain head is "
    "our reading.",
}
