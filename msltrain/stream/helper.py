"""HelperPasses: the same as `Passes`, with all threads in one process more, which shares the ring's memory.

The two talk through a pipe. The trainer says at which step of which epoch to begin, and which buffers are free again;
the helper sends each batch when it is ready, all but the pixels, or the error in its place. The pipe is also what
ends the helper: it closes with the trainer, however that ends. Signals that stop a training are the trainer's alone.
"""

from __future__ import annotations

import itertools
import logging
import math
import multiprocessing
import operator
import os
import pickle
import select
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass, fields, replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import numpy as np
import torch

from msldata.errors import UserError
from msldata.workers.no_pandas import hide_pandas
from msldata.workers.processes import same_search_path, without_main
from msltrain.stream.config import StreamConfig
from msltrain.stream.errors import SampleError, SkippedSamples
from msltrain.stream.passes import Passes
from msltrain.stream.pipeline import ENDED, Pipeline, StageSeconds
from msltrain.stream.pixels.batch import HostBatch
from msltrain.stream.pixels.resize import WholeImages
from msltrain.stream.pixels.shared import PinnedBytes, SharedBytes
from msltrain.stream.reading.request import note_once
from msltrain.stream.samples.shardset import ShardSet

_PATIENCE = 5.0
"""Seconds in which a helper ends once its pipe is closed; then it is killed."""
_READ_BYTES = 1 << 16
"""Most that is read of a pipe at once: most messages are shorter."""


@dataclass(frozen=True, slots=True)
class _Task:
    """What a helper does all its life; arguments of `Passes`."""

    shards: ShardSet
    config: StreamConfig
    resize: str
    seed: int
    rank: int
    world_size: int


class _Sent(NamedTuple):
    """A batch without its pixels, the error in its place, or, with neither, the end of the pass.

    It is read between two steps of the trainer's, whose caches have other things in them by then: every call of Python
    that reading it takes costs a hundredth of a millisecond. So there are no objects in it that Python would make.
    """

    number: int
    """Of the pass."""
    spent: tuple[float, ...]
    """`StageSeconds` since the batch before, summed over the threads."""
    slot: int = -1
    batch: tuple[Any, ...] = ()
    """From `_packed`."""
    error: BaseException | None = None
    skipped: tuple[tuple[int, SampleError], ...] = ()
    """Those since the batch before."""


class HelperPasses:
    """Pipelines of a helper's threads, one at a time. The helper starts at once and is ready some seconds later.

    Args:
        shards, config, seed, rank, world_size, resize: as for `Passes`; always for training.
        device: where batches go from here.

    Attributes:
        skipped: as of `Passes`, as far as the batches taken tell.
    """

    def __init__(
        self,
        shards: ShardSet,
        config: StreamConfig,
        *,
        seed: int,
        rank: int,
        world_size: int,
        resize: str,
        device: torch.device,
    ):
        self.skipped = SkippedSamples(config.max_skipped)
        self._spent = [0.0] * len(fields(StageSeconds))
        self._task = _Task(shards, replace(config, process="same"), resize, seed, rank, world_size)
        self._device = device
        self._numbers = itertools.count()
        self._helper: _Helper | None = _Helper(self._task, device)

    @property
    def stages(self) -> list[StageSeconds]:
        """Where the helper's threads have spent their time, summed over them, up to the last batch taken."""
        return [StageSeconds(*self._spent)]

    def open(self, epoch: int, step: int) -> HelperPipeline:
        """End the pass before, and begin one at a step of an epoch."""
        if self._helper is None:
            self._helper = _Helper(self._task, self._device)
        number = next(self._numbers)
        self._helper.send(("open", number, epoch, step))
        return HelperPipeline(self._helper, number, self._note)

    def close(self) -> None:
        """End the helper and free the buffers. Another pass may begin, with another helper."""
        if self._helper is not None:
            self._helper.close()
            self._helper = None

    def _note(self, sent: _Sent) -> None:
        self._spent = list(map(operator.add, self._spent, sent.spent))
        for index, error in sent.skipped:
            self.skipped.add(index, error)


