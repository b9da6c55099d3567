"""Mutation testing of the core: one wrong line at a time, and whether a unit or golden test notices it.

    python -m tests.mutants [PART …]              # a sample of each module; all parts of CORE without a name
    python -m tests.mutants PATH …                # of these modules alone
    python -m tests.mutants PART --all            # every mutant
    python -m tests.mutants PART --tests FILE …   # against other tests than the part's own
    python -m tests.mutants --table               # the table of tests/MUTANTS.md

Every mutant's outcome is a row of ``.mutants/rows.jsonl``, so a run can be stopped and goes on where it was; what
survived is tried again when the tests have changed. Equivalent mutants are listed in tests/MUTANTS.md, with the reason.

It is our own because the known tools do not fit: mutmut 3 leaves out most decorated functions (properties, functions
under ``torch.no_grad``, context managers) and all that is outside of functions (limits, defaults), and changes every
message; Cosmic Ray starts Python, and so imports torch, once per mutant. Here a process collects the tests once;
for each mutant it forks, and the fork swaps the code of the functions concerned and runs the tests that reach the line,
quickest first, up to the first that fails. What is outside of functions is mutated while it is imported, in a fork
that has nothing of this project yet.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import importlib
import importlib.machinery
import json
import math
import os
import pickle
import re
import resource
import signal
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import REPOSITORY
from tests.mutations import Mutant, compiled, mutants, swap

STATE = Path(os.environ.get("MUTANTS_STATE", REPOSITORY / ".mutants"))
LIST = REPOSITORY / "tests" / "MUTANTS.md"


class Part(NamedTuple):
    """What must never be wrong, and the tests that it is tried against."""

    modules: list[str]
    tests: list[str]


def _part(modules: str, tests: str) -> Part:
    return Part(modules.split(), [f"tests/{name}.py" for name in tests.split()])


CORE = {
    "labels": _part(
        "msldata/contract/records.py msldata/sources/labels/values.py msldata/sources/labels/reading.py "
        "msldata/sources/labels/separators.py msldata/sources/labels/survey.py",
        "unit/test_labels unit/test_label_doubts unit/test_table unit/test_source_rules unit/test_class_list "
        "unit/test_separators unit/test_given_in_python unit/test_nothing_lost unit/test_told_apart "
        "unit/test_field_tables unit/test_tables_by_hand unit/test_layouts_by_hand golden/test_formats "
        "golden/test_voc2007 golden/test_coco_layout",
    ),
    "masks": _part(
        "msldata/masks/polarity.py msldata/masks/subsets.py msldata/contract/keepmask.py",
        "unit/test_keepmask unit/test_keepmasks unit/test_subsets",
    ),
    "losses": _part(
        "msltrain/training/losses.py msltrain/training/siamese.py",
        "golden/test_losses unit/test_siamese unit/test_masked_branch unit/test_branchnorm unit/test_tokens "
        "unit/test_step_against_loops unit/test_registered unit/test_given_in_python unit/test_validation",
    ),
    "measures": _part(
        "msltrain/measures/metrics.py msltrain/measures/average_precision.py msltrain/measures/strata.py "
        "msltrain/measures/bootstrap.py msltrain/measures/thresholds.py",
        "golden/test_metrics golden/test_strata golden/test_covered unit/test_bootstrap unit/test_thresholds_found "
        "unit/test_metrics_in_words unit/test_compared",
    ),
    "order": _part(
        "msltrain/stream/order/random.py msltrain/stream/order/plan.py msltrain/stream/order/crop_and_flip.py "
        "msltrain/stream/samples/holdout.py msltrain/stream/keepmasks/choice.py "
        "msltrain/stream/keepmasks/schedule.py",
        "unit/test_plan unit/test_stream_random unit/test_crop_and_flip unit/test_holdout unit/test_keepmasks "
        "unit/test_lookup unit/test_stream_windows unit/test_mask_schedule unit/test_maskbank",
    ),
    "schedule": _part("msltrain/training/optim.py", "golden/test_optim unit/test_families unit/test_learner"),
    "checkpoint": _part(
        "msltrain/runs/checkpoint.py msltrain/runs/find_checkpoint.py",
        "unit/test_checkpoint unit/test_find_checkpoint unit/test_learner unit/test_average",
    ),
    "lock": _part("msldata/storage/lock.py", "unit/test_lock"),
    "contract": _part(
        "msldata/contract/tar.py msldata/contract/format.py msldata/contract/manifest.py msldata/contract/publish.py",
        "unit/test_format unit/test_publish unit/test_hostile_metadata unit/test_walk_tar unit/test_tar "
        "golden/test_shardwriter golden/test_croissant",
    ),
    "resume": _part("msltrain/training/resume.py", "unit/test_resume"),
    "pictures": _part(
        "msltrain/use/read_images.py", "unit/test_read_images unit/test_file_names unit/test_first_table"
    ),
    "loader": _part(
        "msltrain/stream/loader.py msltrain/stream/passes.py",
        "unit/test_loader_alone unit/test_stream_windows unit/test_views unit/test_keepmasks unit/test_augmentations "
        "unit/test_given_in_python",
    ),
}
SAMPLE = 40
"""Mutants of each module that are tried without ``--all``."""
_MAX_SECONDS = 20.0
"""Tests that reach a line are run, quickest first, as far as together they take this long of a processor."""


def _living_functions() -> dict[str, list[types.FunctionType]]:
    """The functions of the core by module, those inside of decorators too."""
    by_file = {str(REPOSITORY / path): path for part in CORE.values() for path in part.modules}
    found: dict[str, list[types.FunctionType]] = {path: [] for path in by_file.values()}
    for thing in gc.get_objects():
        if type(thing) is types.FunctionType and thing.__code__.co_filename in by_file:
            found[by_file[thing.__code__.co_filename]].append(thing)
    return found


def _fork(work: Callable[[], int], seconds: float, *, cpu_seconds: float | None = None, log: bool = True) -> int | None:
    """The exit status of ``work`` in a fork of its own process group; None where it ran past ``seconds``.

    A loop without end is ended by ``cpu_seconds``, which do not depend on what else the machine does.
    """
    child = os.fork()
    if child == 0:
        status = _BROKEN
        try:
            os.setsid()
            with suppress(OSError, AttributeError):  # Linux: end with the parent, however that ends
                ctypes.CDLL(None).prctl(1, signal.SIGKILL)
            if cpu_seconds is not None:
                resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(cpu_seconds), resource.RLIM_INFINITY))
            if log:
                with open(STATE / "child.log", "w") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
            status = work()
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done or time.monotonic() > end:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            if done:
                return os.waitstatus_to_exitcode(status)
            os.waitpid(child, 0)
            return None
        time.sleep(0.005)


class _Plugin:
    """Takes the place of pytest's loop over tests."""

    def __init__(self, work: Callable[[list[pytest.Item]], None]):
        self._work = work

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._work(session.items)
        return True


