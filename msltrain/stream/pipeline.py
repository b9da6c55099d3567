"""Pipeline: worker threads that fill a ring of reused batch buffers, in order, for one pass over a plan.

One planner thread looks up what the next steps need and starts the reads, as far ahead as the memory limit allows; when
a buffer is free it hands the samples of the next batch, one by one, to the decoding threads. Batches leave in order. An
error stops at its batch: the consumer gets every batch before it and then the error. A bad sample may be skipped
instead: replaced in training, left out in evaluation. Nothing here knows about devices.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from queue import SimpleQueue

import numpy as np
import torch

from msltrain.stream.errors import SampleError, SkippedSamples
from msltrain.stream.pixels.batch import HostBatch
from msltrain.stream.pixels.buffers import EncodedSlot, PixelSlot, Slot
from msltrain.stream.pixels.decode import Decoder
from msltrain.stream.pixels.imagecache import ImageCache
from msltrain.stream.reading.request import Fetcher, Request, SomeOf
from msltrain.stream.samples.lookup import Lookup, Samples

_PATIENCE = 1.0
"""Seconds that closing waits for a planner that is busy reading."""
ENDED = "this iteration has ended: its loader was closed or iterated anew"
_AHEAD_AT_ONCE = 4
"""Batches that are requested at once; each holds the interpreter for a tenth of a millisecond or longer."""


class Pipeline:
    """Runs from construction to ``close``; used by one consumer thread.

    Args:
        lookup, fetcher: the epoch, and what reads its samples.
        batches: item_N of each batch, in order: places in the epoch's order, ascending.
        slots: the ring; every batch must fit one.
        stages: one for each decoding thread, which adds its times to it.
        read_ahead_bytes: limit on the encoded bytes requested but not yet given to the decoding threads.
        skipped: where bad samples are noted; None: they are errors.
        replace_skipped: replace a bad sample with the one before it in the plan, so that batches keep their size; else
            leave it out.
        images: the cache that provides decoded images and keeps more of them.
    """

    def __init__(
        self,
        lookup: Lookup,
        fetcher: Fetcher,
        batches: Iterable[np.ndarray],
        slots: list[Slot],
        *,
        stages: Sequence[StageSeconds],
        read_ahead_bytes: int,
        skipped: SkippedSamples | None = None,
        replace_skipped: bool = False,
        images: ImageCache | None = None,
    ):
        self._lookup, self._fetcher = lookup, fetcher
        self._batches = lookup.batches(batches)
        self._read_ahead_bytes = read_ahead_bytes
        self._skipped, self._replace_skipped = skipped, replace_skipped
        self._images = images
        self._plan_lock = threading.Lock()
        self._closing = False
        self._free: SimpleQueue[Slot | None] = SimpleQueue()
        self._tasks: SimpleQueue[tuple[BatchJob, int] | None] = SimpleQueue()
        self._ready: SimpleQueue[BatchJob | BaseException] = SimpleQueue()  # StopIteration ends it
        self._started = threading.Barrier(len(stages) + 1)
        self._head: BatchJob | BaseException | None = None
        self._lent: dict[HostBatch, Slot] = {}
        for slot in slots:
            self._free.put(slot)
        self._threads = [threading.Thread(target=self._plan_batches, name="msl-plan", daemon=True)]
        self._threads += [
            threading.Thread(target=self._decode_samples, args=(own,), name=f"msl-decode-{number}", daemon=True)
            for number, own in enumerate(stages)
        ]
        _running.add(self)
        self._start_threads()

    def take(self) -> HostBatch | None:
        """The next batch, waiting for it; None after the last. Raises the error that kept it from being made."""
        if self._head is None and not self._closing:
            self._head = self._ready.get()
        head = self._head
        if isinstance(head, BatchJob) and not self._closing:
            head.finished.wait()
        if self._closing:
            raise RuntimeError(ENDED)
        if isinstance(head, StopIteration):
            return None
        if isinstance(head, BaseException):
            raise head
        assert head is not None
        if head.errors:
            self._settle(head)
        self._head = None
        assert head.slot is not None
        samples = head.samples
        if head.left_out and not len(samples):
            self._free.put(head.slot)
            return self.take()
        batch = HostBatch(
            pixels=head.slot.pixels(len(samples), partial(self._error, samples)),
            flip_B=torch.from_numpy(samples.flip_N),
            target_BK=torch.from_numpy(samples.target_NK),
            ignore_BK=torch.from_numpy(samples.ignore_NK),
            keys=samples.rows.key_N.tolist(),
            key_hash_B=samples.rows.key_hash_N,
            index_B=samples.index_N,
            crop_B4=samples.crop_N4,
            num_bytes=head.num_bytes,
        )
        self._lent[batch] = head.slot
        return batch

    def take_ready(self) -> HostBatch | None:
        """The next batch if it is available without waiting and without an error, else None."""
        if self._head is None and not self._ready.empty():
            self._head = self._ready.get()
        head = self._head
        return self.take() if isinstance(head, BatchJob) and head.finished.is_set() and not head.errors else None

    def slot(self, batch: HostBatch) -> Slot:
        """Where the pixels of a batch are that has not been released."""
        return self._lent[batch]

    def release(self, batch: HostBatch) -> None:
        """Return the pixels of a batch to the ring."""
        self._free.put(self._lent.pop(batch))

    def close(self) -> None:
        """Stop all threads and wait for them; batches not yet taken are lost. May be called twice, and while another
        thread waits in `take`, which then raises."""
        if self._closing:
            return
        self._closing = True
        self._fetcher.close()
        self._free.put(None)
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            # Decoding threads end within one image; the planner may hang on a sample index that does not arrive.
            thread.join(timeout=_PATIENCE if thread is self._threads[0] else None)
        self._lent.clear()
        self._ready.put(StopIteration())
        if isinstance(head := self._head, BatchJob):
            head.finished.set()
        _running.discard(self)

    def _start_threads(self) -> None:
        # Torch would start its own pool inside every decoding thread. The number of threads that a thread sets
        # stays its own, but becomes the default for new threads too; so ours is put back once all have set theirs.
        num_threads = torch.get_num_threads()
        for thread in self._threads:
            thread.start()
        self._started.wait()
        torch.set_num_threads(num_threads)

    def _plan_batches(self) -> None:
        ahead: deque[BatchJob] = deque()
        ahead_bytes = 0
        try:
            while not self._closing:
                # Reads run ahead, but never while a buffer stands idle for want of a batch, and by a few batches for
                # each that leaves: all at once they would keep the interpreter from the decoding threads.
                for _ in range(_AHEAD_AT_ONCE):
                    if ahead and (ahead_bytes >= self._read_ahead_bytes or not self._free.empty()):
                        break
                    with self._plan_lock:
                        samples = next(self._batches, None)
                        if samples is None:
                            break
                        ahead.append(self._request(samples))
                    ahead_bytes += ahead[-1].num_bytes
                if not ahead:
                    self._ready.put(StopIteration())
                    return
                slot = self._free.get()
                if slot is None:
                    return
                job = ahead.popleft()
                ahead_bytes -= job.num_bytes
                self._dispatch(job, slot)
        except BaseException as error:
            self._ready.put(error)

    def _settle(self, job: BatchJob) -> None:
        """Repair a batch that has bad samples in it, or raise the first error."""
        for position in sorted(job.errors):
            error = job.errors[position]
            if self._skipped is None or not isinstance(error, SampleError):
                raise error
            self._skipped.add(int(job.samples.index_N[position]), error)
            if self._replace_skipped:
                self._replace(job, position)
        if not self._replace_skipped:
            job.leave_out_bad()
        job.errors.clear()

    def _replace(self, job: BatchJob, position: int) -> None:
        """Replace a sample with the nearest good one before it in the epoch's order. That order does not depend on
        ranks, so a batch stays the same on any number of them. This is rare, so it is done one by one.
        """
        assert self._skipped is not None and isinstance(job.slot, PixelSlot)
        num_samples = self._lookup.plan.num_samples
        for back in range(1, num_samples):
            item = (job.samples.item_N[position] - back) % num_samples
            with self._plan_lock:
                other = self._request(self._lookup.samples(np.array([item])))
            self._decode_soon(other, job.slot.single())
            while not other.finished.wait(timeout=_PATIENCE):
                if self._closing:
                    raise RuntimeError(ENDED)
            if not other.errors:
                return job.take_over(other, position)
            if not isinstance(other.errors[0], SampleError):
                raise other.errors[0]
            self._skipped.add(int(other.samples.index_N[0]), other.errors[0])
        raise job.errors[position]

    def _request(self, samples: Samples) -> BatchJob:
        """Start reading. The lock is held: the consumer asks too, for samples that replace bad ones."""
        cached = {} if self._images is None else self._images.find(samples.index_N, samples.reduction_N)
        shard_N, rows = samples.shard_N, samples.rows
        if not cached:
            return BatchJob(samples, self._fetcher.request(shard_N, rows), int(rows.length_N.sum()), cached)
        missing_M = np.setdiff1d(np.arange(len(samples)), list(cached))
        some = rows.take(missing_M)
        request = SomeOf(self._fetcher.request(shard_N[missing_M], some), missing_M)
        return BatchJob(samples, request, int(some.length_N.sum()), cached)

    def _dispatch(self, job: BatchJob, slot: Slot) -> None:
        self._ready.put(job)
        self._decode_soon(job, slot)

    def _decode_soon(self, job: BatchJob, slot: Slot) -> None:
        slot.begin(job.samples)
        job.slot = slot
        job.pixel_slot = slot if isinstance(slot, PixelSlot) else None
        job.num_left = len(job.samples)
        if not job.num_left:
            job.finished.set()
        for position in range(len(job.samples)):
            self._tasks.put((job, position))

    def _decode_samples(self, stages: StageSeconds) -> None:
        # Asking first matters: torch sets a new thread's number to the default on first use, undoing what was set.
        torch.get_num_threads()
        torch.set_num_threads(1)
        self._started.wait()
        decoder = Decoder()
        began = time.perf_counter()
        while (task := self._tasks.get()) is not None and not self._closing:
            stages.idle += time.perf_counter() - began
            job, position = task
            try:
                self._decode(decoder, job, position, stages)
            except BaseException as error:
                job.finish_one(position, error)
            else:
                job.finish_one(position, None)
            # A thread that waits for work must not keep the last batch's memory.
            del task, job
            began = time.perf_counter()

    def _decode(self, decoder: Decoder, job: BatchJob, position: int, stages: StageSeconds) -> None:
        slot = job.pixel_slot
        began = time.perf_counter()
        if (image_HWC := job.cached.get(position)) is None:
            data = job.request.read(position)
            fetched = time.perf_counter()
            stages.fetch += fetched - began
            if slot is None:
                assert isinstance(job.slot, EncodedSlot)
                job.slot.hold(position, data)
                return
            try:
                image_HWC = slot.decode(decoder, data, position)
            except ValueError as error:
                raise self._error(job.samples, position, str(error)) from None
            if self._images is not None:
                samples = job.samples
                self._images.offer(int(samples.index_N[position]), int(samples.reduction_N[position]), image_HWC)
            began = time.perf_counter()
            stages.decode += began - fetched
        assert slot is not None
        slot.put(position, image_HWC)
        stages.resize += time.perf_counter() - began

    def _error(self, samples: Samples, position: int, reason: str) -> SampleError:
        rows = samples.rows
        return self._lookup.shards.error(
            int(samples.shard_N[position]), rows.key_N[position], int(rows.offset_N[position]), reason
        )


_running: weakref.WeakSet[Pipeline] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Stop the threads of abandoned iterations before the interpreter shuts down under them."""
    for pipeline in list(_running):
        pipeline.close()


