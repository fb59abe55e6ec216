"""The only place where work fans out over threads: independent tasks, a layer each, on joblib.

Each task runs its BLAS on one thread. Several threads inside a small product gain little, and wait for each other when the
machine has other work (measured on two busy cores: 12 s against 0.7 s for the bundled model's search). It also makes the
result independent of the number of cores.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")


def fan_out(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> list[Result]:
    """``[function(item) for item in items]``, computed by several threads.

    Args:
        function: independent of its other calls.
        items: one a task.
        workers: threads; 0 takes one a core.

    Returns:
        The results, in the order of ``items``.
    """
    return list(fanned_out(function, items, workers))


def fanned_out(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """``fan_out`` as an iterator: each result as soon as it and those before it are there, so that none need be kept."""
    with one_blas_thread():
        tasks = (delayed(function)(item) for item in items)
        yield from Parallel(n_jobs=workers or _cores(), prefer="threads", return_as="generator")(tasks)


def one_blas_thread() -> AbstractContextManager[object]:
    """A context in which a matrix product runs on the thread that calls it."""
    return threadpool_limits(limits=1, user_api="blas")


def _cores() -> int:
    """Cores this process may use; a container often has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
