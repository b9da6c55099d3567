"""``train``, ``average``, ``demo``, ``import-checkpoint``: from shards or released weights to a trained model."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from msldata.commands import local_path
from msldata.console import OnError, err, gigabytes, next_step, out, show, show_below
from msldata.errors import counted
from msldata.progress import progress_bar, working
from msltrain.commands.going_on import (
    OPTIONS,
    begun_with,
    check_same,
    check_unused,
    refuse_other_weights,
    refuse_twice,
    was_over,
)
from msltrain.commands.options import AnyCheckpoints, Cache, Processes, run_place
from msltrain.commands.recipes import complete_recipe, complete_setting

if TYPE_CHECKING:
    from msltrain.config import TrainConfig
    from msltrain.runs.run_places import Dataset
    from msltrain.training.events import TrainResult


_OF_PAPER_PROTOCOL: Mapping[str, str] = {"data.validation": "", "data.validation_fraction": "0"}


class ResumeChoice(StrEnum):
    """Values of ``train --resume``."""

    auto = "auto"
    must = "must"


def train(
    context: typer.Context,
    dataset: Annotated[
        str | None,
        typer.Argument(help="Your dataset: its name in shards/, a folder or a URL.", show_default=False),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="What to train; `msl recipes` lists them. Or a run, to train as that was: its name, folder or "
            "config.json. Default for DATASET: own.",
            show_default=False,
            autocompletion=complete_recipe,
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Training shards: folder or URL; default: the recipe's.")] = None,
    keep_masks: Annotated[list[str] | None, typer.Option(help="Keep-mask shards; default: the recipe's.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="First weights: timm tag, hf-hub:OWNER/NAME, file, own run or export."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the photographs.", min=1, show_default=False)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Photographs a step.", min=1, show_default=False)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", show_default=False)] = None,
    image_size: Annotated[int | None, typer.Option(help="Side in pixels.", min=1, show_default=False)] = None,
    backbone: Annotated[str | None, typer.Option(help="Network, by its timm name.", show_default=False)] = None,
    run: Annotated[
        str | None,
        typer.Option(help="Run folder or URL (s3://…); default: runs/DATASET or runs/RECIPE.", show_default=False),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a field: section.field=value; `msl recipes NAME` lists them.",
            autocompletion=complete_setting,
        ),
    ] = None,
    resume: Annotated[
        ResumeChoice | None,
        typer.Option(help="auto = continue the run in the run folder, or start one; must = there has to be one."),
    ] = None,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Continue though config or data are others than before.")
    ] = False,
    paper_protocol: Annotated[
        bool, typer.Option("--paper-protocol", help="Train on everything, as published; the last weights count.")
    ] = False,
    seeds: Annotated[
        str | None, typer.Option(help="A series: 0,1,2 trains into RUN/seed0, RUN/seed1 …", show_default=False)
    ] = None,
    processes: Processes = "auto",
    cache: Cache = None,
    cache_limit: Annotated[
        str | None, typer.Option(help="What the cache may take; else 50GB.", show_default=False)
    ] = None,
    ram_cache: Annotated[
        str | None,
        typer.Option(help="Keep decoded images in so much memory, such as 8GB; else none.", show_default=False),
    ] = None,
    on_sample_error: Annotated[
        OnError | None,
        typer.Option(help="At a damaged sample: stop, or go on and list it; else fail.", show_default=False),
    ] = None,
) -> None:
    """Train on your photographs (msl train NAME) or by a recipe, on one or many GPUs, and resume bit for bit.

    Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 save; the exit code is 75 then.
    """
    import os
    import sys
    from dataclasses import replace

    from msldata.contract.judging import photographs_of, too_few_to_judge
    from msldata.contract.manifest import read_manifest
    from msldata.errors import UserError
    from msltrain.hosts import launch
    from msltrain.models.weights_place import check_weights
    from msltrain.recipes import configure
    from msltrain.recipes.own import OWN, OWN_BASELINE
    from msltrain.runs.recorded import find_recipe, recipe_name
    from msltrain.runs.run_places import check_keep_masks, local_test_shards, unfinished_said
    from msltrain.stream.samples.shardset import open_shard_set
    from msltrain.training import seeds as series

    if dataset is not None and data is not None:
        raise UserError(f"the data is named twice: {dataset} and --data {data}")
    if dataset is None and recipe is None:
        raise UserError("say what to train on: msl train NAME, with a dataset in shards/; or --recipe NAME")
    plain = {
        "optim.num_epochs": epochs,
        "stream.batch_size": batch_size,
        "optim.lr": lr,
        "stream.image_size": image_size,
        "model.backbone": backbone,
        "stream.cache": cache,
        "stream.cache_limit_gb": None if cache_limit is None else gigabytes(cache_limit),
        "stream.ram_cache_gb": None if ram_cache is None else gigabytes(ram_cache),
        "stream.on_sample_error": None if on_sample_error is None else on_sample_error.value,
    }
    published = _OF_PAPER_PROTOCOL if paper_protocol else {}
    chosen = {field: value for field, value in {**plain, **published}.items() if value is not None}
    settings = [*(f"{field}={value}" for field, value in chosen.items()), *(set_ or ())]
    is_alone = "LOCAL_RANK" not in os.environ  # to a late process the first one's run would look old; hosts lack it
    if is_alone:
        refuse_twice(plain, set_ or ())
    typed = {field: option for field, option in OPTIONS.items() if plain.get(field) is not None}
    typed |= dict.fromkeys(published, "--paper-protocol")
    typed |= {"keep_mask.kind": "--keep-masks"} if keep_masks else {}
    typed |= {field: f"--set {field}" for field in (one.partition("=")[0].strip() for one in set_ or ())}
    fits = recipe in (None, OWN, OWN_BASELINE)
    found = _dataset(dataset or data or "") if dataset is not None or (recipe and fits) else None
    end = "-baseline" if recipe == OWN_BASELINE else ""  # beside the run that it is compared with
    place = run or str(Path("runs", found.name + end if found is not None else recipe_name(recipe or "")))
    numbers = () if seeds is None else series.parse_seeds(seeds)
    folders = [f"{place}/seed{number}" for number in numbers] or [place]
    if resume is None and is_alone:
        for folder in folders:
            check_unused(folder, context, None if seeds is not None else place, found)
    begun = {folder: stored for folder in folders if resume is not None and (stored := begun_with(folder)) is not None}
    weights = weights and run_place(weights)
    if weights is not None and is_alone:
        for folder, stored in begun.items():
            refuse_other_weights(folder, stored, weights)
    if weights is not None and not begun:
        check_weights(weights)
    if found is not None and found.unfinished and not begun:
        unfinished = unfinished_said(found.train.rpartition("/")[0] or ".", found.unfinished)
        show_below(out, f"{unfinished}; now it is trained without", "yellow")
    arguments = sys.argv[1:]
    details: list[str] | None = None
    if fits and found is not None:
        stored_config = next(iter(begun.values()), None)
        with working(f"looking at {found.name}, and for first weights"):  # and torch is imported, which takes seconds
            config, details = _own(found, keep_masks or (), weights, settings, stored_config, recipe or OWN)
        if found.test and (few := too_few_to_judge({"test": photographs_of(read_manifest(found.test))})):
            details.append(few)
        # All processes must mean the same network, whatever each of them could fetch.
        arguments += [
            "--set",
            f"model.backbone={config.model.backbone}",
            "--set",
            f"model.weights={config.model.weights}",
        ]
    else:
        if found is not None and found.validation:
            settings = [f"data.validation={found.validation}", *settings]
        shards = found.train if found is not None else data
        base = find_recipe(recipe or "", data=shards)
        config = configure(base, train=shards, keep_masks=keep_masks, weights=weights, settings=settings)
        for named in filter(None, (config.data.train, config.data.validation)):
            open_shard_set(named)  # before torch is imported, which takes seconds
        if config.loss.needs_keep_masks and config.keep_mask.kind == "stored":
            check_keep_masks(config.data.keep_masks)
    configs = {
        folder: replace(config, run=replace(config.run, seed=number))
        for folder, number in zip(folders, numbers or [config.run.seed], strict=True)
    }
    if not allow_changes and is_alone:
        for folder, stored in begun.items():
            check_same(folder, stored, configs[folder], typed)
    is_known = found is not None or bool(local_test_shards(config.data.train))
    if is_alone and all(was_over(folder, begun.get(folder), one) for folder, one in configs.items()):
        for folder in folders:
            if fits and configs[folder].data.validates:
                _tune_thresholds(folder, again=False)
            show(out, (folder, "green"), ": was finished before, so there is nothing to train")
        _lead_on(place, found if fits else None, is_known=is_known)
        return
    if (number := launch.num_processes(processes, config.run.device)) > 1:
        restarts = launch.MAX_RESTARTS if resume is ResumeChoice.auto else 0
        raise typer.Exit(launch.launch(arguments, number, max_restarts=restarts))
    if details is not None:  # by the process that trains: of several, the first one's words are shown
        _say_in_short(config, details, place, is_new=not begun)
    with working("starting"):  # it takes seconds to import torch
        from msltrain.training.display import TrainingDisplay
        from msltrain.training.trainer import train

    going_on: bool | Literal["auto"] = "auto" if resume is ResumeChoice.auto else resume is not None
    with TrainingDisplay(out, err, details) as display:
        if seeds is None:
            results = [
                train(config, run_dir=place, resume=going_on, allow_changes=allow_changes, on_event=display.show)
            ]
        else:
            results = series.train_series(
                config,
                numbers,
                run_dir=place,
                resume=going_on,
                allow_changes=allow_changes,
                on_event=display.show,
            )
    for result in results:
        if result.best_epoch is not None:
            out.print(_what_is_kept(result), soft_wrap=not out.is_terminal)
        if fits and result.best is not None:
            _tune_thresholds(result.run_dir)
        since = f" since it went on after step {result.first_step:,}" if result.first_step else ""
        took = f"{result.seconds:,.0f} s{since}"
        show(out, (result.run_dir, "green"), f": {counted(result.num_steps, 'step')}, {took}")
    _lead_on(place, found if fits else None, is_known=is_known)


def _dataset(name: str) -> Dataset:
    """The dataset of this name. Raises UserError where there is none, with the run that may have been meant."""
    from msldata.contract.manifest import MANIFEST_NAME
    from msldata.errors import UserError, closest
    from msldata.storage import open_storage
    from msltrain.runs.find_checkpoint import holds_run
    from msltrain.runs.run_places import RUNS, dataset_name, find_dataset

    try:
        return find_dataset(name)
    except UserError as error:
        runs = [run.name for run in Path(RUNS).glob("*/") if holds_run(run)]
        meant = name if name in runs else closest(name, runs)
        config = begun_with(f"{RUNS}/{meant}") if meant else None
        if config is None or not open_storage(config.data.train).exists(MANIFEST_NAME):
            raise
        run = f"{RUNS}/{meant}"
        is_so = f"{run} is a run" if meant == name else f"there is a run {run}"
        again = f"msl train {shlex.quote(dataset_name(config.data.train))} --run {shlex.quote(run)} --resume auto"
        raise UserError(f"{error}; {is_so}; `{again}` goes on with it") from None


def _lead_on(place: str, own: Dataset | None, *, is_known: bool) -> None:
    """What comes after a training: its exam; of a series its page; of one's own photographs also the baseline, and then
    both on a page.

    Args:
        place: the run.
        own: the dataset that a recipe was fitted to, if one was.
        is_known: whether the program finds the test shards.
    """
    from msltrain.runs.find_checkpoint import holds_run
    from msltrain.runs.run_places import find_series

    named = shlex.quote(Path(place).name if Path(place).parent == Path("runs") else place)
    shards = "" if is_known else " --data SHARDS"
    next_step(f"msl evaluate {named}{shards}")
    if len(find_series(place)) > 1:
        next_step(f"msl report {named}{shards}", "all seeds on one page; another series beside it is compared by means")
    if own is None or Path(place).parent != Path("runs"):
        return
    ours, plain = Path("runs", own.name), Path("runs", f"{own.name}-baseline")
    if own.test and holds_run(ours) and holds_run(plain):
        next_step(f"msl report {shlex.quote(plain.name)} {shlex.quote(ours.name)}", "both on one page")
    elif Path(place) == ours:
        why = "plain training on the same photographs, to compare with"
        next_step(f"msl train {shlex.quote(own.name)} --recipe own-baseline", why)


def _say_in_short(config: TrainConfig, details: Sequence[str], place: str, *, is_new: bool) -> None:
    """What a newcomer wants to know of a run of his own photographs; the rest goes into its folder."""
    from msltrain.recipes.own_fit import in_short
    from msltrain.training.display import START_NAME

    if is_new:
        warning, *lines = in_short(config, details)
        if warning:
            show_below(out, warning, "yellow")
        for line in lines:
            show_below(out, line)
    else:
        show_below(out, details[0])
    where = "" if "://" in place else f"; {START_NAME} there says more, and why"
    show_below(out, f"all of it goes to {place}{where}")


def _what_is_kept(result: TrainResult) -> str:
    """Which weights a training that validated leaves behind, and why these."""
    which = "best" if result.is_chosen else "last"
    doubt = f"; {result.doubt}" if result.doubt else ""
    why = doubt if result.is_chosen else "; validation shows too little to choose another"
    value = 100 * (result.validation_mAP or 0)
    return f"{which} validation mAP {value:.1f}, epoch {result.best_epoch}, is what is kept{why}"


def _own(
    found: Dataset,
    keep_masks: Sequence[str],
    weights: str | None,
    settings: Sequence[str],
    begun: TrainConfig | None,
    name: str,
) -> tuple[TrainConfig, list[str]]:
    """The recipe of that name for a dataset and this machine, and why it is so; of a run that goes on, what it was."""
    from dataclasses import replace

    from msltrain.config import override
    from msltrain.recipes.own_fit import fit_own

    if begun is None:
        return fit_own(
            found.train,
            validation=found.validation,
            keep_masks=keep_masks,
            weights=weights,
            settings=settings,
            name=name,
        )
    data, kind = begun.data, begun.keep_mask.kind
    if data.train != found.train:  # the same photographs elsewhere, or others, which training will say
        data = replace(data, train=found.train, validation=found.validation if data.validation else "")
    if keep_masks:
        data, kind = replace(data, keep_masks=tuple(keep_masks)), "stored"
    config = replace(begun, data=data, keep_mask=replace(begun.keep_mask, kind=kind))
    first = [f"model.weights={weights}"] if weights is not None else []
    return override(config, [*first, *settings]), ["settings: those that this run was begun with"]


def _tune_thresholds(run: str | Path, *, again: bool = True) -> None:
    """Predict what training held out, where predict, serve and export look for it, and say what became of it.

    Args:
        again: also where that was done before.
    """
    from msltrain.runs.find_checkpoint import training_shards
    from msltrain.runs.run_places import default_file

    shards = training_shards(run)
    file = default_file(run, shards, held_out=True)
    if not again and file.exists():
        return
    from msltrain.evaluation.evaluate import evaluate
    from msltrain.measures.thresholds import threshold_origin

    with progress_bar("tuning thresholds") as progress:
        predictions = evaluate(run, shards, held_out=True, out=file, progress=progress)
    out.print(f"thresholds: {threshold_origin(predictions)}", soft_wrap=not out.is_terminal)


def average(
    checkpoint: AnyCheckpoints,
    out_: Annotated[Path, typer.Option("--out", help="Checkpoint folder to write.", parser=local_path)],
    share: Annotated[
        list[float] | None,
        typer.Option(help="Of each --checkpoint in the average, adding up to 1.", show_default="equal ones"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Training shards, to measure BatchNorm's statistics on.", show_default="the last run's"),
    ] = None,
) -> None:
    """Average the weights of runs that started from the same weights: often better than each of them."""
    from msltrain.training.average import average_checkpoints

    with working("averaging"):
        average_checkpoints(checkpoint, out_, share, data=data)
    show(out, (out_, "green"))
    next_step(f"msl evaluate {shlex.quote(str(out_))} --data SHARDS")


def import_checkpoint(
    file: Annotated[
        Path,
        typer.Argument(
            help="Released file of MSL, CSRA, ML-Decoder, Query2Label or ASL, such as msl_c_voc.pth.",
            show_default=False,
        ),
    ],
    recipe: Annotated[str, typer.Option(help="The recipe it was trained with: network and image size.")],
    data: Annotated[str, typer.Option(help="Shards of its dataset, which name the classes in order.")],
    out_: Annotated[Path, typer.Option("--out", help="Checkpoint folder to write.", parser=local_path)],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a field: section.field=value.")] = None,
) -> None:
    """Turn a released checkpoint into one that evaluate and predict take."""
    from msltrain.recipes import configure
    from msltrain.runs.import_released import import_released
    from msltrain.runs.recorded import find_recipe

    with working("importing"):
        report = import_released(file, configure(find_recipe(recipe), settings=set_ or []), data=data, folder=out_)
    out.print(report.summary(), soft_wrap=True)
    show(out, (out_, "green"), f": evaluate it with --checkpoint {out_}")


def demo(
    out_: Annotated[Path, typer.Option("--out", help="Folder for everything.", parser=local_path)] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Tiny: checks the path, learns nothing.")] = False,
) -> None:
    """From raw files to a page: shards, keep masks, baseline and MSL with equal budgets, what each of them learnt."""
    from msltrain.demo.demo import run_demo, serve_command
    from msltrain.demo.subprocesses import show_step

    page = run_demo(out_, quick=quick, on_event=partial(show_step, out))
    show(out, "\nWhat was measured: ", (page, "green"), "; open it in a browser.")
    next_step(serve_command(out_))
