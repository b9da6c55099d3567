"""Label spaces: the ordered class names that give every multi-hot vector its meaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from msldata.errors import UserError

VOC_CLASSES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant "
    "sheep sofa train tvmonitor".split()
)
"""The 20 classes of PASCAL VOC 2007, alphabetical, which is also the order of the published label files."""


@dataclass(frozen=True)
class LabelSpace:
    """Ordered class names; the position of a name is its index in every target vector.

    Raises:
        UserError: the list is empty, or a name is empty or appears twice.
    """

    classes: tuple[str, ...]
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index = {name: position for position, name in enumerate(self.classes)}
        if not self.classes or "" in index:
            raise UserError("a label space needs at least one class and no empty names")
        if len(index) != len(self.classes):
            twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
            raise UserError(f"these classes are named twice: {', '.join(twice)}")
        object.__setattr__(self, "_index", index)

    def __len__(self) -> int:
        return len(self.classes)

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def index(self, name: str) -> int:
        """Position of ``name``. Raises UserError that lists what is known."""
        try:
            return self._index[name]
        except KeyError:
            known = ", ".join(self.classes[:30]) + (" …" if len(self.classes) > 30 else "")
            raise UserError(f"unknown class '{name}'; known are: {known}") from None

    def names(self, indices: Sequence[int]) -> list[str]:
        """Class names at ``indices``."""
        return [self.classes[index] for index in indices]


VOC = LabelSpace(VOC_CLASSES)
