"""StageSeconds: where a decoding thread's time goes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(slots=True)
class StageSeconds:
    """Wall-clock seconds of one decoding thread, or of several added up.

    Every thread writes its own and nobody locks: a reader may see a stage that is one image behind.
    """

    idle: float = 0.0
    """Waiting for a sample to work on: the consumer, the plan or the sample indexes are slower than the threads."""
    fetch: float = 0.0
    """Waiting for encoded bytes, and checking them."""
    decode: float = 0.0
    """From encoded bytes to the whole image."""
    resize: float = 0.0
    """From the whole image to its place in the batch."""

    @staticmethod
    def total(parts: Iterable[StageSeconds]) -> StageSeconds:
        """The sum over threads."""
        return StageSeconds(*map(sum, zip(*((part.idle, part.fetch, part.decode, part.resize) for part in parts))))

    def __sub__(self, other: StageSeconds) -> StageSeconds:
        return StageSeconds(*(getattr(self, field.name) - getattr(other, field.name) for field in fields(StageSeconds)))
