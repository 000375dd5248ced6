"""Several items at a time, and a word after each."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel(
    function: Callable[[Item], Result], items: Sequence[Item], jobs: int, done: Callable[[int], object]
) -> list[Result]:
    """Return `function` of each item, in the order of the items; `done` is told how many are finished, after each.

    The work is done in `jobs` threads: LAPACK works without Python's lock. The first error ends it, what has not begun
    is not begun.
    """
    results: dict[int, Result] = {}
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(function, item): index for index, item in enumerate(items)}
        try:
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                done(len(results))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [results[index] for index in range(len(items))]
