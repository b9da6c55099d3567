"""SharedBytes: memory that two processes see, for batches that one of them makes and the other takes."""

from __future__ import annotations

import mmap
import os
import weakref

import torch

from msldata.errors import UserError


class SharedBytes:
    """A file in memory without a name: it is gone with the last process that has it, however that ends, and no limit
    on ``/dev/shm`` applies.

    Args:
        file: the descriptor of one that another process made; None: a new one. It is closed with this object.
    """

    def __init__(self, file: int | None = None):
        self.file = os.memfd_create("msltrain-batch") if file is None else file
        weakref.finalize(self, os.close, self.file)

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """Make it at least this long. Gives uint8 (num_bytes,); what was in it stays there.

        Raises:
            UserError: memory is out.
        """
        try:
            os.posix_fallocate(self.file, 0, num_bytes)  # now, rather than a SIGBUS at the first write
        except OSError as error:
            raise UserError(
                f"no memory for a batch of {num_bytes / 1e6:.0f} MB ({error.strerror}); set a smaller "
                "stream.batch_size, or fewer stream.num_buffers"
            ) from None
        return self.map(num_bytes)

    def map(self, num_bytes: int) -> torch.Tensor:
        """The first bytes, uint8 (num_bytes,), as this process sees them."""
        with torch.inference_mode(False):  # else a batch of a training could not be mirrored in place
            return torch.frombuffer(mmap.mmap(self.file, num_bytes), dtype=torch.uint8)


class PinnedBytes:
    """Shared memory in the process that trains, pinned for copies to a GPU.

    Args:
        shared: the memory.
        device: where batches go; nothing is pinned for a CPU.
    """

    def __init__(self, shared: SharedBytes, device: torch.device):
        self._shared, self._is_cuda = shared, device.type == "cuda"
        self._flat_N = torch.empty(0, dtype=torch.uint8)
        self._array_N = self._flat_N.numpy()
        self._is_pinned = False

    def first(self, num_bytes: int) -> torch.Tensor:
        """uint8 (num_bytes,), after the other process has made it at least so long."""
        if len(self._array_N) < num_bytes:
            self.free()
            self._flat_N = self._shared.map(os.fstat(self._shared.file).st_size)
            if self._is_cuda:
                code = torch.cuda.cudart().cudaHostRegister(self._flat_N.data_ptr(), len(self._flat_N), 0)
                self._is_pinned = int(code) == 0  # memory that cannot be pinned is copied all the same, if slower
            self._array_N = self._flat_N.numpy()
        return torch.from_numpy(self._array_N[:num_bytes])  # indexing a tensor takes ten times as long

    def free(self) -> None:
        """Let go of the memory; nothing may be copying from it."""
        if self._is_pinned:
            torch.cuda.cudart().cudaHostUnregister(self._flat_N.data_ptr())
            self._is_pinned = False
        self._flat_N = torch.empty(0, dtype=torch.uint8)
        self._array_N = self._flat_N.numpy()
