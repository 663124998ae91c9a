import threading
import time

import pytest

from fcn_jax.data.read_ahead import read_ahead


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order_whatever_takes_long(threads):
    def work(i):
        time.sleep(0.002 * (i % 3))
        return i * i

    assert list(read_ahead(work, 20, threads=threads)) == [i * i for i in range(20)]
    assert list(read_ahead(work, 0)) == []


def test_work_stays_a_few_results_ahead():
    begun = []
    results = read_ahead(begun.append, 100, threads=2)
    next(results)
    time.sleep(0.05)
    assert len(begun) <= 7
    results.close()
    assert len(begun) < 100


def test_error_arrives_when_its_result_is_due():
    def work(i):
        if i == 3:
            raise ValueError("three")
        return i

    results = read_ahead(work, 10)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert threading.active_count() < 20