class HelperPipeline:
    """One pass, as `Pipeline` gives it to its one consumer.

    Args:
        helper: the process that makes it.
        number: of the pass.
        note: called with all that arrives.
    """

    def __init__(self, helper: _Helper, number: int, note: Callable[[_Sent], None]):
        self._helper, self._number, self._note = helper, number, note
        self._head: _Sent | None = None
        self._lent: dict[HostBatch, int] = {}
        self._is_closed = False

    def take(self) -> HostBatch | None:
        """The next batch, waiting for it; None after the last. Raises the error that kept it from being made."""
        if self._is_closed:
            raise RuntimeError(ENDED)
        if self._head is None:
            self._receive()
        head = self._head
        assert head is not None
        if head.error is not None:
            raise head.error
        if not head.batch:
            return None
        self._head = None
        batch = _unpacked(head.batch, self._helper.ring[head.slot])
        self._lent[batch] = head.slot
        return batch

    def take_ready(self) -> HostBatch | None:
        """The next batch if it is available without waiting and without an error, else None."""
        while self._head is None and self._helper.has_more():
            self._receive()
        head = self._head
        return self.take() if head is not None and head.batch else None

    def release(self, batch: HostBatch) -> None:
        """Return the pixels of a batch to the ring."""
        self._helper.send(("release", self._number, self._lent.pop(batch)))

    def close(self) -> None:
        """Stop the helper's threads; batches not yet taken are lost. May be called twice."""
        if not self._is_closed:
            self._is_closed = True
            self._lent.clear()
            self._helper.stop(self._number)

    def _receive(self) -> None:
        """The next that belongs to this pass."""
        while self._head is None:
            sent = self._helper.receive()
            self._note(sent)
            if sent.number == self._number:
                self._head = sent


class _Helper:
    """The process and the ring, seen by the trainer."""

    def __init__(self, task: _Task, device: torch.device):
        context: Any = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        shared = [SharedBytes() for _ in range(task.config.num_buffers)]
        self.ring = [PinnedBytes(memory, device) for memory in shared]
        # Not a daemon: those are sent a SIGTERM when the trainer ends, which is ignored there.
        self._process = context.Process(target=_help, args=(theirs, [DupFd(one.file) for one in shared], task))
        self._messages = _Messages(self._pipe.fileno())
        self._end = Finalize(self, _end, args=(self._process, self._pipe), exitpriority=10)
        with without_main(__name__), same_search_path():
            self._process.start()
        theirs.close()

    def send(self, message: tuple[Any, ...]) -> None:
        data = pickle.dumps(message)
        try:
            # As `send_bytes` would, in one call: some ten bytes, which are always written whole.
            os.write(self._pipe.fileno(), len(data).to_bytes(4, "big") + data)
        except (BrokenPipeError, ConnectionResetError):
            raise self._gone() from None

    def receive(self) -> _Sent:
        while True:
            try:
                message = pickle.loads(self._messages.next())
            except (EOFError, ConnectionResetError):
                raise self._gone() from None
            if isinstance(message, _Sent):
                return message
            note_once(message)

    def has_more(self) -> bool:
        return self._messages.has_more()

    def stop(self, number: int) -> None:
        if not self._pipe.closed:  # it is when the interpreter has ended, and nothing imported is there any more
            with suppress(UserError):  # the helper is gone: nothing is left to stop
                self.send(("close", number))

    def close(self) -> None:
        for memory in self.ring:
            memory.free()
        self._end()

    def _gone(self) -> UserError:
        self._process.join(_PATIENCE)
        code = self._process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        reason = ", most likely because memory ran out" if code == -signal.SIGKILL else ""
        return UserError(
            f"the helper process that decodes images {how}{reason}; a run goes on from its last checkpoint with "
            "--resume auto; stream.process=same decodes without a helper"
        )


def _end(process: Any, pipe: Connection) -> None:
    """Close the pipe, at which the helper ends."""
    pipe.close()
    if process.pid is None:  # it could not be started
        return
    process.join(_PATIENCE)
    if process.exitcode is None:
        process.kill()
        process.join()


# In the helper


