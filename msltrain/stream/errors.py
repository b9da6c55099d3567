"""The error of one sample that cannot be had, named so that a person can find it."""

from __future__ import annotations

from msldata.errors import UserError


class SampleError(UserError):
    """A sample whose bytes are damaged or are not an image.

    Args:
        dataset: dataset and split, as ``voc2007/trainval``.
        shard: location of the tar.
        key: the sample's key.
        offset: of its image's first byte in the tar.
        reason: what is wrong, without a full stop.
    """

    def __init__(self, dataset: str, shard: str, key: str, offset: int, reason: str):
        super().__init__(
            f"{dataset}: sample '{key}' at byte {offset} of {shard}: {reason}; "
            "check the shard with `msl verify`, and copy or build it again if it is damaged"
        )
        self.dataset, self.shard, self.key, self.offset, self.reason = dataset, shard, key, offset, reason

    def __reduce__(self):
        return type(self), (self.dataset, self.shard, self.key, self.offset, self.reason)
