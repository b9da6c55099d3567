"""The functions of the public face: what the data commands do, in Python. ``import msldata`` is enough.

A place is a local path or an address such as ``s3://bucket/folder``, as text. Heavy libraries are imported only when a
function needs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from msldata.python_words import says_it_in_python
from msldata.storage import Location

if TYPE_CHECKING:
    from msldata.contract.manifest import Manifest
    from msldata.inspect.describe import Description
    from msldata.inspect.verify import Verification
    from msldata.sources.source import Source, SourceOptions


@says_it_in_python()
def open_source(
    kind: str,
    place: Location,
    split: str,
    *,
    name: str | None = None,
    classes: Location | None = None,
    options: SourceOptions | None = None,
) -> Source:
    """Open one split of a labelled dataset, such as VOC, COCO or your own table.

    Args:
        kind: voc2007, voc2012, coco2014, coco, wider, table, folders (one per class) or datumaro.
        place: the dataset's folder; for a table or your own COCO file, the file.
        split: one that the kind has; for a table, any name.
        name: what the shards call the dataset; default: the kind.
        classes: for a table, a file with one class name per line; default: its labels, sorted.
        options: anything else about it: columns, separators, what the labels are.

    Raises:
        UserError: an unknown kind or split. FileNotFoundError: the dataset is not there. BadInputError: a list or
            annotation that cannot be understood.

    Example:
        source = msldata.open_source("voc2007", "datasets/VOCdevkit/VOC2007", "test")
        record = next(source.records())
        print(record.key, [source.labels.classes[index] for index in record.positives])
    """
    from msldata.sources.kinds import open_source
    from msldata.sources.source import NO_OPTIONS

    return open_source(kind, place, split, name, classes, options or NO_OPTIONS)


@says_it_in_python()
def build_shards(
    source: Source,
    out: Location,
    *,
    samples_per_shard: int = 1000,
    resize: str | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    overwrite: bool = False,
    workers: int | None = None,
) -> Manifest:
    """Write the shards of a source; called again, it continues where it stopped, or does nothing when all are there.

    Args:
        source: from `open_source`, or your own object with the same attributes, whose ``records`` yields `Record`s.
        out: the folder of this dataset and split, such as ``shards/voc2007/test``.
        samples_per_shard: every shard but the last has this many.
        resize: ``shorter=448`` or ``fit=448``, in pixels; None: the images keep their own bytes.
        on_error: what to do with an unusable image: stop, or leave it out and count it.
        overwrite: delete what another build left in the folder.
        workers: processes; default: one per processor.

    Returns:
        What ``dataset.json`` says.

    Raises:
        BadInputError: an unusable image. UserError: the folder holds something else, or a record is wrong.
        StorageError: a place that cannot be read or written.

    Example:
        source = msldata.open_source("voc2007", "datasets/VOCdevkit/VOC2007", "test")
        manifest = msldata.build_shards(source, "shards/voc2007/test")
        print(manifest.num_samples, manifest.fingerprint)
    """
    from msldata.build.image import parse_resize
    from msldata.build.plan import plan_build
    from msldata.build.shards import build_shards

    plan = plan_build(source, samples_per_shard=samples_per_shard, resize=parse_resize(resize, None))
    return build_shards(plan, out, num_workers=workers, on_error=on_error, overwrite=overwrite)


@says_it_in_python()
def write_shards(
    samples: Iterable[tuple[str, Any, Any]],
    out: Location,
    *,
    classes: Sequence[str],
    name: str | None = None,
    split: str | None = None,
    samples_per_shard: int = 1000,
    resize: str | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    overwrite: bool = False,
    workers: int | None = None,
) -> Manifest:
    """Write samples that a program makes as shards: what `build_shards` makes of files.

    They are taken one after the other and kept on disk, beside ``out`` where that is on this machine, until all are
    there: shards are written then, which takes as much room once more. Called again with the same samples, it goes on
    where it stopped, or does nothing.

    Args:
        samples: key, image, labels of each. A key is text without dots, slashes and spaces, and comes once. An image is
            the bytes of a file, which JPEGs keep, a PIL image, or uint8 (H, W, 3) or (H, W). Labels are names, or a
            number for each class: 1, 0, or -1 where the class is ignored.
        out: the folder of this dataset and split, such as ``shards/mine/train``.
        classes: names, in target order.
        name, split: what to call the dataset and this part of it; default: the folders of ``out``.
        samples_per_shard, resize, on_error, overwrite, workers: as for `build_shards`.

    Returns:
        What ``dataset.json`` says.

    Raises:
        UserError: a sample that is none, a label that is no class, a key that comes twice, or a folder that holds
            something else. BadInputError: an unusable image. StorageError: a place that cannot be written.

    Example:
        def drawn():
            for number in range(30):
                pixels = np.full((48, 64, 3), 8 * number, np.uint8)
                yield f"grey{number}", pixels, ["dark"] if number < 15 else ["bright"]

        manifest = msldata.write_shards(drawn(), "shards/greys/train", classes=("bright", "dark"))
        print(manifest.num_samples, manifest.label_histogram)
    """
    from msldata.build.spool import spooled
    from msldata.sources.source import check_name
    from msldata.storage import open_storage

    folder = open_storage(out)
    parts = [part for part in folder.url.rstrip("/").split("/") if part]
    name, split = name or parts[-2 if len(parts) > 1 else -1], split or parts[-1]
    check_name("dataset", name)
    check_name("split", split)
    local = folder.path()
    with spooled(samples, classes, name, split, None if local is None else local.expanduser().parent) as source:
        return build_shards(
            source,
            out,
            samples_per_shard=samples_per_shard,
            resize=resize,
            on_error=on_error,
            overwrite=overwrite,
            workers=workers,
        )


@says_it_in_python()
def build_masks(
    source: Location,
    out: Location,
    *,
    threshold: float = 0.5,
    polarity: Literal["auto", "hole-white", "hole-black"] = "auto",
    per_subset: int = 1000,
    seed: int = 0,
) -> dict[str, Manifest]:
    """Split irregular masks by their hole fraction into keep-mask shards, ``out/high`` and ``out/low``.

    Args:
        source: a folder, zip, tar or text list of mask files.
        out: the folder that gets both subsets, such as ``shards/masks``.
        threshold: "high" has a larger hole fraction than this, in (0, 1).
        polarity: what holes look like in the files; auto: inferred from the masks, with an error if that is unclear.
        per_subset: masks drawn for each subset; 0: all.
        seed: decides which masks are drawn when there are more.

    Returns:
        What ``dataset.json`` says, by subset.

    Raises:
        UserError: unclear polarity, an option out of range, or a folder that holds something else.
        BadInputError: a file that is not a mask.

    Example:
        manifests = msldata.build_masks("datasets/irregular_masks", "shards/masks")
        print({name: manifest.num_samples for name, manifest in manifests.items()})
    """
    from msldata.masks.build import write_masks
    from msldata.masks.plan import plan_masks
    from msldata.masks.sources import open_mask_source

    masks = open_mask_source(source)
    plan = plan_masks(masks, out, threshold=threshold, polarity=polarity, per_subset=per_subset, seed=seed)
    return dict(write_masks(plan).manifests)


@says_it_in_python()
def index_tars(
    tars: Location,
    out: Location | None = None,
    *,
    name: str | None = None,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    labels_from: str = "auto",
    on_error: Literal["fail", "skip"] = "fail",
    overwrite: bool = False,
    workers: int | None = None,
) -> Manifest:
    """Make sample indexes and a manifest for another program's WebDataset tars, so that they can be trained on.

    Args:
        tars: the folder of the tars, which are never changed.
        out: a local folder for indexes, manifest and links to the tars; default: beside the tars.
        name, split: what to call the dataset; default: taken from the tars or the folder.
        classes: class names in target order; default: those of the labels, sorted.
        labels_from: ``target.npy``, ``cls`` or ``json:FIELD``; auto: what the first sample has.
        on_error: what to do with an unusable sample: stop, or leave it out and count it.
        overwrite: replace the indexes and the manifest that are there.
        workers: processes; default: one per processor.

    Raises:
        BadInputError: a damaged tar or sample. UserError: no tars or labels, or a key that comes twice.

    Example:
        manifest = msldata.index_tars("datasets/other_tars", "shards/other/train", labels_from="target.npy")
        print(manifest.num_samples, manifest.classes)
    """
    from msldata.build.index_tars import index_shards

    return index_shards(
        tars,
        out,
        name=name,
        split=split,
        classes=classes,
        labels_from=labels_from,
        num_workers=workers,
        on_error=on_error,
        overwrite=overwrite,
    )


@says_it_in_python()
def verify(place: Location, *, against: Location | None = None) -> Verification:
    """Check every byte of a dataset: checksums, indexes, images, labels, duplicates, files that do not belong.

    Args:
        place: a dataset folder, of images or of keep masks.
        against: another dataset that must share no image with it, as test with train.

    Returns:
        ``findings``, empty when nothing is wrong, and ``next_step``, what to do about them.

    Raises:
        FormatError: no finished dataset there. StorageError: a file that cannot be read.

    Example:
        result = msldata.verify("shards/voc2007/trainval", against="shards/voc2007/test")
        assert not result.findings, result.next_step
    """
    from msldata.inspect.verify import verify

    return verify(place, against=against)


@says_it_in_python()
def describe(place: Location) -> Description:
    """Say what is in a dataset, by its manifest and sample indexes: counts, labels, sizes, objects, hole fractions.

    Args:
        place: a dataset folder, of images or of keep masks.

    Raises:
        FormatError: no finished dataset there. StorageError, FileNotFoundError: a file that cannot be read.

    Example:
        about = msldata.describe("shards/voc2007/trainval")
        print(about.num_samples, about.labels_per_image, about.object_sizes)
    """
    from msldata.inspect.describe import describe

    return describe(place)
