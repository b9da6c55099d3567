"""What a training run, or a row of commands, shows on a terminal."""

from __future__ import annotations

from rich.console import Console

from msltrain.training.events import EpochEvent, Event, StartEvent, StepEvent


class TrainingDisplay:
    """A progress bar with the loss terms, and a line that stays for every epoch."""

    def __init__(self, out: Console, err: Console):
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), TimeRemainingColumn())
        self._bar = Progress(*columns, console=err, transient=True)
        self._out = out
        self._task = self._bar.add_task("starting", total=None)
        self._last = ""

    def __enter__(self) -> TrainingDisplay:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, event: Event) -> None:
        match event:
            case StartEvent():
                self._out.print(
                    f"{event.num_parameters / 1e6:.1f} M parameters on {event.world_size} × {event.device}, "
                    f"{event.num_train:,} training and {event.num_validation:,} validation samples, "
                    f"{event.num_keep_masks:,} keep masks, {event.num_steps:,} steps",
                    soft_wrap=True,
                )
                for note in event.notes:
                    self._out.print(f"  {note}", soft_wrap=True)
            case StepEvent():
                terms = "  ".join(f"{name} {value:.4f}" for name, value in event.losses.items())
                self._last = (
                    f"{terms}  {event.images_per_second:,.0f} images/s  data wait {100 * event.data_wait:.1f} %"
                )
                epoch = f"epoch {event.epoch + 1}/{event.num_epochs}"
                self._bar.update(
                    self._task, description=f"{epoch}  {self._last}", completed=event.step, total=event.num_steps
                )
            case EpochEvent():
                validation = ""
                if event.validation_mAP is not None:
                    validation = f"  validation mAP {100 * event.validation_mAP:.1f}{' (best)' * event.is_best}"
                epoch = f"epoch {event.epoch + 1}/{event.num_epochs}"
                samples = "bad sample" if event.num_skipped == 1 else "bad samples"
                skipped = f"  {event.num_skipped} {samples} skipped" if event.num_skipped else ""
                ended = "  no better epoch for optim.patience: the run ends" if event.ends_early else ""
                self._out.print(
                    f"{epoch}  {self._last}{validation}  {event.seconds:.0f} s{skipped}{ended}", soft_wrap=True
                )
