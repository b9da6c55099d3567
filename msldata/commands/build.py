"""``build-shards``, ``build-masks``, ``index``: raw data in, datasets out."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from msldata.commands import Overwrite, Workers, Yes, command_without, data_root, local_path
from msldata.commands.recorded import confirm_replacement, offer_replacement, recorded_command
from msldata.console import OnError, err, next_step, out, show, show_below
from msldata.progress import progress_bar, working

LabelsAre = Annotated[
    str | None,
    typer.Option(
        help="multi-hot, signed (-1 = negative), indices or names; default: decided from all labels, and said.",
        show_default=False,
    ),
]
Separator = Annotated[
    str | None,
    typer.Option(help="Between the names of a label; none: a label is one name.", show_default=False),
]


class EngineName(StrEnum):
    local = "local"
    ray = "ray"


class Polarity(StrEnum):
    auto = "auto"
    hole_white = "hole-white"
    hole_black = "hole-black"


class MaskOrder(StrEnum):
    seeded = "seeded"
    official = "official"


def build_shards(
    context: typer.Context,
    place: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="Folder, file or URL of the raw dataset; what it is is seen, and photographs without splits are "
            "divided into train, val and test.",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="voc2007, voc2012, voc, coco2014, coco, yolo, cvat, wider, table, folders or datumaro; default: what "
            "SOURCE is taken for, or all found in datasets/ or $MSL_DATA."
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="The same as SOURCE, for scripts: photographs without splits stay in one piece, `all`.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Class names in target order, one a line; default: what the dataset names.", show_default=False
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="Of a COCO file: the folder its images are named from; default: looked for.", show_default=False
        ),
    ] = None,
    keep_unlabelled: Annotated[
        bool | None,
        typer.Option(
            "--keep-unlabelled/--drop-unlabelled",
            help="Images without annotations: negatives of every class, or left out; default: those that a table or "
            "COCO file of one's own names are kept, which the build says.",
            show_default=False,
        ),
    ] = None,
    negative: Annotated[
        list[str] | None,
        typer.Option(
            help="A class that says that none of the others is there, such as a folder `nothing`: its photographs are "
            "negatives of every class. Repeat for several.",
            show_default=False,
        ),
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Of a table: the column with paths; default: guessed.", show_default=False)
    ] = None,
    labels_column: Annotated[
        list[str] | None,
        typer.Option(help="Of a table; repeat for several columns; default: guessed.", show_default=False),
    ] = None,
    labels_are: LabelsAre = None,
    separator: Separator = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="Photographs to keep in one of train, val and test: `folder`, those of a folder, or a column of a "
            "table, such as that of the site.",
            show_default=False,
        ),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="Of datumaro: which of its formats; default: detected.", show_default=False),
    ] = None,
    out_: Annotated[str, typer.Option("--out", help="Folder or URL; shards go to OUT/NAME/SPLIT.")] = "shards",
    name: Annotated[str | None, typer.Option(help="What to call it; default: the dataset's name.")] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Repeat for several; default: all.", show_default=False)
    ] = None,
    samples_per_shard: Annotated[int, typer.Option(min=1)] = 1000,
    resize: Annotated[
        str | None, typer.Option(help="shorter=N or fit=N pixels; default: the images' own bytes.")
    ] = None,
    quality: Annotated[int | None, typer.Option(help="Of resized JPEGs; default: 90.", show_default=False)] = None,
    segments: Annotated[
        bool, typer.Option("--segments", help="Of COCO: note in the index what the segments say of occlusion.")
    ] = False,
    workers: Workers = None,
    on_error: Annotated[
        OnError, typer.Option(help="At a bad image or annotation: stop, or leave it out and count it.")
    ] = OnError.fail,
    skip_limit: Annotated[
        float, typer.Option(help="Share of the images that --on-error skip leaves out at most.", min=0, max=1)
    ] = 0.1,
    overwrite: Overwrite = False,
    yes: Yes = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, its size and a guess at the time; write nothing.")
    ] = False,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="Of an array job: write the I-th of N parts, without a manifest.", show_default=False
        ),
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="After the last --task: check that all is there, write the manifest.")
    ] = False,
    engine: Annotated[EngineName, typer.Option(help="Where the workers run.")] = EngineName.local,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Of a running Ray cluster; default: $RAY_ADDRESS, else this machine.", show_default=False),
    ] = None,
) -> None:
    """Turn labelled photographs into verified WebDataset shards."""
    import sys

    from msldata.build.copies import copies_said, find_copies
    from msldata.build.divide import divide, division_said, hardly_shown, parts_to_build, refuse_needless_group
    from msldata.build.estimate import estimate_build
    from msldata.build.image import parse_resize
    from msldata.build.shards import (
        BuildPlan,
        Part,
        build_part,
        build_shards,
        changed_since_built,
        check_images,
        finish_build,
        is_finished,
        mark_unfinished,
        plan_build,
        refuse_other_classes,
        refuse_unlike_classes,
    )
    from msldata.commands.display import say_what_stands, show_estimate, show_manifest
    from msldata.contract.judging import FEWEST, too_few_to_train
    from msldata.contract.resize_advice import advise_resize
    from msldata.errors import UserError, counted
    from msldata.sources.kinds import PUBLISHED, open_source, select_sources
    from msldata.sources.labels.values import maybe_negative
    from msldata.sources.source import WHOLE_SPLIT, Source, SourceOptions
    from msldata.storage import Storage, open_storage
    from msldata.workers.engine import Engine
    from msldata.workers.processes import prepare_workers

    part = Part.parse(task) if task is not None else None
    if sum((part is not None, finish, overwrite or dry_run)) > 1:
        raise UserError(
            "--task and --finish exclude each other, --overwrite and --dry-run; to start an array job over, delete the "
            "folder first"
        )
    runs_on = Engine(engine.value, ray_address)
    smaller = parse_resize(resize, quality)
    if place is not None and source is not None:
        raise UserError(f"the source is named twice: {place} and --source {source}")
    options = SourceOptions(
        classes=classes,
        image_column=image_column,
        labels_columns=tuple(labels_column or ()),
        labels_are=labels_are,
        separator=separator,
        group=None if group == "folder" else group,
        format=format_,
        images=images,
        keep_unlabelled=keep_unlabelled,
        segments=segments,
    )
    chosen_sources = select_sources(data_root(), dataset, place or source, split, options)
    if workers != 1 and engine is EngineName.local and not (dry_run or finish):
        prepare_workers("msldata.build.shards")  # they start while the annotations are read
    for found in chosen_sources:
        if found.taken_for:
            show(out, found.taken_for)
        parts = parts_to_build(found, split, options, divide_unasked=place is not None)
        if group is not None:
            refuse_needless_group(found, parts)
        divided: dict[str, Source] = {}
        notes: dict[str, None] = {}
        if parts is not None:
            with working(f"{name or found.dataset}: reading all photographs once, to divide them"):
                whole = open_source(
                    found.dataset, found.root, WHOLE_SPLIT, name, options=options, negative=negative or ()
                )
                divided = divide(whole, parts, by_folder=group == "folder")
            show_below(out, division_said(divided))
            if few := hardly_shown(divided):
                show_below(out, few, "yellow")
        plans: list[tuple[BuildPlan, Storage]] = []
        for chosen in divided or found.splits:
            with working(f"{name or found.dataset} {chosen}: reading annotations"):
                opened = divided.get(chosen) or open_source(
                    found.dataset, found.root, chosen, name, options=options, negative=negative or ()
                )
                changes = {"place": found.root, "source": None, "dataset": found.dataset, "split": [chosen]}
                opened.provenance["command"] = recorded_command(context, changes)
                plan = plan_build(
                    opened,
                    samples_per_shard=samples_per_shard,
                    resize=smaller,
                    on_error=on_error.value,
                    skip_limit=skip_limit,
                )
            plans.append((plan, open_storage(out_).child(plan.dataset).child(plan.split)))
            notes |= dict.fromkeys([*getattr(opened, "notes", ()), *maybe_negative(plan.classes)])
        for note in notes:
            show_below(out, note, "yellow")
        # What ends one split's build is looked for before another one is written.
        writes, alone = not (dry_run or finish), part is None and not finish
        if alone and not overwrite and not dry_run:
            for plan, target in plans:
                offer_replacement(target, plan.draft())
        refuse_unlike_classes(plans)
        for plan, target in plans:
            refuse_other_classes(plan, target, tuple(divided or found.splits) if overwrite else ())
        if writes and alone and overwrite:
            confirm_replacement(((target, plan.draft()) for plan, target in plans), yes)
        if writes:
            check_images(plans, on_error=on_error.value, overwrite=overwrite, part=part)
        num_built, finished = 0, []
        for number, (plan, target) in enumerate(plans):
            label = f"{name or found.dataset} {plan.split}"
            changed = "" if overwrite else changed_since_built(plan, target)
            if dry_run:
                with working(f"{label}: timing a few images"):
                    estimate = estimate_build(plan, target, num_workers=workers, overwrite=overwrite)
                show_estimate(out, label, plan, estimate, target.url)
                continue
            if finish:
                manifest = finish_build(plan, target, command_without("--finish", sys.argv))
                show_manifest(out, manifest, target)
                num_built += manifest.num_samples
                finished.append((target, manifest))
                continue
            with progress_bar(label) as progress:
                if part is not None:
                    build_part(
                        plan,
                        target,
                        part,
                        num_workers=workers,
                        on_error=on_error.value,
                        progress=progress,
                        engine=runs_on,
                    )
                else:
                    was_built = not overwrite and is_finished(plan, target)
                    with say_what_stands(err, [there.url for _, there in plans], number):
                        manifest = build_shards(
                            plan,
                            target,
                            num_workers=workers,
                            on_error=on_error.value,
                            overwrite=overwrite,
                            progress=progress,
                            engine=runs_on,
                        )
            if part is not None:
                shards = f"{len(part.of(plan.shards)):,} of {counted(len(plan.shards), 'shard')}"
                out.print(f"{label}: task {task}, {shards} -> {target.url}", soft_wrap=True)
                continue
            num_built += manifest.num_samples
            finished.append((target, manifest))
            mark_unfinished(later for _, later in plans[number + 1 :])
            show_manifest(out, manifest, target)
            if was_built and not changed:  # of anything else the build would have refused it
                out.print("  built before, of the same files, labels and options: it stays as it is")
            if (advice := advise_resize(target, manifest)) is not None:
                show(out, f"  {advice.said()}")
            if changed:
                note = f"  {changed} is newer than the dataset; if images were replaced, add --overwrite"
                out.print(note, markup=False, soft_wrap=True)
        if part is None and not dry_run:
            # A published set under its own name is what recipes train on; doctor knows which of them can begin.
            published = not name and any(kind == found.dataset for kind, _ in PUBLISHED)
            built = name or found.dataset
            for said in () if published else copies_said(find_copies(finished), plans):
                show_below(out, said, "yellow")
            if not published and num_built < FEWEST:
                show_below(out, too_few_to_train(num_built), "yellow")
            else:
                place = shlex.quote(built if out_ == "shards" else f"{out_}/{built}")
                next_step("msl doctor" if published else f"msl train {place}")


def build_masks(
    context: typer.Context,
    source: Annotated[
        str | None, typer.Option(help="Folder, zip, tar(.gz) or list (.txt) of masks; default: in datasets/.")
    ] = None,
    generate: Annotated[
        int | None, typer.Option(help="Make N irregular masks instead.", min=1, show_default=False)
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Side of the keep masks in pixels; default: the files' own, generated 512.", min=16),
    ] = None,
    binarize: Annotated[
        bool, typer.Option("--binarize/--no-binarize", help="1-bit keep masks, or the files' grey as it is.")
    ] = True,
    threshold: Annotated[float, typer.Option(help="high = hole fraction above it.")] = 0.5,
    to_fraction: Annotated[
        float | None,
        typer.Option(help="Dilate or erode the holes to this share of every mask, as 0.25.", show_default=False),
    ] = None,
    polarity: Annotated[Polarity, typer.Option(help="What the holes look like in the files.")] = Polarity.auto,
    order: Annotated[
        MaskOrder, typer.Option(help="seeded = by hole fraction; official = the released code's slices of file names.")
    ] = MaskOrder.seeded,
    buckets: Annotated[bool, typer.Option("--buckets", help="Also one subset per ten percent, up to 60 %.")] = False,
    per_subset: Annotated[int, typer.Option(help="Masks drawn for each subset; 0 = all.", min=0)] = 1000,
    seed: Annotated[int, typer.Option(help="Of the draw and of the generator.")] = 0,
    out_: Annotated[
        str, typer.Option("--out", help="Folder or URL; shards go to OUT/high, OUT/low …")
    ] = "shards/masks",
    workers: Workers = None,
    on_error: Annotated[
        OnError, typer.Option(help="At a bad file: stop, or leave it out and count it.")
    ] = OnError.fail,
    plots: Annotated[
        Path | None,
        typer.Option(
            help="Draw a histogram and a contact sheet into this folder.", show_default=False, parser=local_path
        ),
    ] = None,
    overwrite: Overwrite = False,
    yes: Yes = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read the masks, show what would be written, and write nothing.")
    ] = False,
) -> None:
    """Split irregular masks by their hole fraction into keep-mask shards, high and low."""
    from msldata.commands.display import show_histogram, show_manifest, show_mask_plan
    from msldata.masks.build import finished_subsets, write_masks
    from msldata.masks.plan import plan_masks
    from msldata.masks.sources import select_mask_source, usual_place
    from msldata.storage import open_storage

    masks = select_mask_source(data_root(), source, generate=generate, size=size or 512, seed=seed)
    with progress_bar("masks") as progress:
        plan = plan_masks(
            masks,
            out_,
            order=order.value,
            threshold=threshold,
            polarity=polarity.value,
            per_subset=per_subset,
            seed=seed,
            buckets=buckets,
            size=size if generate is None else None,  # generated masks are drawn at their size
            binarize=binarize,
            to_fraction=to_fraction,
            num_workers=workers,
            on_error=on_error.value,
            command=recorded_command(
                context, {"source": source or usual_place(data_root())} if generate is None else {}
            ),
            progress=progress,
        )
        if overwrite and not dry_run:
            confirm_replacement(((subset.folder.out, subset.draft) for subset in plan.subsets), yes)
        build = None if dry_run else write_masks(plan, num_workers=workers, overwrite=overwrite, progress=progress)
    out.print(f"polarity: {plan.polarity.explanation}", soft_wrap=True)
    show_histogram(out, "hole fraction of all masks read", plan.histogram)
    if build is None:
        show_mask_plan(out, plan, frozenset() if overwrite else finished_subsets(plan))
    else:
        for name, manifest in build.manifests.items():
            show_manifest(out, manifest, open_storage(out_).child(name))
            if order is MaskOrder.seeded and per_subset > manifest.num_samples:  # of slices the notes tell
                out.print(f"  all there are of this kind: fewer than the {per_subset:,} of --per-subset")
    for note in plan.notes:
        out.print(note, soft_wrap=True)
    if plots is not None and build is not None:
        from msldata.masks.plots import write_mask_plots

        for picture in write_mask_plots(plots, build, out_):
            show(out, (picture, "green"))


def index(
    context: typer.Context,
    tars: Annotated[str, typer.Argument(help="Folder or URL of WebDataset tars that another program wrote.")],
    classes: Annotated[
        str | None,
        typer.Option(help="Class names in target order, one a line; default: as in the labels.", show_default=False),
    ] = None,
    labels_from: Annotated[
        str, typer.Option(help="target.npy, cls or json:FIELD; auto: what the first sample has.")
    ] = "auto",
    labels_are: LabelsAre = None,
    separator: Separator = None,
    name: Annotated[str | None, typer.Option(help="What to call it; default: by the tars or the folder.")] = None,
    split: Annotated[str | None, typer.Option(help="Default: by the tars, or train.", show_default=False)] = None,
    out_: Annotated[
        str | None,
        typer.Option("--out", help="Folder for indexes, manifest and links to the tars; default: beside the tars."),
    ] = None,
    workers: Workers = None,
    on_error: Annotated[
        OnError, typer.Option(help="At a bad sample: stop, or leave it out and count it.")
    ] = OnError.fail,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the indexes and manifest there.")] = False,
    yes: Yes = False,
) -> None:
    """Make sample indexes and a manifest for tars of another program, so that they can be trained on."""
    from msldata.build.index_tars import index_shards
    from msldata.commands.display import show_manifest
    from msldata.contract.records import read_class_list
    from msldata.sources.source import split_location
    from msldata.storage import open_storage

    names = read_class_list(*split_location(classes), counted=True).classes if classes else None
    target = open_storage(out_ or tars)
    notes: list[str] = []
    with progress_bar("indexing") as progress:
        manifest = index_shards(
            tars,
            out_,
            name=name,
            split=split,
            classes=names,
            labels_from=labels_from,
            labels_are=labels_are,
            separator=separator,
            num_workers=workers,
            on_error=on_error.value,
            overwrite=overwrite,
            command=recorded_command(context, {"name": name, "split": split}),
            confirm=lambda draft: confirm_replacement([(target, draft)], yes),
            note=notes.append,
            progress=progress,
        )
    for text in notes:
        show_below(out, text, "yellow")
    show_manifest(out, manifest, target)