def _passes(items: list[pytest.Item]) -> int:
    from _pytest.runner import runtestprotocol

    for item, following in zip(items, [*items[1:], None]):
        for report in runtestprotocol(item, log=False, nextitem=following):
            if report.failed:
                (STATE / "failed.txt").write_text(item.nodeid)
                return 1
    return 0


def _failing(items: list[pytest.Item]) -> list[str]:
    """The tests that fail in a fork; they are run by duration, as they are later."""
    found: list[str] = []
    while _fork(lambda: _passes([item for item in items if item.nodeid not in found]), 3600):
        found.append((STATE / "failed.txt").read_text())
    return found


def _measure(items: list[pytest.Item], files: list[str]) -> int:
    """Which lines of the core each test reaches, and how long it takes, into the state of each test file."""
    from _pytest.runner import runtestprotocol

    core = {str(REPOSITORY / path): path for part in CORE.values() for path in part.modules}
    hit: set[tuple[str, int]] = set()

    def local(frame: types.FrameType, event: str, argument: object) -> object:
        hit.add((frame.f_code.co_filename, frame.f_lineno))
        return local

    def trace(frame: types.FrameType, event: str, argument: object) -> object:
        if frame.f_code.co_filename in core:
            return local(frame, event, argument)
        return None

    tests: dict[str, list[_Test]] = {file: [] for file in files}
    for number, item in enumerate(items):
        hit.clear()
        threading.settrace(trace)
        sys.settrace(trace)
        start, used = time.monotonic(), time.process_time()
        reports = runtestprotocol(item, log=False, nextitem=items[number + 1] if number + 1 < len(items) else None)
        seconds, used = time.monotonic() - start, time.process_time() - used
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        failed = any(report.failed for report in reports)
        reached = {(core[file], line) for file, line in hit}
        file = item.nodeid.split("::")[0]
        tests[file].append(_Test(item.nodeid, seconds, used, failed, reached))
        if number + 1 == len(items) or not items[number + 1].nodeid.startswith(f"{file}::"):
            reached_core = sorted({path for test in tests[file] for path, _ in test.reached})
            content = (_digest([file, *reached_core]), reached_core, tests[file])
            _reach_file(file).write_bytes(pickle.dumps(content))
    for file in files:
        if not tests[file]:
            _reach_file(file).write_bytes(pickle.dumps((_digest([file]), [], [])))
    return 0


