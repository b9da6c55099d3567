"""The training run: from a config to a run folder, with validation, checkpoints and clean interruption."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from msldata.contract.resize_advice import advise_resize
from msldata.errors import UserError
from msltrain.config import TrainConfig
from msltrain.hosts.distributed import Ranks, process_group
from msltrain.hosts.interrupt import Interrupted, StopSignals
from msltrain.hosts.rank_output import is_first_process
from msltrain.measures.metrics import NotANumberError
from msltrain.runs.checkpoint import Checkpoint, copy_checkpoint, save_checkpoint
from msltrain.runs.find_checkpoint import BEST, CHECKPOINTS, FAILED, LAST
from msltrain.runs.folder import RunFolder
from msltrain.runs.trackers import check_trackers
from msltrain.stream.errors import TooManySkipped
from msltrain.training.batchnorm_check import check_smallest_part
from msltrain.training.data import TrainData, notes_of_settings
from msltrain.training.events import (
    EpochEvent,
    Event,
    OnEpoch,
    OnEvent,
    OnStep,
    PhaseEvent,
    StartEvent,
    StepEvent,
    TickEvent,
    TrainResult,
    ask,
)
from msltrain.training.learner import Learner, UnfitCheckpoint, check_compiler
from msltrain.training.optim import for_batch_size, learning_rate, num_warmup_steps
from msltrain.training.resume import Resume, Start, open_run, rate_note, take_position
from msltrain.training.siamese import positive_weights
from msltrain.training.step_log import StepLog
from msltrain.training.validation import (
    can_choose,
    doubt_of_choice,
    has_finite_weights,
    small_data_notes,
    validation_mean_ap,
)


def train(
    config: TrainConfig,
    *,
    run_dir: str | Path,
    resume: Resume = False,
    allow_changes: bool = False,
    on_event: OnEvent | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainResult:
    """Train a recogniser, alone or as one of the processes that torchrun started.

    Every batch is ``stream.batch_size`` samples over all processes together, so the number of processes changes only
    the speed (and BatchNorm's statistics, which are per process unless ``run.sync_batchnorm``, and with ``augment.mix``
    which images are mixed).

    Args:
        config: the whole run.
        run_dir: folder or URL where everything is written. With several hosts, only the first process's host needs it.
        resume: True: continue the run in ``run_dir`` from its last checkpoint, bit for bit on a CPU; from the beginning
            if it was stopped before the first one. ``auto``: if there is a run; else start one.
        allow_changes: continue a run that had another config or other data; an epoch with other samples starts from its
            beginning.
        on_event: called in the first process with `msltrain.training.events`.
        on_step, on_epoch: so too, but all processes wait for it, and it may end the run; all must be given them. What
            one raises is raised, once everything is saved; in other processes as a UserError.

    Raises:
        UserError: ``run_dir`` is in use (without ``resume``) or holds another run (with it); the data, the model or
            this torch cannot be used; a loss is not finite, with the step and the samples' keys.
        Interrupted: SIGINT, SIGTERM, SIGHUP or SIGUSR1 came; the state is saved.
        StorageError, FileNotFoundError: shards or checkpoint cannot be read or written.
    """
    began = time.perf_counter()
    check_compiler(config)
    check_trackers(config)
    if on_event is not None and is_first_process():
        on_event(PhaseEvent(what="reading the shards and the keep masks"))
    with (
        RunFolder(run_dir) as folder,
        process_group(config.run.device) as ranks,
        StopSignals() as stop,
        TrainData(config, ranks) as data,
    ):
        start = ranks.first_does(lambda: open_run(folder, config, data, resume, allow_changes))
        num_steps, best, is_chosen = _run(config, data, folder, ranks, stop, on_event, start, on_step, on_epoch)
        doubt = "" if data.validation is None else doubt_of_choice(data.validation.shards)
    return TrainResult(
        run_dir=folder.location,
        num_steps=num_steps,
        first_step=0 if start.checkpoint is None else start.checkpoint.step,
        last=folder.place(CHECKPOINTS, LAST),
        best=None if best is None else folder.place(CHECKPOINTS, BEST),
        best_epoch=None if best is None else best["epoch"] + 1,
        validation_mAP=None if best is None else best["mAP"],
        is_chosen=is_chosen,
        doubt=doubt,
        seconds=time.perf_counter() - began,
    )


def _run(
    config: TrainConfig,
    data: TrainData,
    folder: RunFolder,
    ranks: Ranks,
    stop: StopSignals,
    on_event: OnEvent | None,
    start: Start,
    on_step: OnStep | None,
    on_epoch: OnEpoch | None,
) -> tuple[int, dict[str, Any] | None, bool]:
    """Steps taken, best epoch and whether it was chosen, of a Trainer that lives no longer than this
    call, as ``process_group`` requires."""
    trainer = Trainer(config, data, folder, ranks, stop, on_event, start)
    trainer.on_step, trainer.on_epoch = on_step, on_epoch
    trainer.run()
    return trainer.step, trainer.best, trainer.chooses


class Trainer:
    """The training loop, and the run's position in it.

    Args:
        config, data, folder, ranks: the run.
        stop: says when to stop.
        on_event: called in the first process.
        start: where the run begins or continues.

    Attributes:
        step: steps taken, over the whole run.
        best: ``epoch`` and ``mAP`` of the best checkpoint so far.
        chooses: whether validation decides which one that is; where it shows too little, it is the last.
        on_step, on_epoch: the caller's own; ``ended`` says whether one of them has ended the run.
    """

    on_step: OnStep | None = None
    on_epoch: OnEpoch | None = None
    ended = False

    def __init__(
        self,
        config: TrainConfig,
        data: TrainData,
        folder: RunFolder,
        ranks: Ranks,
        stop: StopSignals,
        on_event: OnEvent | None,
        start: Start,
    ):
        self.config, self.data, self.folder, self.ranks, self.stop = config, data, folder, ranks, stop
        self.on_event = on_event if ranks.is_first else None
        checkpoint, self._changes = start.checkpoint, start.changes
        self.chooses = data.validation is not None and can_choose(data.validation.shards)
        self.step = 0
        self.best: dict[str, Any] | None = None
        if checkpoint is not None:
            self.step = checkpoint.step
            self.ended = checkpoint.ended and not self._changes
            self.best = checkpoint.train_state["best"]
            take_position(data.training, checkpoint.train_state["loader"], bool(self._changes))
            if start.validates_anew and data.training.next_epoch < config.optim.num_epochs:
                self.best = None  # its mAP is of other samples
        # A run continued with another batch size has taken another number of steps than its place in the schedule says.
        self._steps_before = self.step - self._scheduled
        self._first_epoch = data.training.epoch  # at whose end the run may have been stopped
        self._start_loader()  # it has the first batches ready when the network is built
        self._tell(PhaseEvent(what="building the network"))
        try:
            weight_K = positive_weights(data.training, config.loss.balance) if config.loss.balance else None
            self.learner = Learner(config, len(data.classes), ranks, checkpoint, data.classes, weight_K)
        except UnfitCheckpoint as error:
            if not self._changes:
                raise UserError(f"{folder.place(CHECKPOINTS, LAST)}/{error}; copy the checkpoint again") from None
            raise UserError(
                f"{folder.location}: its state does not fit what was changed ({'; '.join(self._changes)}): {error}; "
                "start a new run in another folder"
            ) from None
        check_smallest_part(
            config, self.learner.step_module, data.training.shards.num_samples, len(data.classes), ranks
        )
        self._optim, note = for_batch_size(config.optim, config.stream.batch_size)
        self._notes = [note] if note else []
        self._changed = start.notes(self.best)
        if checkpoint is not None:
            then, _ = for_batch_size(checkpoint.config.optim, checkpoint.config.stream.batch_size)
            epochs = self._scheduled / len(data.training)
            self._changed += filter(None, [rate_note(then, self._optim, epochs, len(data.training))])
        self._num_skipped = 0
        self._steps_here = 0
        self._last_keys: Sequence[str] = ()
        self._step_log = StepLog()
        # Only now: a mistake in the config should not leave a folder behind that then counts as used.
        ranks.first_does(self._write_down)

    @property
    def num_steps(self) -> int:
        """Steps of the whole run, including those taken in batches of another size."""
        return self._steps_before + self.config.optim.num_epochs * len(self.data.training)

    @property
    def _scheduled(self) -> int:
        """Steps to this point if all batches had this run's size: the place in the schedule."""
        return self.data.training.epoch * len(self.data.training) + self.data.training.step

    def run(self) -> None:
        """Train to the end."""
        self._tell(self._start_event())
        num_epochs = self.config.optim.num_epochs
        for epoch in range(self._first_epoch, num_epochs):
            if self.ended or self._is_over(epoch):
                break
            began = time.perf_counter()
            self.learner.train()
            try:
                self._train_epoch(epoch)
                self.learner.measure_norms(self.data.precise_bn)
                self._start_loader()  # with the next epoch, or its first step would wait
                mean_ap, is_best = self._validate(epoch)
            except TooManySkipped:
                if self.folder.path.is_dir():  # not so on other hosts
                    self.folder.add_skipped(self.data.skipped())
                raise
            self._save_epoch(epoch, mean_ap, is_best)
            event = EpochEvent(
                epoch=epoch,
                num_epochs=num_epochs,
                step=self.step,
                validation_mAP=mean_ap,
                is_best=is_best and self.chooses,
                seconds=time.perf_counter() - began,
                num_skipped=self._num_skipped,
            )
            if self.ranks.is_first and mean_ap is not None:
                row = {"step": self.step, "epoch": epoch, "validation_mAP": mean_ap, "seconds": event.seconds}
                self.folder.add_metrics(row)
            if self.on_epoch is not None and not self.ended:
                model = self.learner.shipped.eval()
                if self._is_end_asked("on_epoch", functools.partial(self.on_epoch, event, model), mean_ap):
                    self.ended = True
                    self._save_epoch(epoch, mean_ap, is_best)
            ends_early = (self.ended or self._is_over(epoch + 1)) and epoch + 1 < num_epochs
            self._tell(replace(event, ends_early=ends_early))
        self.ranks.first_does(self.folder.publish_all)

    def _is_end_asked(self, name: str, call: Callable[[], object], mean_ap: float | None = None) -> bool:
        """Whether a callback of the caller's, called in the first process, ends the run. Raises what it raises."""
        answer = ask(self.ranks, name, call)
        if not isinstance(answer, Exception):
            return answer
        self._save(mean_ap)
        place, _ = self._published(LAST)
        answer.add_note(f'{name} ended the run after step {self.step}, saved in {place}; resume="auto" goes on')
        raise answer

    def _is_over(self, epoch: int) -> bool:
        """Whether ``optim.patience`` ended the run before ``epoch``."""
        patience = self.config.optim.patience
        return patience > 0 and self.chooses and self.best is not None and epoch - 1 - self.best["epoch"] >= patience

    def _start_loader(self) -> None:
        if not self.ended and self.data.training.next_epoch < self.config.optim.num_epochs:
            self.data.training.start()

    def _write_down(self) -> None:
        """Note in the run folder that the run starts, or goes on, here."""
        if self.step == 0 or self._changes:
            self.folder.start(self.config, self.data.identities)
        self._notes += filter(None, [self.folder.other_code()] if self.step else [])
        self.folder.keep_metrics_until(self.step)
        self.folder.note_start(self.ranks, self.step, self._changes)
        self.folder.track(self.config, self.step)
        self.folder.publish()

    def _train_epoch(self, epoch: int) -> None:
        """Take the remaining steps of an epoch. Raises Interrupted once the state is saved."""
        loader, config = self.data.training, self.config
        if loader.next_epoch > epoch:  # stopped between its last step and its end
            return
        self._step_log = StepLog()
        waited = loader.stats.seconds_waited
        if self._steps_here == 0:
            self._tell(PhaseEvent(what="waiting for the first batch"))
        for batch in loader:
            if self._steps_here == 0:
                began = time.perf_counter()
                self._tell(PhaseEvent(what="compiling the first step" if config.run.compile else "the first step"))
            self._step_log.waited += loader.stats.seconds_waited - waited
            waited = loader.stats.seconds_waited
            keys, batch = batch.keys, self.data.augmented(batch, epoch)
            view = self.data.masked_view(batch, epoch)
            rate = learning_rate(self._optim, self.step - self._steps_before, len(loader))
            losses = self.learner.take_step(batch, view, rate, epoch)
            self._step_log.add(rate, losses, keys)
            self._last_keys = keys
            del batch, view  # or the next ones would need room beside them
            self.step += 1
            self._steps_here += 1
            if self._steps_here == 1:
                self._tell(PhaseEvent(what=f"the first step took {time.perf_counter() - began:.1f} s", step=self.step))
                self._step_log.leave_out()
            elif self._step_log.is_slow():
                self._tell(TickEvent(step=self.step, epoch=epoch))
            due = config.run.save_every > 0 and self.step % config.run.save_every == 0
            stopping = self._report(epoch) if due or self.step % config.run.log_every == 0 else False
            if self.ranks.world_size == 1 and self.stop.received is not None:
                # A single process stops after any step; several can only agree on it where they report.
                self._report(epoch)
                stopping = True
            if stopping or due:
                self._save(None)
            if stopping:
                place, kept = self._published(LAST)
                raise Interrupted(
                    signal=self.stop.received,
                    step=self.step,
                    num_steps=self.num_steps,
                    checkpoint=place,
                    kept=kept or "",
                )
            if due:
                self.ranks.first_does(self.folder.publish)
            if self.ended:
                break
        self._report(epoch)

    def _report(self, epoch: int) -> bool:
        """Log the steps since the last report; return whether any process was asked to stop. Losses are read here and
        not after every step, because reading makes a GPU wait.

        Raises:
            UserError: a loss was not finite.
        """
        interval = self._step_log
        if not interval.losses:
            return False
        names, rows, asked = interval.read(self.ranks, self.stop.received is not None)
        for offset, row in enumerate(rows):
            if not all(map(math.isfinite, row)):
                terms = ", ".join(f"{name} {value:g}" for name, value in zip(names, row))
                step = self.step - len(rows) + offset + 1
                self._fail_on(step, f"the loss is not finite ({terms})", interval.keys[offset])
        speed, data_wait = interval.speed()
        event = StepEvent(
            step=self.step,
            num_steps=self.num_steps,
            epoch=epoch,
            num_epochs=self.config.optim.num_epochs,
            losses={name: sum(column) / len(rows) for name, column in zip(names, zip(*rows))},
            learning_rate=interval.learning_rate,
            images_per_second=speed * self.ranks.world_size,
            data_wait=data_wait,
        )
        if self.ranks.is_first:
            self.folder.add_metrics(
                {
                    "step": event.step,
                    "epoch": event.epoch,
                    **event.losses,
                    "learning_rate": event.learning_rate,
                    "images_per_second": round(event.images_per_second, 2),
                    "data_wait": round(event.data_wait, 4),
                }
            )
        self._tell(event)
        self._step_log = StepLog()
        if self.on_step is not None and not self.ended:
            self.ended = self._is_end_asked("on_step", functools.partial(self.on_step, event))
        return asked

    def _fail_on(self, step: int, what: str, keys: Sequence[str]) -> NoReturn:
        everyone = [key for rank_keys in self.ranks.gather(keys) for key in rank_keys]
        self._save(None, self.folder.failed)
        place, _ = self._published(FAILED)
        raise UserError(
            f"step {step} of {self.num_steps}: {what}; the batch was "
            f"{', '.join(everyone)}; the state after step {self.step} is in "
            f"{place}, and checkpoints from before are as they were; start a new run "
            "with a lower optim.lr or with optim.clip_norm=1, and look at these samples"
        )

    def _validate(self, epoch: int) -> tuple[float | None, bool]:
        """The validation mAP, and whether this epoch is the best so far."""
        if self.data.validation is None:
            return None, False
        if not has_finite_weights(self.learner.shipped, self.ranks):
            self._fail_on(self.step, "after it the weights are no numbers any more", self._last_keys)
        self.ranks.share_buffers(self.learner.shipped)
        try:
            mean_ap = validation_mean_ap(self.learner.shipped, self.data.validation, self.ranks, amp=self.learner.amp)
        except NotANumberError:
            self._fail_on(self.step, "after it the network answers with no numbers any more", self._last_keys)
        # Of two equal ones, the later has seen more; and one from the warm-up has seen hardly anything.
        warm = self._scheduled >= num_warmup_steps(self._optim, len(self.data.training))
        is_best = not self.chooses or (warm and (self.best is None or mean_ap >= self.best["mAP"]))
        if is_best:
            self.best = {"epoch": epoch, "mAP": mean_ap}
        return mean_ap, is_best

    def _save_epoch(self, epoch: int, mean_ap: float | None, is_best: bool) -> None:
        self._save(mean_ap)
        self.ranks.first_does(functools.partial(self._keep, epoch, is_best))

    def _keep(self, epoch: int, is_best: bool) -> None:
        """After the save at the end of an epoch, make the other checkpoints from it."""
        if is_best:
            copy_checkpoint(self.folder.last, self.folder.best)
        self.folder.keep_last(epoch, self.config.run.keep)
        self.folder.publish()

    def _save(self, mean_ap: float | None, place: Path | None = None) -> None:
        """Replace the last checkpoint, or another one at ``place``, and list what was skipped."""
        if place is None and not has_finite_weights(self.learner.shipped, self.ranks):
            self._fail_on(self.step, "after it the weights are no numbers any more", self._last_keys)
        random_states = self.ranks.gather(self.learner.random_state())
        skipped = [error for errors in self.ranks.gather(self.data.skipped()) for error in errors]
        weights, learner_state = self.learner.shipped_weights(), self.learner.state_dict()

        def write() -> int:
            checkpoint = Checkpoint(
                config=self.config,
                classes=self.data.classes,
                step=self.step,
                epoch=self._scheduled // len(self.data.training),
                validation_mAP=mean_ap,
                ended=self.ended,
                weights=weights,
                train_state={
                    **learner_state,
                    "loader": self.data.training.state_dict(),
                    "random": random_states,
                    "best": self.best,
                },
            )
            save_checkpoint(checkpoint, place or self.folder.last)
            return self.folder.add_skipped(skipped)

        self._num_skipped = self.ranks.first_does(write)

    def _published(self, name: str) -> tuple[str | Path, Path | None]:
        """Where a checkpoint is once everything possible has been published, and the run where its place is not."""

        def publish() -> tuple[str | Path, Path | None]:
            kept = self.folder.publish_stopped()
            return self.folder.place(CHECKPOINTS, name), kept

        return self.ranks.first_does(publish)

    def _start_event(self) -> StartEvent:
        notes = [*self.learner.notes, *self._notes]
        notes += small_data_notes(self.config, self.data.training, self.data.validation)
        shards = self.data.training.shards
        if self.on_event is not None and (
            advice := advise_resize(shards.storage, shards.manifest, self.config.stream.image_size)
        ):
            notes.append(advice.said())
        notes += notes_of_settings(self.config, self.num_steps, self.ranks)
        num_train = self.data.training.shards.num_samples
        num_validation = 0 if self.data.validation is None else self.data.validation.shards.num_samples
        return StartEvent(
            run_dir=self.folder.location,
            device=str(self.ranks.device),
            world_size=self.ranks.world_size,
            num_train=num_train,
            num_validation=num_validation,
            num_keep_masks=self.data.num_keep_masks,
            num_parameters=sum(p.numel() for p in self.learner.recogniser.parameters() if p.requires_grad),
            steps_per_epoch=len(self.data.training),
            num_steps=self.num_steps,
            step=self.step,
            changes=tuple(self._changed),
            notes=tuple(notes),
            warnings=self.learner.warnings,
        )

    def _tell(self, event: Event) -> None:
        if self.on_event is not None:
            self.on_event(event)
