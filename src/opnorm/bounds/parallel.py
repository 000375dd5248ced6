"""Several items at a time, in threads: NumPy and `bounds.lapack`, where the time goes, work without Python's lock."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar, cast

from opnorm.bounds.threads import one_blas_thread

_THREADS = 8
Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel(
    function: Callable[[Item], Result], items: Sequence[Item], jobs: int, done: Callable[[int], object] = int
) -> list[Result]:
    """Return `function` of each item, in the order of the items; `done` is told how many are finished, after each.

    One job is done in the calling thread. The first error ends it: what has not begun by then is not begun.
    """
    if jobs == 1:
        return [_told(function(item), done, count) for count, item in enumerate(items, 1)]
    errors: list[BaseException] = []

    def unless_failed(item: Item) -> Result | None:
        # Asked where the work is done: no item waits for the caller to look.
        try:
            return None if errors else function(item)
        except BaseException as error:
            errors.append(error)
            return None

    pool = ThreadPoolExecutor(jobs)
    futures = [pool.submit(unless_failed, item) for item in items]
    try:
        for count, _ in enumerate(as_completed(futures), 1):
            if errors:
                raise errors[0]
            done(count)
    except BaseException as error:  # at Ctrl-C what works on may take long, and nobody waits for it
        pool.shutdown(wait=isinstance(error, Exception), cancel_futures=True)
        raise
    pool.shutdown()
    return [cast(Result, future.result()) for future in futures]


def _told(result: Result, done: Callable[[int], object], count: int) -> Result:
    done(count)
    return result


def in_batches(
    function: Callable[[slice], Result], count: int, size: int, most_threads: int = _THREADS
) -> list[Result]:
    """Return `function` of slices of `range(count)`, each of `size` items at most, in their order.

    There are as many threads as BLAS would have, `most_threads` at most, for the memory, and each has BLAS in one
    thread. The slices do not depend on the threads, and so neither do the results.
    """
    parts = [slice(first, min(first + size, count)) for first in range(0, count, size)]
    with one_blas_thread() as threads:
        return parallel(function, parts, max(1, min(threads, most_threads, len(parts))))
