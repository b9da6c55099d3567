"""``evaluate``, ``robustness``: how well a trained model does, and what holes cost it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from msldata.commands import local_path
from msldata.console import OnError, err, gigabytes, next_step, out, show, standard_output
from msldata.errors import counted
from msldata.progress import progress_bar, working
from msltrain.commands.options import (
    BatchSize,
    Cache,
    CacheLimit,
    DecimalComma,
    Device,
    Json,
    MeasuredShards,
    Model,
    OnDevice,
    Processes,
    Recipe,
    RunArgument,
    RunArguments,
    Seed,
    SomeCheckpoint,
    SomeCheckpoints,
    check_datasets,
    check_models,
    named_models,
    run_place,
    shards_to_measure,
)
from msltrain.pages.text import percent

if TYPE_CHECKING:
    from msltrain.measures.bootstrap import Interval
    from msltrain.measures.predictions import Predictions
    from msltrain.measures.summary import Measured
    from msltrain.robustness.curves import Curves

_percent = partial(percent, digits=2)
_NUM_NAMED = 20


def evaluate(
    run: RunArgument = None,
    checkpoint: SomeCheckpoint = None,
    data: MeasuredShards = None,
    recipe: Recipe = "",
    model: Model = "",
    held_out: Annotated[bool, typer.Option("--held-out", help="Only what training set aside for validation.")] = False,
    keep_masks: Annotated[list[str] | None, typer.Option(help="Hide parts of the images with these.")] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Average with the mirrored image.")] = False,
    scales: Annotated[list[float] | None, typer.Option(help="Average with these sizes, as 0.75 or 1.25.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Measure this predictions file again; no model needed.")
    ] = None,
    thresholds_from: Annotated[
        Path | None, typer.Option(help="Tune a threshold per class on these predictions (of --held-out).")
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Show every class.")] = False,
    intervals: Annotated[bool, typer.Option("--intervals", help="95 % bootstrap intervals over the images.")] = False,
    out_: Annotated[
        Path | None, typer.Option("--out", help="Predictions file to write: .parquet or .csv.", parser=local_path)
    ] = None,
    decimal_comma: DecimalComma = False,
    json: Json = False,
    batch_size: BatchSize = 32,
    seed: Seed = 0,
    device: Device = OnDevice.auto,
    processes: Processes = "auto",
    cache: Cache = None,
    cache_limit: CacheLimit = "50GB",
    on_sample_error: Annotated[
        OnError, typer.Option(help="At a damaged sample: stop, or leave it out and list it.")
    ] = OnError.fail,
) -> None:
    """Predict every sample exactly once and measure as published: mAP, CP, CR, CF1, OP, OR, OF1."""
    import sys

    from msldata.errors import UserError
    from msltrain.hosts import launch
    from msltrain.measures.predictions import is_table, read_predictions
    from msltrain.runs.find_checkpoint import no_test_split, training_shards
    from msltrain.runs.run_places import default_file, find_series

    if (out_ is None or not is_table(out_)) and decimal_comma:
        raise UserError("--decimal-comma is for a table: add --out FILE.csv")
    asked, named = data, run or checkpoint
    if named:
        [checkpoint] = named_models(run and [run], checkpoint and [checkpoint], "evaluate")
    validation = None if thresholds_from is None else read_predictions(thresholds_from)
    found = [] if predictions is None else [(predictions, read_predictions(predictions))]
    if predictions is None:
        if checkpoint is not None:
            check_models([checkpoint])
            data = shards_to_measure(data, checkpoint, held_out=held_out)
        if checkpoint is None:
            raise UserError(
                "say what to evaluate: msl evaluate RUN with --data SHARDS or --held-out, or --predictions FILE"
            )
        if data is None and not held_out:
            raise no_test_split(
                checkpoint,
                f"measure on what training set aside: msl evaluate {shlex.quote(run or checkpoint)} --held-out, or on "
                "others with --data SHARDS",
            )
        check_datasets(data, keep_masks)
        if (number := launch.num_processes(processes, device)) > 1:
            raise typer.Exit(launch.launch(sys.argv[1:], number))
        with working("starting"):  # it takes seconds to import torch
            from msltrain.evaluation.evaluate import evaluate
        from msltrain.hosts.rank_output import is_first_process
        from msltrain.runs.find_checkpoint import Foreign

        runs: list[str | Path] = list(find_series(checkpoint)) or [checkpoint]
        if len(runs) > 1 and out_ is not None:
            raise UserError(f"{checkpoint}: a series of {len(runs)} runs; each keeps its own file, so leave --out away")
        for each in runs:
            place = data or training_shards(each)
            file = out_ or default_file(
                each, place, keep_masks or [], held_out=held_out, flip=flip, scales=scales or (), seed=seed
            )
            with progress_bar("evaluating" if len(runs) == 1 else f"evaluating {Path(each).name}") as progress:
                answers = evaluate(
                    each,
                    place,
                    foreign=Foreign(recipe=recipe, model=model),
                    held_out=held_out,
                    keep_masks=keep_masks or [],
                    flip=flip,
                    scales=scales or (),
                    out=file,
                    decimal_comma=decimal_comma,
                    batch_size=batch_size,
                    device=device,
                    seed=seed,
                    progress=progress,
                    cache="" if cache is None else str(cache),
                    cache_limit_gb=gigabytes(cache_limit),
                    on_sample_error=on_sample_error.value,
                    note=lambda text: show(err, f"note: {text}", wrap=True) if is_first_process() else None,
                )
            found.append((file, answers))
        if not is_first_process():
            return
    from msltrain.measures.bootstrap import mean_intervals
    from msltrain.measures.summary import measure, series_json
    from msltrain.measures.thresholds import held_out_beside

    def measured_of(file: Path, answers: Predictions) -> Measured:
        tuned_on, name = validation, str(thresholds_from or "")
        if tuned_on is None:  # those that `msl predict` uses: the classifier that is shipped
            folders = [default_file(answers.origin.checkpoint, "").parent] if answers.origin.checkpoint else []
            tuned_on = held_out_beside(answers, [*folders, Path(file).parent])
        return measure(answers, validation=tuned_on, validation_file=name, with_intervals=intervals)

    with working("measuring"):
        measured = [measured_of(file, answers) for file, answers in found]
        of_means = mean_intervals([answers for _, answers in found]) if intervals and len(found) > 1 else {}
    if json:
        standard_output.write(measured[0].to_json() if len(measured) == 1 else series_json(measured, of_means))
        return
    if len(measured) == 1:
        _show(measured[0], with_classes=per_class)
    else:
        _show_series(measured, of_means, with_classes=per_class)
    for (file, _), one in zip(found, measured):
        _list_skipped(one.origin.skipped)
        show(out, (file, "green"), f": {counted(one.metrics.num_samples, 'sample')}")
    if named and not (recipe or model):  # such a file is no run, of which a report could tell more
        _lead_on(named, asked, held_out=held_out)


def _lead_on(run: str, data: str | None, *, held_out: bool) -> None:
    """What comes after an exam: its page. There is none where only what training set aside could be judged, or for a
    model that is no run on this machine: an export, a weights file, a run in object storage."""
    from msltrain.runs.find_checkpoint import holds_run, test_shards
    from msltrain.runs.run_places import find_series, run_folder

    model = run_place(run)
    first = next(iter(find_series(model)), Path(model))
    has_page = "://" not in model and holds_run(run_folder(first))
    if not has_page or (held_out and test_shards(first) is None):
        next_step(f"msl predict {shlex.quote(run)} PHOTOS")
        return
    here = f" --data {shlex.quote(data)}" if data and not held_out else ""
    next_step(f"msl report {shlex.quote(run)}" + here)
    if not find_series(model):
        next_step(f"msl robustness {shlex.quote(run)}" + here, "what is still recognised when parts are hidden")


def _show_series(measured: Sequence[Measured], intervals: Mapping[str, Interval], *, with_classes: bool) -> None:
    """The measures of every run of a series, in percent, their mean ± standard deviation, and the ``intervals`` of the
    means."""
    from msltrain.runs.run_places import run_folder

    summaries = [one.metrics.summary() for one in measured]
    table = _table("", *summaries[0])
    for one, summary in zip(measured, summaries):
        table.add_row(run_folder(one.origin.checkpoint).name, *map(_percent, summary.values()))
    table.add_row("mean ± sd", *(_over_seeds([summary[name] for summary in summaries]) for name in summaries[0]))
    if intervals:
        table.add_row("95 % from", *(_percent(intervals[name].low) for name in summaries[0]))
        table.add_row("95 % to", *(_percent(intervals[name].high) for name in summaries[0]))
    tuned = [one.metrics.tuned for one in measured if one.metrics.tuned is not None]
    if len(tuned) == len(measured):
        rates = [_over_seeds([getattr(one, name) for one in tuned]) for name in summaries[0] if name != "mAP"]
        table.add_row("at tuned thresholds", "", *rates)
    out.print(table)
    _explain()
    for one in measured:
        if tied := one.metrics.decided_by_order():
            name = run_folder(one.origin.checkpoint).name
            out.print(f"{name}: {tied}", style="yellow", soft_wrap=not out.is_terminal)
    first = measured[0]
    if first.strata:
        table = _table("largest object", "pairs", "classes", "mAP", "CR")
        for same in zip(*(one.strata for one in measured)):
            both = (_over_seeds([one.mAP for one in same]), _over_seeds([one.CR for one in same]))
            table.add_row(same[0].name, f"{same[0].num_positive:,}", str(same[0].num_classes), *both)
        out.print(table)
    if first.strata_note:
        out.print(first.strata_note, soft_wrap=True)
    if with_classes:
        table = _table("class", "positive", "ignored", "AP", "precision", "recall")
        for each in zip(*(one.metrics.classes for one in measured)):
            columns = zip(*((one.average_precision, one.precision, one.recall) for one in each))
            table.add_row(
                each[0].name, f"{each[0].num_positive:,}", f"{each[0].num_ignored:,}", *map(_over_seeds, columns)
            )
        out.print(table)


def _over_seeds(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation in percent of a measure of every run, which all of them have or none."""
    from msltrain.measures.summary import spread_said

    known = [value for value in values if value is not None]
    return spread_said(known) if len(known) == len(values) else _percent(None)


