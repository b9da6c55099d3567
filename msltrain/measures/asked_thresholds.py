"""Thresholds as people ask for them: one for every class, and others for some by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from msldata.errors import UserError, did_you_mean, few_of


@dataclass(frozen=True, slots=True)
class AskedThresholds:
    """Scores from which on classes count as predicted.

    Raises:
        UserError: one that no score can be held against.
    """

    every: float | None = None
    """Of every class that has none of its own; None: what the model has."""
    by_class: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, threshold in (("", self.every), *self.by_class.items()):
            if threshold is not None and not 0 <= threshold <= 1:
                meant = f"; did you mean {threshold / 100:g}?" if 1 < threshold <= 100 else ""
                of = f" of {name}" if name else ""
                raise UserError(f"the threshold{of} is {threshold:g}; scores lie between 0 and 1{meant}")

    def require(self, classes: Sequence[str]) -> None:
        """Raise UserError where a class is named that is none of these."""
        if unknown := next((name for name in self.by_class if name not in classes), None):
            near = did_you_mean(unknown, classes)
            raise UserError(
                f"--threshold {unknown}={self.by_class[unknown]:g}: the model knows no such class"
                f"{near or f'; it knows {few_of(classes, 12)}'}"
            )

    def among(self, classes: Iterable[str]) -> AskedThresholds:
        """Those of these classes, and that of every class."""
        return AskedThresholds(self.every, {name: self.by_class[name] for name in classes if name in self.by_class})

    def over(self, threshold_K: np.ndarray, origin: str, classes: Sequence[str]) -> tuple[np.ndarray, str]:
        """Thresholds with these in their place, float64 (K,), and where they come from, in words.

        Args:
            threshold_K: those of the model.
            origin: where these come from.
            classes: K names.

        Raises:
            UserError: a class is named that the model does not know.
        """
        self.require(classes)
        if self.every is not None:
            threshold_K, origin = np.full(len(classes), self.every), f"{self.every:g}, as asked"
        if self.by_class:
            threshold_K = np.array([self.by_class.get(name, each) for name, each in zip(classes, threshold_K)])
            origin += f"; {', '.join(f'{name} {each:g}' for name, each in self.by_class.items())}, as asked"
        return threshold_K, origin


Threshold = float | Mapping[str, float] | AskedThresholds | None
"""What Python takes: one for every class, or some by the names of their classes."""


def asked_thresholds(threshold: Threshold) -> AskedThresholds:
    """What is meant, whichever way it is said."""
    if isinstance(threshold, AskedThresholds):
        return threshold
    if isinstance(threshold, Mapping):
        return AskedThresholds(None, threshold)
    return AskedThresholds(threshold)


def read_thresholds(words: Sequence[str]) -> AskedThresholds:
    """The thresholds of a command line: ``0.4`` for every class, ``Wolf=0.3`` for one.

    Raises:
        UserError: one is no number, or two are for the same.
    """
    found: dict[str, float] = {}
    for word in words:
        name, _, number = word.rpartition("=")
        try:
            threshold = float(number)
        except ValueError:
            meant = number.replace(",", ".", 1)
            is_number = "," in number and meant.replace(".", "", 1).isdecimal()
            advice = f"write {f'{name}=' * bool(name)}{meant}" if is_number else "as in 0.4, or Wolf=0.3 for one class"
            raise UserError(f"--threshold {word}: '{number}' is no number; {advice}") from None
        if name in found:
            raise UserError(
                f"--threshold {word}: {name or 'every class'} has another one, {found[name]:g}; leave one out"
            )
        found[name] = threshold
    return AskedThresholds(found.pop("", None), found)