@dataclass
class _Test:
    nodeid: str
    seconds: float
    cpu_seconds: float
    failed: bool
    reached: set[tuple[str, int]]


def _reach_file(test_file: str) -> Path:
    return STATE / "reach" / f"{test_file.replace('/', '.')}.pickle"


def _reach(options: list[str], files: list[str]) -> list[_Test]:
    """What the tests reach, from the state as far as neither a test file nor what it reached has changed."""
    (STATE / "reach").mkdir(exist_ok=True)
    found: list[_Test] = []
    stale = []
    for file in files:
        with suppress(FileNotFoundError):
            digest, reached_core, tests = pickle.loads(_reach_file(file).read_bytes())
            if digest == _digest([file, *reached_core]):
                found += tests
                continue
        stale.append(file)
    if not stale:
        return found
    print(f"which test of {len(stale)} files reaches which line …", flush=True)
    plugin = _Plugin(lambda items: os._exit(_measure(items, stale)))
    _fork(lambda: int(pytest.main([*options, *stale], plugins=[plugin])), 3600)
    return _reach(options, files)


def _reaching(mutant: Mutant, tests: list[_Test]) -> list[_Test]:
    """The tests that reach the mutant's lines, quickest first, as far as the time goes."""
    first, last = mutant.lines
    reaching = [test for test in tests if any(path == mutant.path for path, _ in test.reached)]
    if mutant.scope:
        lines = {(mutant.path, line) for line in range(first, last + 1)}
        reaching = [test for test in reaching if not lines.isdisjoint(test.reached)]
    else:  # a constant is imported: no line of the module says that a test uses it
        files = {test.nodeid.split("::")[0] for test in reaching}
        reaching = [test for test in tests if test.nodeid.split("::")[0] in files]
    total, chosen = 0.0, []
    for test in reaching:
        total += test.cpu_seconds
        if chosen and total > _MAX_SECONDS:
            break
        chosen.append(test)
    return chosen


def _rows() -> dict[tuple[str, str], dict]:
    file = STATE / "rows.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return {(row["key"], row.get("source", "")): row for row in map(json.loads, lines)}


def _digest(paths: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.encode() + Path(path).read_bytes())
    return digest.hexdigest()[:16]


def _sample(path: str, number: int) -> list[Mutant]:
    """So many mutants of a module, by the digest of their keys: who asks for more tries the same ones and others."""
    chosen = sorted(mutants(path), key=lambda mutant: hashlib.sha256(mutant.key.encode()).digest())[:number]
    return sorted(chosen, key=lambda mutant: mutant.lines)


