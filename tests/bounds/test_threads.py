"""Who uses the processors: what BLAS is set to, and that proofs leave Python to others."""

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from opnorm.bounds import lapack
from opnorm.bounds.parallel import in_batches, parallel
from opnorm.bounds.threads import one_blas_thread


def blas():
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def _two():
    with threadpool_limits(2, user_api="blas"):
        yield


def test_blas_has_one_thread_inside_and_its_own_again_after():
    with one_blas_thread() as share:
        assert (share, blas()) == (2, {1})
    assert blas() == {2}


def test_blas_is_set_back_after_an_error():
    with pytest.raises(KeyError), one_blas_thread():
        raise KeyError
    assert blas() == {2}
    with one_blas_thread() as share:
        assert (share, blas()) == (2, {1})


def test_jobs_share_what_blas_had():
    with one_blas_thread(jobs=2) as share, one_blas_thread() as inner:
        assert (share, inner) == (1, 1)


def test_the_first_that_entered_sets_blas_back_wherever_the_others_are():
    inside, leave = threading.Event(), threading.Event()

    def other():
        with one_blas_thread():
            inside.set()
            leave.wait(30)

    with one_blas_thread():
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(30)
    assert blas() == {2}
    leave.set()
    thread.join()
    assert blas() == {2}


def test_a_proof_runs_without_pythons_lock():
    matrix = np.random.default_rng(0).standard_normal((1200, 1200))
    counted, done = [0], threading.Event()

    def count():
        while not done.is_set():
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    before = counted[0]
    gram = lapack.gram(matrix)
    gram[np.diag_indices(len(gram))] += 1
    assert lapack.is_positive_definite(gram)
    during = counted[0] - before
    done.set()
    thread.join()
    assert during > 10_000  # some 100 ms of counting; with the lock held it would be none


@pytest.mark.parametrize("matrix", [np.eye(3)[:2], np.ones((3, 3)) + np.eye(3), np.eye(3, dtype=np.float32)])
def test_a_matrix_that_would_be_read_past_its_end_is_refused(matrix):
    with pytest.raises((ValueError, TypeError), match="Received: "):
        lapack.is_positive_definite(matrix if matrix.dtype == np.float32 else np.ascontiguousarray(matrix))


@pytest.mark.parametrize("jobs", [1, 3])
def test_results_come_in_the_order_of_the_items_and_are_counted(jobs):
    seen = []
    assert parallel(lambda x: x * x, range(10), jobs, seen.append) == [x * x for x in range(10)]
    assert seen == list(range(1, 11))


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_first_error_ends_the_work(jobs):
    begun = []

    def work(x):
        begun.append(x)
        raise ArithmeticError(x)

    with pytest.raises(ArithmeticError):
        parallel(work, range(1000), jobs)
    assert len(begun) <= jobs


def test_batches_cover_everything_once():
    parts = in_batches(lambda part: list(range(1000))[part], 103, 10)
    assert [len(part) for part in parts] == [10] * 10 + [3]
    assert [item for part in parts for item in part] == list(range(103))
