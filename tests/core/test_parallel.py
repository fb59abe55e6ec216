"""Work that fans out."""

import threading
import time

import pytest

from onnxvitq.core.parallel import fan_out, fanned_out

WORKERS = pytest.mark.parametrize("workers", [1, 2])


@WORKERS
def test_results_are_in_the_order_of_the_items(workers: int) -> None:
    def late(item: int) -> int:
        time.sleep(0.02 * (4 - item))
        return item * item

    assert fan_out(late, range(5), workers) == [0, 1, 4, 9, 16]


@WORKERS
def test_a_result_is_handed_on_before_the_last_is_there(workers: int) -> None:
    taken = threading.Event()
    results = fanned_out(lambda item: item < 9 or taken.wait(5), range(10), workers)
    assert next(results)
    taken.set()
    assert all(results)


@WORKERS
def test_an_error_in_one_of_them_is_raised(workers: int) -> None:
    with pytest.raises(ZeroDivisionError):
        fan_out(lambda item: 1 // item, range(3), workers)


def test_two_workers_work_at_once() -> None:
    both = threading.Barrier(2, timeout=5)
    assert sorted(fan_out(lambda _: both.wait(), range(2), 2)) == [0, 1]