def _note(mutant: Mutant, outcome: str, digest: str, seconds: float) -> None:
    killer = ""
    if outcome == "caught":
        with suppress(FileNotFoundError):
            killer = (STATE / "failed.txt").read_text()
    row = {
        "key": mutant.key, "source": mutant.source, "line": mutant.lines[0], "outcome": outcome, "by": killer,
        "seconds": round(seconds, 2), "digest": digest,
    }  # fmt: skip
    with open(STATE / "rows.jsonl", "a") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    if outcome != "caught":
        print(f"{outcome:9} {mutant.path}:{mutant.lines[0]} {mutant.scope}: {mutant.change}", flush=True)


def _run(modules: list[str], files: list[str], number: int) -> None:
    STATE.mkdir(exist_ok=True)
    for (
        name
    ) in "torch torchvision timm numpy pyarrow.parquet obstore PIL.Image hypothesis webdataset typer rich".split():
        importlib.import_module(name)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(STATE / "hypothesis")
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow", f"--basetemp={STATE / 'base'}"]
    tests = _reach(options, files)
    if failed := [test.nodeid for test in tests if test.failed]:
        print("left out, since they fail without a mutant:", *failed)
    tests = sorted((test for test in tests if not test.failed), key=lambda test: test.cpu_seconds)

    known, equivalent = _rows(), _equivalents()
    todo: list[tuple[Mutant, list[_Test], str]] = []
    for path in modules:
        for mutant in _sample(path, number):
            row = known.get(mutant.identity)
            if mutant.identity in equivalent or (row and row["outcome"] == "caught"):
                continue
            reaching = _reaching(mutant, tests)
            digest = _digest({path, *(test.nodeid.split("::")[0] for test in reaching)})
            if row is None or row["digest"] != digest:
                todo.append((mutant, reaching, digest))
    print(f"{len(todo)} mutants to try", flush=True)

    def record(mutant: Mutant, reaching: list[_Test], digest: str, attempt: Callable[[], int]) -> bool:
        if not reaching:
            _note(mutant, "unreached", digest, 0)
            return True
        start = time.monotonic()
        (STATE / "failed.txt").write_text("import")
        wall, cpu = (sum(getattr(test, name) for test in reaching) for name in ("seconds", "cpu_seconds"))
        status = _fork(attempt, 120 + 20 * wall, cpu_seconds=(3 if mutant.scope else 20) + 3 * cpu)
        if status != _DOES_NOT_FIT:
            outcome = {0: "survived", _BROKEN: "error", None: "caught"}.get(status, "caught")
            _note(mutant, outcome, digest, time.monotonic() - start)
        return status != _DOES_NOT_FIT

    def warm(items: list[pytest.Item]) -> None:
        by_nodeid = {item.nodeid: item for item in items}
        living = _living_functions()
        gc.freeze()
        # Once without a mutant: a test that fails in a fork, or in another order, would catch everything.
        for nodeid in _failing([by_nodeid[test.nodeid] for test in tests if test.nodeid in by_nodeid]):
            print("left out, since it fails in a fork without a mutant:", nodeid, flush=True)
            for _, reaching, _ in todo:
                reaching[:] = [test for test in reaching if test.nodeid != nodeid]
        for mutant, reaching, digest in in_functions:

            def attempt(mutant: Mutant = mutant, reaching: list[_Test] = reaching) -> int:
                try:
                    swap(mutant, living[mutant.path])
                except ValueError:
                    return _DOES_NOT_FIT
                return _passes([by_nodeid[test.nodeid] for test in reaching])

            if not record(mutant, reaching, digest, attempt):
                with open(STATE / "unfit.txt", "a") as file:
                    file.write(f"{mutant.key}\n")

    def cold(mutant: Mutant, reaching: list[_Test], digest: str) -> None:
        def attempt() -> int:
            for name in [name for name in sys.modules if name.split(".")[0] in ("msldata", "msltrain", "tests")]:
                if name not in ("tests", "tests.mutants"):
                    del sys.modules[name]
            code, module = compiled(mutant), str(REPOSITORY / mutant.path)
            get_code = importlib.machinery.SourceFileLoader.get_code

            def mutated(loader: importlib.machinery.SourceFileLoader, name: str) -> types.CodeType | None:
                return code if loader.path == module else get_code(loader, name)

            importlib.machinery.SourceFileLoader.get_code = mutated  # type: ignore[method-assign,assignment]

            def work(items: list[pytest.Item]) -> None:
                if _passes([item for item in items if item.nodeid in nodeids]):
                    os._exit(1)

            nodeids = {test.nodeid for test in reaching}
            seconds: Counter[str] = Counter()
            for test in reaching:
                seconds[test.nodeid.split("::")[0]] += test.cpu_seconds
            for file in sorted(seconds, key=seconds.__getitem__):  # each is collected only where those before passed
                if pytest.main([*options, file], plugins=[_Plugin(work)]):
                    return 1  # it cannot even be imported
            return 0

        record(mutant, reaching, digest, attempt)

    in_functions = [row for row in todo if row[0].scope]
    (STATE / "unfit.txt").write_text("")
    if in_functions:
        used = sorted({test.nodeid.split("::")[0] for _, reaching, _ in in_functions for test in reaching})
        _fork(lambda: int(pytest.main([*options, *used], plugins=[_Plugin(warm)])), 36000, log=False)
    unfit = set((STATE / "unfit.txt").read_text().splitlines())  # another closure, such as without its `super()`
    for mutant, reaching, digest in todo:
        if not mutant.scope or mutant.key in unfit:
            cold(mutant, reaching, digest)