def _help(pipe: Connection, files: list[Any], task: _Task) -> None:
    """All that a helper does, until the trainer closes its side of the pipe."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    hide_pandas()
    torch.set_num_threads(1)
    memories = [SharedBytes(file.detach()) for file in files]
    passes = Passes(
        task.shards,
        task.config,
        training=True,
        seed=task.seed,
        rank=task.rank,
        world_size=task.world_size,
        resize=task.resize,
        memories=[memory.allocate for memory in memories],
    )
    sender = _Sender(pipe, passes)
    pipeline: Pipeline | None = None
    number = -1
    try:
        while True:
            what, concerned, *details = pickle.loads(pipe.recv_bytes())
            if what == "open":
                number, sender.lent = concerned, {}
                try:
                    pipeline = passes.open(*details)
                except Exception as error:
                    pipeline = None
                    sender.send_error(number, error)
                else:
                    threading.Thread(target=sender.run, args=(pipeline, number), daemon=True).start()
            elif pipeline is not None and concerned == number:
                if what == "release":
                    pipeline.release(sender.lent.pop((number, details[0])))
                else:
                    pipeline.close()
                    pipeline = None
    except (EOFError, OSError):
        pass  # the trainer is gone, or needs no batches any more
    os._exit(0)  # whatever the threads are doing


class _Sender:
    """Sends batches as they become ready, one pass at a time."""

    def __init__(self, pipe: Connection, passes: Passes):
        self._pipe, self._passes = pipe, passes
        self._lock = threading.Lock()
        self.lent: dict[tuple[int, int], HostBatch] = {}
        """Batches that the trainer has, by pass and slot."""
        self._num_skipped = 0
        self._spent = StageSeconds()
        log = logging.getLogger("msltrain")
        log.propagate, log.handlers = False, [_Forward(self)]

    def run(self, pipeline: Pipeline, number: int) -> None:
        """Send all of a pass, or up to an error."""
        try:
            while (batch := pipeline.take()) is not None:
                slot = self._passes.slots.index(pipeline.slot(batch))
                self.lent[number, slot] = batch
                self._send_sent(number, slot=slot, batch=_packed(batch))
            self._send_sent(number)
        except (BrokenPipeError, ConnectionResetError):
            pass
        except BaseException as error:
            self.send_error(number, error)

    def send(self, message: _Sent | str) -> None:
        """Send a message."""
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        with self._lock:
            self._pipe.send_bytes(data)

    def send_error(self, number: int, error: BaseException) -> None:
        """Send an error, which is raised in the trainer."""
        if not isinstance(error, UserError | OSError):
            error.add_note(f"in the helper process:\n{traceback.format_exc()}")
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # it cannot be sent
            error = RuntimeError(f"{type(error).__name__}: {error}")
        with suppress(BrokenPipeError, ConnectionResetError):
            self._send_sent(number, error=error)

    def _send_sent(self, number: int, **what: Any) -> None:
        skipped = tuple(self._passes.skipped.errors.items())[self._num_skipped :]
        self._num_skipped += len(skipped)
        before, self._spent = self._spent, StageSeconds.total(self._passes.stages)
        self.send(_Sent(number, astuple(self._spent - before), skipped=skipped, **what))


class _Forward(logging.Handler):
    """Sends what is logged to the trainer, which tells the user."""

    def __init__(self, sender: _Sender):
        super().__init__()
        self._sender = sender

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            self._sender.send(record.getMessage())


class _Messages:
    """What `Connection.send_bytes` wrote at the other end, in one read of the pipe where `recv_bytes` takes two.

    Args:
        file: descriptor of the pipe.
    """

    def __init__(self, file: int):
        self._file, self._arrived = file, bytearray()
        self._poll = select.poll()
        self._poll.register(file, select.POLLIN)

    def next(self) -> bytearray:
        """The next message, waiting for it. Raises EOFError when the other end is closed."""
        arrived = self._arrived
        while len(arrived) < 4 or len(arrived) < (end := 4 + int.from_bytes(arrived[:4], "big")):
            more = os.read(self._file, _READ_BYTES)
            if not more:
                raise EOFError
            arrived += more
        message = arrived[4:end]
        del arrived[:end]
        return message

    def has_more(self) -> bool:
        """Whether the next message, or some of it, is there."""
        return bool(self._arrived) or bool(self._poll.poll(0))


# A batch as few plain values: `torch` would send its tensors as files, and `pickle` each array as an object of Python.


def _packed(batch: HostBatch) -> tuple[Any, ...]:
    """A batch's fields, of its pixels the shape alone."""
    pixels = batch.pixels
    rows = [batch.key_hash_B.view(np.int64), batch.index_B, *batch.crop_B4.T]
    if isinstance(pixels, WholeImages):
        rows += [pixels.place_B, pixels.width_B, *pixels.crop_B4.T]
        shape: tuple[int, ...] = pixels.flat_N.shape
    else:
        assert isinstance(pixels, torch.Tensor)
        shape = pixels.shape
    numbers = np.array(rows, dtype=np.int64)
    marks = [bytearray(getattr(batch, name).numpy()) for name in ("flip_B", "target_BK", "ignore_BK")]
    return batch.keys, batch.num_bytes, batch.target_BK.shape[1], tuple(shape), bytearray(numbers), *marks


def _unpacked(packed: tuple[Any, ...], memory: PinnedBytes) -> HostBatch:
    """The batch, with pixels in memory."""
    keys, num_bytes, num_classes, shape, numbers, flips, targets, ignores = packed
    is_whole, size_BK = len(shape) == 1, (len(keys), num_classes)
    number_NB = np.frombuffer(numbers, dtype=np.int64).reshape(12 if is_whole else 6, len(keys))
    pixels: torch.Tensor | WholeImages
    if is_whole:
        pixels = WholeImages(memory.first(shape[0]), number_NB[6], number_NB[7], number_NB[8:].T)
    else:
        pixels = memory.first(math.prod(shape)).view(shape)
    return HostBatch(
        pixels=pixels,
        flip_B=torch.from_numpy(np.frombuffer(flips, dtype=np.bool_)),
        target_BK=torch.from_numpy(np.frombuffer(targets, dtype=np.uint8).reshape(size_BK)),
        ignore_BK=torch.from_numpy(np.frombuffer(ignores, dtype=np.bool_).reshape(size_BK)),
        keys=keys,
        key_hash_B=number_NB[0].view(np.uint64),
        index_B=number_NB[1],
        crop_B4=number_NB[2:6].T,
        num_bytes=num_bytes,
    )
