"""Tasks on a Ray cluster: the same functions as in local processes, and so the same bytes."""

from __future__ import annotations

import os
import re
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from msldata.errors import UserError
from msldata.workers.processes import available_cpus

Task = TypeVar("Task")
Result = TypeVar("Result")

_RETRIES = 1  # as in local processes: whatever kills two workers would kill a third


def run_on_ray(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    num_workers: int | None,
    on_result: Callable[[Result], None] | None,
    address: str | None,
) -> list[Result]:
    """``engine.run_tasks`` on the cluster at ``address``, or on one that is started on this machine and stopped
    afterwards.

    Every node needs this package, the access rights, and the same view of the folders that the tasks read and write.
    """
    ray = _ray()
    connected_before = ray.is_initialized()
    if not connected_before:
        _connect(ray, address, num_workers)
    try:
        return _run(ray, function, tasks, num_workers, on_result)
    finally:
        if not connected_before:
            ray.shutdown()


def _run(
    ray: Any,
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    num_workers: int | None,
    on_result: Callable[[Result], None] | None,
) -> list[Result]:
    remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(function)
    # Only tasks that can run soon are submitted: all the tasks of a large plan would fill the cluster's memory.
    num_running = num_workers or max(1, 2 * int(ray.cluster_resources().get("CPU", 1)))
    waiting = deque(range(len(tasks)))
    running: dict[Any, int] = {}
    results: dict[int, Result] = {}
    try:
        while waiting or running:
            while waiting and len(running) < num_running:
                index = waiting.popleft()
                running[remote.remote(tasks[index])] = index
            (finished,), _ = ray.wait(list(running), num_returns=1)
            index = running.pop(finished)
            results[index] = ray.get(finished)
            if on_result is not None:
                on_result(results[index])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.WorkerCrashedError:
        raise UserError(
            f"{_RETRIES + 1} Ray workers were killed by the same work, most likely because memory ran out; run the "
            "same command again to go on from what is finished, with fewer --workers"
        ) from None
    except ray.exceptions.RayError as error:
        raise UserError(f"Ray could not run the work: {error}; run the same command again to go on") from error
    finally:
        for reference in running:  # after an error, or Ctrl-C
            ray.cancel(reference, force=True)
    return [results[index] for index in range(len(tasks))]


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray: Ray is not installed here; run: pip install 'msltrain[ray]'") from None
    return ray


def _connect(ray: Any, address: str | None, num_workers: int | None) -> None:
    """Join the cluster at ``address`` or in $RAY_ADDRESS; without one, start one here that is as large as needed."""
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None and "RAY_ADDRESS" not in os.environ:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report usage statistics to its developers
        ray.init(
            address="local",
            num_cpus=num_workers or available_cpus(),
            object_store_memory=200_000_000,
            include_dashboard=False,
            **quiet,
        )
        return
    place = address or os.environ["RAY_ADDRESS"]
    try:
        _knock(place)
        ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--ray-address {place}: no Ray cluster answers there ({error}); start one with `ray start --head`, or "
            "leave the option out to use this machine alone"
        ) from None


def _knock(place: str) -> None:
    """Raise OSError where nothing listens: Ray itself would try for minutes and then end the whole process."""
    match = re.fullmatch(r"(?:\w+://)?([^/]+):([0-9]+)", place)
    if match is not None:
        socket.create_connection((match[1], int(match[2])), timeout=10).close()