_BROKEN, _DOES_NOT_FIT = 70, 71


def _equivalents() -> set[tuple[str, str]]:
    """The mutants that tests/MUTANTS.md lists, by what they say and the line of the module."""
    text = LIST.read_text() if LIST.exists() else ""
    return set(re.findall(r"^- ``(.+?)``\s+in ``(.+?)``", text, re.MULTILINE))


def table() -> str:
    """The results by module, as Markdown; the share is caught of tried, without the equivalent ones."""
    known, equivalent = _rows(), _equivalents()
    lines = ["| part | module | mutants | tried | equivalent | caught | not | share |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    totals = [0, 0, 0, 0, 0]

    def row(part: str, module: str, counts: list[int]) -> None:
        num, tried, same, caught, missed = counts
        share = f"{caught / (caught + missed):.1%}" if caught + missed else "–"
        lines.append(f"| {part} | {module} | {num} | {tried} | {same} | {caught} | {missed} | {share} |")

    for part, (paths, _) in CORE.items():
        for path in paths:
            identities = [mutant.identity for mutant in mutants(path)]
            same = sum(one in equivalent for one in identities)
            outcomes = [known[one]["outcome"] for one in identities if one in known and one not in equivalent]
            caught = outcomes.count("caught")
            counts = [len(identities), same + len(outcomes), same, caught, len(outcomes) - caught]
            row(part, f"`{path}`", counts)
            totals = [total + count for total, count in zip(totals, counts)]
    row("", "all", totals)
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(CORE)}, or a module's path")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--list", action="store_true", help="show the mutants, try none")
    parser.add_argument("--sample", type=int, default=SAMPLE, metavar="N", help=f"of each module; {SAMPLE} else")
    parser.add_argument("--all", action="store_true", help="every mutant of each module")
    parser.add_argument("--tests", nargs="+", metavar="FILE", help="these tests instead of the part's own")
    arguments = parser.parse_args()
    known = CORE | {path: Part([path], part.tests) for part in CORE.values() for path in part.modules}
    if unknown := set(arguments.parts) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(CORE)} and their modules' paths")
    os.chdir(REPOSITORY)
    if arguments.table:
        print(table())
    for name in [] if arguments.table else arguments.parts or CORE:
        if arguments.list:
            for path in known[name].modules:
                for mutant in mutants(path):
                    print(f"- ``{mutant.key}`` in ``{mutant.source}``")
        else:
            number = 10**9 if arguments.all else arguments.sample
            _run(known[name].modules, arguments.tests or known[name].tests, number)
