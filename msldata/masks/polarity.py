"""Which colour of mask files is the hole: inferred from the masks themselves, or refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from msldata.contract.keepmask import HOLE_BLACK, HOLE_WHITE
from msldata.errors import UserError, counted

AUTO = "auto"

_MIN_BORDER_VOTES = 5
_MIN_BORDER_SHARE = 0.1
_MAX_BORDER_DISSENT = 0.05
_MINORITY = 0.15


@dataclass(frozen=True, slots=True)
class PolarityClue:
    """What one mask file says about its polarity."""

    white_fraction: float
    """Share of white pixels."""
    border: Literal["black", "white", "mixed"]
    """Colour of the outermost ring of pixels, if it has one colour."""


@dataclass(frozen=True, slots=True)
class PolarityDecision:
    """Which colour of the files hides the image, and how that is known."""

    polarity: str
    """``hole-white`` or ``hole-black``."""
    origin: Literal["user", "auto", "generator"]
    explanation: str
    """One sentence with the evidence, for the screen and the manifest."""


def polarity_clue(white_HW: np.ndarray) -> PolarityClue:
    """Measure one mask, bool, True = white, for ``decide_polarity``."""
    ring = np.concatenate([white_HW[0], white_HW[-1], white_HW[:, 0], white_HW[:, -1]])
    border = "mixed" if ring.any() != ring.all() else "white" if ring[0] else "black"
    return PolarityClue(np.count_nonzero(white_HW) / white_HW.size, cast(Literal["black", "white", "mixed"], border))


def decide_polarity(clues: Iterable[PolarityClue]) -> PolarityDecision:
    """Infer from the masks themselves which colour is the hole, or refuse.

    Two clues count. Irregular-mask sets keep many holes away from the image's edge, so a colour that fills whole
    borders is the visible one. And a colour that covers less than 15 % on average is the hole, since no usual set hides
    85 % of its images. One clue is enough; they must not contradict each other.

    Raises:
        UserError: no clue, or contradictory clues; the message says what was seen and which option to give.
    """
    # A mask of one colour is all hole or no hole, so its border says nothing.
    shaped = [clue for clue in clues if 0 < clue.white_fraction < 1]
    black = sum(clue.border == "black" for clue in shaped)
    white = sum(clue.border == "white" for clue in shaped)
    winner, votes = ("black", black) if black >= white else ("white", white)
    mean = sum(clue.white_fraction for clue in shaped) / max(1, len(shaped))
    seen = (
        f"{black} of {counted(len(shaped), 'mask')} have an all-black border and {white} an all-white one; "
        f"white covers {mean:.1%} of a mask on average"
    )
    by_border = None
    if votes >= max(_MIN_BORDER_VOTES, _MIN_BORDER_SHARE * len(shaped)):
        by_border = HOLE_WHITE if winner == "black" else HOLE_BLACK
    by_minority = None
    if len(shaped) >= _MIN_BORDER_VOTES:
        by_minority = HOLE_WHITE if mean < _MINORITY else HOLE_BLACK if mean > 1 - _MINORITY else None
    polarity = by_border or by_minority
    dissent = white if polarity == HOLE_WHITE else black
    if polarity and by_minority in (None, polarity) and dissent <= _MAX_BORDER_DISSENT * len(shaped):
        hole, visible = ("white", "black") if polarity == HOLE_WHITE else ("black", "white")
        reason = (
            f"{visible} fills whole borders, so {visible} is the visible colour"
            if by_border
            else f"so little {hole} can only be the holes"
        )
        return PolarityDecision(polarity, "auto", f"{polarity}: {seen}; {reason}")
    problem = "the clues contradict each other" if polarity else "no clue is clear enough"
    raise UserError(
        f"which colour of the masks is the hole? {seen}; {problem}. Look at one mask and run again with "
        f"--polarity {HOLE_WHITE} (white hides the image) or --polarity {HOLE_BLACK}"
    )