def _explain() -> None:
    from msltrain.measures.metrics import EXPLAINED

    out.print(EXPLAINED, style="dim", soft_wrap=not out.is_terminal)


def _list_skipped(skipped: Sequence[str]) -> None:
    if skipped:
        err.print(f"{counted(len(skipped), 'bad sample')} {'was' if len(skipped) == 1 else 'were'} left out:")
    for sample in skipped:
        err.print(f"  {sample}", markup=False, soft_wrap=True)


def _show(measured: Measured, *, with_classes: bool) -> None:
    """The tables of ``evaluate``, in percent."""
    from msltrain.measures.metrics import RATES

    metrics = measured.metrics
    summary = metrics.summary()
    table = _table("", *summary)
    table.add_row("score ≥ 0.5", *map(_percent, summary.values()))
    if measured.intervals:
        table.add_row("95 % from", *(_percent(measured.intervals[name].low) for name in summary))
        table.add_row("95 % to", *(_percent(measured.intervals[name].high) for name in summary))
    # Where no image has more than three predictions, "top 3" would repeat the first row.
    is_repeated = all(getattr(metrics.top3, name) == getattr(metrics, name) for name in RATES)
    top3 = None if is_repeated else metrics.top3
    for label, rates in (("top 3", top3), ("tuned thresholds", metrics.tuned)):
        if rates is not None:
            table.add_row(label, "", *(_percent(getattr(rates, name)) for name in summary if name != "mAP"))
    out.print(table)
    _explain()
    if never := metrics.never_predicted():
        out.print(never, style="dim", soft_wrap=not out.is_terminal)
    if few := metrics.too_few():
        said = few if measured.intervals else f"{few}; --intervals says how far"
        out.print(said, style="yellow", soft_wrap=not out.is_terminal)
    if measured.threshold_origin:
        also = "; papers compare at 0.5" * (metrics.tuned is not None)
        out.print(f"thresholds: {measured.threshold_origin}{also}", soft_wrap=not out.is_terminal)
    others = ", ".join(f"{kind} {_percent(value)}" for kind, value in metrics.mAP_by_kind.items() if kind != "msl")
    out.print(f"mAP by other definitions: {others}")
    if tied := metrics.decided_by_order():
        out.print(tied, style="yellow", soft_wrap=not out.is_terminal)
    elif metrics.num_tied:
        count = counted(metrics.num_tied, "positive shares its", "positives share their")
        out.print(f"{count} logit with a negative: how these are ordered moves mAP by less than 0.05 points")
    if absent := metrics.absent_classes:
        more = f" and {len(absent) - _NUM_NAMED:,} more" if len(absent) > _NUM_NAMED else ""
        out.print(f"left out of mAP, without positives: {', '.join(absent[:_NUM_NAMED])}{more}", soft_wrap=True)
    if measured.strata:
        table = _table("largest object", "pairs", "classes", "mAP", "CR")
        for row in measured.strata:
            table.add_row(row.name, f"{row.num_positive:,}", str(row.num_classes), _percent(row.mAP), _percent(row.CR))
        out.print(table)
    if measured.strata_note:
        out.print(measured.strata_note, soft_wrap=True)
    if with_classes:
        table = _table("class", "positive", "ignored", "AP", "precision", "recall")
        for one in metrics.classes:
            rates_ = (one.average_precision, one.precision, one.recall)
            table.add_row(one.name, f"{one.num_positive:,}", f"{one.num_ignored:,}", *map(_percent, rates_))
        out.print(table)


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column(first)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def robustness(
    runs: RunArguments = None,
    checkpoint: SomeCheckpoints = None,
    data: MeasuredShards = None,
    keep_masks: Annotated[
        list[str] | None,
        typer.Option(
            help="Held-out keep masks, for irregular; repeat it: low and high.",
            show_default="shards/heldout/low and high, if they are here; else some are drawn",
        ),
    ] = None,
    name: Annotated[list[str] | None, typer.Option(help="Names of the models, in the same order.")] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="Black holes: irregular (default), patch, box, object. Irregular ones filled: mean, noise, blur, "
            "image. Cut-outs of other objects: pasted. Repeat for several.",
            show_default=False,
        ),
    ] = None,
    recalibrate: Annotated[
        str | None,
        typer.Option(help="Training shards: add the reference with BatchNorm measured anew on them."),
    ] = None,
    recalibrate_masks: Annotated[list[str] | None, typer.Option(help="Training keep masks for that.")] = None,
    recipe: Recipe = "",
    model: Model = "",
    out_: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The study's folder; what is in it is not computed again.",
            show_default="RUN/robustness; of several models: robustness",
            parser=local_path,
        ),
    ] = None,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    device: Device = OnDevice.auto,
    processes: Processes = "auto",
    cache: Cache = None,
    cache_limit: CacheLimit = "50GB",
    on_sample_error: Annotated[
        OnError, typer.Option(help="At a damaged sample: stop, or leave it out for all models and list it.")
    ] = OnError.fail,
) -> None:
    """Draw mAP, CR and CF1 over the hidden share of the images, and recall over the visible share of the objects."""
    import sys

    from msldata.errors import UserError
    from msltrain.hosts import launch
    from msltrain.robustness.kinds import IRREGULAR, check_kinds, held_out_masks, need_stored
    from msltrain.runs.find_checkpoint import no_test_split

    checkpoint = named_models(runs, checkpoint, "robustness")
    check_models(checkpoint)
    names = name or [path.stem if path.is_file() else path.name for path in map(Path, checkpoint)]
    if len(names) != len(checkpoint):
        both = f"{counted(len(checkpoint), 'checkpoint')} and {counted(len(names), 'name')}"
        raise UserError(f"{both}; give --name once per --checkpoint")
    if bool(recalibrate) != bool(recalibrate_masks):
        raise UserError("--recalibrate SHARDS and --recalibrate-masks DIR belong together")
    kinds = tuple(kind or (IRREGULAR,))
    masks = tuple(keep_masks or (held_out_masks() if need_stored(kinds) else ()))
    check_kinds(kinds)  # before torch is imported
    shards = shards_to_measure(data, checkpoint[0])
    if shards is None:
        raise no_test_split(checkpoint[0], "say what to measure on with --data SHARDS")
    check_datasets(shards, masks)
    if (number := launch.num_processes(processes, device)) > 1:
        raise typer.Exit(launch.launch(sys.argv[1:], number))
    from msltrain.hosts.rank_output import is_first_process

    with working("starting"):  # it takes seconds to import torch
        from msltrain.robustness.curves import compute_curves
        from msltrain.robustness.figure import write_robustness
        from msltrain.robustness.run import Recalibration, Study, run_study, study_notes
    from msltrain.runs.find_checkpoint import Foreign
    from msltrain.runs.run_places import study_folder
    from msltrain.stream.keepmasks.bank import NUM_GENERATED

    study = Study(
        models=tuple(zip(names, checkpoint, strict=True)),
        shards=shards,
        keep_masks=masks,
        kinds=kinds,
        recalibration=Recalibration(shards=recalibrate, keep_masks=tuple(recalibrate_masks or ()))
        if recalibrate
        else None,
        foreign=Foreign(recipe=recipe, model=model),
        seed=seed,
    )
    if is_first_process():
        if data is None:
            show(err, f"test shards: {shards}")
        if masks and not keep_masks:
            show(err, f"keep masks: {' and '.join(masks)}")
        elif need_stored(kinds) and not masks:
            show(err, f"keep masks: {NUM_GENERATED} drawn here, others than training draws; --keep-masks takes yours")
    notes = study_notes(study) if is_first_process() else ()
    for text in notes:
        show(err, f"note: {text}", wrap=True)
    folder = out_ or study_folder(checkpoint)
    found = run_study(
        study,
        folder,
        batch_size=batch_size,
        device=device,
        cache="" if cache is None else str(cache),
        cache_limit_gb=gigabytes(cache_limit),
        on_sample_error=on_sample_error.value,
        progress=lambda what: progress_bar(f"measuring {what}"),
        note=lambda text: err.print(text, markup=False, soft_wrap=True),
    )
    if not is_first_process():
        return
    with working("measuring, and drawing the curves"):
        curves = compute_curves(found, notes, with_intervals=True)
        written = write_robustness(curves, folder)
    _show_areas(curves)
    for text in curves.notes[len(notes) :]:
        out.print(text, style="yellow", soft_wrap=not out.is_terminal)
    _list_skipped(curves.skipped)
    for file in written:
        show(out, (file, "green"))
    if len(checkpoint) == 1:
        next_step(f"msl predict {shlex.quote(checkpoint[0])} PHOTOS")


def _show_areas(curves: Curves) -> None:
    """The mean height of each model's curves, and what that is."""
    from msltrain.robustness.curves import MEASURES

    table = _table("mean over all hidden shares", "holes", *MEASURES)
    for area in curves.areas:
        table.add_row(area.model, area.kind, *map(_percent, (area.mAP, area.CR, area.CF1)))
    out.print(table)
    ends = dict.fromkeys(f"{area.up_to:.0%}" for area in curves.areas)
    out.print(
        f"in percent, 100 is best: the area under the curve from nothing hidden to {' or '.join(ends)} of each image.",
        style="dim",
        soft_wrap=not out.is_terminal,
    )
    _explain()