@dataclass(eq=False, slots=True)
class BatchJob:
    """A batch on its way."""

    samples: Samples
    request: Request
    num_bytes: int
    cached: dict[int, np.ndarray]
    """Cached decoded images, by position in the batch; ``request`` is for the others."""
    slot: Slot | None = None
    pixel_slot: PixelSlot | None = None
    """``slot``, unless it holds files. Asking an instance of an abstract class for its kind takes half a microsecond,
    which is too long to do for every sample."""
    num_left: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    finished: threading.Event = field(default_factory=threading.Event)
    errors: dict[int, BaseException] = field(default_factory=dict)
    """By position in the batch."""
    left_out: bool = False
    """Whether bad samples were left out."""

    def finish_one(self, position: int, error: BaseException | None) -> None:
        with self.lock:
            if error is not None:
                self.errors[position] = error
            self.num_left -= 1
            if self.num_left == 0:
                self.finished.set()

    def leave_out_bad(self) -> None:
        """Close the gaps that bad samples left."""
        assert isinstance(self.slot, PixelSlot)
        good_N = np.setdiff1d(np.arange(len(self.samples)), list(self.errors))
        self.slot.keep(good_N)
        self.samples = self.samples.take(good_N)
        self.left_out = True

    def take_over(self, other: BatchJob, position: int) -> None:
        """Put the single sample of ``other`` at a place in this batch."""
        assert isinstance(self.slot, PixelSlot) and isinstance(other.slot, PixelSlot)
        self.slot.adopt(position, other.slot)
        self.samples.put(position, other.samples)


@dataclass(slots=True)
class StageSeconds:
    """Wall-clock seconds of one decoding thread, or the sum over several.

    Every thread writes its own and nobody locks: a reader may see times that are one image behind.
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
