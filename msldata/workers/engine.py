"""Where the tasks of a build run: in local worker processes, or on a Ray cluster. Tasks are independent and idempotent.

The same function runs in both, so the bytes are the same. When a worker is killed in the middle of a task, only that
task is lost, and it is run once more, elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from msldata.errors import UserError
from msldata.workers.processes import available_cpus

Task = TypeVar("Task")
Result = TypeVar("Result")

ENGINES = ("local", "ray")


@dataclass(frozen=True, slots=True)
class Engine:
    """What runs the tasks.

    Raises:
        UserError: an unknown name, or an address for an engine that takes none.
    """

    name: str = "local"
    """``local`` or ``ray``."""
    ray_address: str | None = None
    """Address of a running cluster: ``auto`` or ``HOST:6379``; default: $RAY_ADDRESS, else one is started here."""

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise UserError(f"unknown engine '{self.name}'; known are: {', '.join(ENGINES)}")
        if self.ray_address is not None and self.name != "ray":
            raise UserError(f"--ray-address {self.ray_address} needs --engine ray")


LOCAL = Engine()


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    num_workers: int | None = None,
    on_result: Callable[[Result], None] | None = None,
    engine: Engine = LOCAL,
) -> list[Result]:
    """Run ``function`` on every task and return the results in the order of the tasks.

    The first error stops all other tasks and is raised unchanged. No worker outlives this process, however it ends.

    Args:
        function: a function at the top level of a module; it and the tasks are pickled.
        tasks: one argument each.
        num_workers: tasks that run at the same time; locally 1 runs in this process. Default: one per available
            processor, with Ray of the cluster's.
        on_result: called in this process with each result as soon as it is there, in any order.
        engine: where they run.

    Raises:
        UserError: two workers were killed by one task, ``num_workers`` is below 1, or Ray is missing or cannot be
    reached.
    """
    if num_workers is not None and num_workers < 1:
        raise UserError(f"num_workers is {num_workers}; it must be 1 or more")
    if engine.name == "ray":
        from msldata.workers.ray import run_on_ray

        return run_on_ray(function, tasks, num_workers, on_result, engine.ray_address)
    num_workers = min(num_workers or available_cpus(), len(tasks))
    if num_workers <= 1:
        return _run_here(function, tasks, on_result)
    from msldata.workers.processes import run_in_processes

    return run_in_processes(function, tasks, num_workers, on_result)


def _run_here(
    function: Callable[[Task], Result], tasks: Sequence[Task], on_result: Callable[[Result], None] | None
) -> list[Result]:
    results = []
    for task in tasks:
        results.append(function(task))
        if on_result is not None:
            on_result(results[-1])
    return results
