"""Whatever the records, the shard size, the workers and the moment a build is interrupted at: the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from msldata.build import sample as samples
from msldata.build import shards as module
from msldata.build import writer as hashedfile
from msldata.build.shards import Part, build_part, build_shards, finish_build, plan_build
from msldata.contract.manifest import MANIFEST_NAME, FormatError, read_manifest
from msldata.contract.records import ObjectRecord, Record
from msldata.storage import LocalStorage, open_storage
from tests.integration.test_build_shards import INDICES, KEYS, OBJECTS, ListSource
from tests.tinydata import contents, jpeg

QUICK = {"deadline": None, "suppress_health_check": list(HealthCheck)}


class Interruption(BaseException):
    """Stands for Ctrl-C, a kill, a full disk: nothing in the program catches it."""


@contextmanager
def interrupted(at: int, after: bool):
    """Raise at the ``at``-th step that a build takes: reading an image, writing, flushing, renaming, deleting."""
    steps = 0

    def guard(function: Callable) -> Callable:
        def step(*arguments, **options):
            nonlocal steps
            steps += 1
            if steps == at and not after:
                raise Interruption
            result = function(*arguments, **options)
            if steps == at:
                raise Interruption
            return result

        return step

    with (
        patch.object(samples.SampleMaker, "make", guard(samples.SampleMaker.make)),
        patch.object(hashedfile.HashedFile, "finish", guard(hashedfile.HashedFile.finish)),
        patch.object(LocalStorage, "put", guard(LocalStorage.put)),
        patch.object(LocalStorage, "delete", guard(LocalStorage.delete)),
    ):
        yield


def in_order(order: Sequence[int]):
    """Stands for any number of workers: the tasks run here, but in another order, as theirs would end."""

    def run(function, tasks, num_workers, on_result, engine):
        results = {}
        for number in sorted(range(len(tasks)), key=lambda number: order[number % len(order)]):
            results[number] = function(tasks[number])
            on_result(results[number])
        return [results[number] for number in range(len(tasks))]

    return patch.object(module, "run_tasks", run)


@st.composite
def record_lists(draw) -> list[Record]:
    records = []
    for number, key in enumerate(draw(st.lists(KEYS, min_size=1, max_size=9, unique=True))):
        positives, ignored = draw(INDICES), draw(INDICES)
        objects = tuple(draw(st.lists(OBJECTS, max_size=2)))
        labels = tuple(sorted(positives)), tuple(sorted(ignored - positives))
        records.append(Record(key, f"{number}.jpg", *labels, objects, draw(st.sampled_from(["", "id", 'a "b" \\ é']))))
    return records


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(9):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    return folder


@settings(max_examples=60, **QUICK)
@given(
    records=record_lists(),
    samples_per_shard=st.integers(1, 10),
    moments=st.lists(st.tuples(st.integers(1, 70), st.booleans()), min_size=1, max_size=3),
    order=st.permutations(range(9)),
    num_parts=st.integers(0, 4),
)
def test_interrupted_anywhere(images, tmp_path_factory, records, samples_per_shard, moments, order, num_parts):
    """``num_parts`` 0 is an ordinary build; else that many parts, each of them interrupted, and then put together."""
    root = tmp_path_factory.mktemp("anyhow")
    plan = plan_build(ListSource(images, records), samples_per_shard=samples_per_shard)
    reference = build_shards(plan, open_storage(root / "reference"), num_workers=1)
    out = open_storage(root / "out")

    def build():
        if not num_parts:
            return build_shards(plan, out, num_workers=1)
        for number in range(1, num_parts + 1):
            build_part(plan, out, Part(number, num_parts), num_workers=1)
        return finish_build(plan, out)

    with in_order(order):
        for moment, after in moments:
            try:
                with interrupted(moment, after):
                    build()
                event("ran to its end")
            except Interruption:
                event("interrupted")
                if (root / "out" / MANIFEST_NAME).exists():
                    assert contents(root / "out") == contents(root / "reference")
                else:
                    with pytest.raises(FormatError):
                        read_manifest(out)
        manifest = build()
    assert manifest.fingerprint == reference.fingerprint
    assert contents(root / "out") == contents(root / "reference")


@settings(max_examples=4, **QUICK)
@given(
    records=record_lists(),
    samples_per_shard=st.integers(1, 3),
    num_workers=st.sampled_from([2, 3]),
    stop_after=st.integers(0, 3),
)
def test_interrupted_with_real_processes(images, tmp_path_factory, records, samples_per_shard, num_workers, stop_after):
    root = tmp_path_factory.mktemp("processes")
    plan = plan_build(ListSource(images, records), samples_per_shard=samples_per_shard)
    reference = build_shards(plan, open_storage(root / "reference"), num_workers=1)
    steps = iter(range(100))

    def stop(done: int, total: int) -> None:
        if next(steps) == stop_after:
            raise Interruption

    out = open_storage(root / "out")
    if stop_after <= len(plan.shards):
        with pytest.raises(Interruption):
            build_shards(plan, out, num_workers=num_workers, progress=stop)
        assert not (root / "out" / MANIFEST_NAME).exists()
    assert build_shards(plan, out, num_workers=num_workers).fingerprint == reference.fingerprint
    assert contents(root / "out") == contents(root / "reference")


@settings(max_examples=200, **QUICK)
@given(
    record=record_lists().map(lambda records: records[0]),
    crop=st.none() | st.tuples(*[st.floats(0, 4000) | st.integers(0, 4000)] * 4),
    name=st.text(max_size=5),
    objects=st.lists(OBJECTS.map(lambda item: item._replace(area=item.area * 1e-9)), max_size=2),
)
def test_the_json_template_equals_the_encoder(record, crop, name, objects):
    """Quotes, control characters, tiny and large numbers, absent values."""
    from dataclasses import replace

    from msldata.contract.format import encode_json

    classes = ("a", f'"{name}', "c")
    record = replace(record, crop=crop, objects=(*record.objects, *objects))
    meta = {
        "image_id": record.image_id or record.key,
        "file": record.image,
        "width": 640,
        "height": 480,
        "labels": [classes[index] for index in record.positives],
        "ignored": [classes[index] for index in record.ignored],
        "objects": [named(item, classes) for item in record.objects],
    }
    if crop is not None:
        meta["crop"] = crop
    maker = samples.SampleMaker(open_storage("unused"), classes, None)
    assert maker.encode_meta(record, 640, 480) == encode_json(meta)


def named(item: ObjectRecord, classes: Sequence[str]) -> dict:
    fields = item._asdict()
    return {"class": classes[fields.pop("class_index")], **fields}


def test_numbers_that_json_does_not_know_are_refused(tmp_path):
    """A box of NaN would make members that no strict reader takes."""
    for value in (float("nan"), float("inf")):
        record = Record("k", "k.jpg", (0,), objects=(ObjectRecord(0, (1.0, value, 3.0, 4.0), 12.0),))
        with pytest.raises(ValueError, match=r"k\.jpg: a box, an area or a crop is not a finite number"):
            plan_build(ListSource(tmp_path, [record]))
