"""Samples that cannot be used: the error that names one, and the list of those that were skipped."""

from __future__ import annotations

from msldata.errors import UserError, counted


class SampleError(UserError):
    """A sample whose bytes are damaged or are not an image.

    Args:
        dataset: dataset and split, as ``voc2007/trainval``.
        shard: location of the tar.
        key: the sample's key.
        offset: position of its image's first byte in the tar.
        reason: what is wrong, without a full stop.
    """

    def __init__(self, dataset: str, shard: str, key: str, offset: int, reason: str):
        super().__init__(
            f"{dataset}: sample '{key}' at byte {offset} of {shard}: {reason}; "
            "check the shard with `msl verify`, and copy or build it again if it is damaged; `msl train` and "
            "`msl evaluate` go on without such samples with --on-sample-error skip"
        )
        self.dataset, self.shard, self.key, self.offset, self.reason = dataset, shard, key, offset, reason

    @property
    def short(self) -> str:
        """The error in one line that does not depend on where the shards are."""
        return f"{self.key} at byte {self.offset} of {self.shard.rpartition('/')[2]}: {self.reason}"

    def __reduce__(self):
        return type(self), (self.dataset, self.shard, self.key, self.offset, self.reason)


class TooManySkipped(UserError):
    """More samples were left out than the limit allows."""


class SkippedSamples:
    """The samples that a loader left out, each listed once however often it occurred.

    Args:
        limit: how many there may be.

    Attributes:
        errors: what was wrong, by the sample's position in the stored order of the whole dataset.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.errors: dict[int, SampleError] = {}

    def __len__(self) -> int:
        return len(self.errors)

    def add(self, index: int, error: SampleError) -> None:
        """Note a sample. Raises TooManySkipped."""
        self.errors.setdefault(index, error)
        if len(self) > self.limit:
            raise TooManySkipped(
                f"{error.dataset}: {counted(len(self), 'sample')} cannot be used, more than stream.max_skipped = "
                f"{self.limit}; the last of them: {error}"
            )
