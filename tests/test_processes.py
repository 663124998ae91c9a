"""A run of one process; tests/test_parallel.py has several."""

import numpy as np

from fcn_jax.processes import (
    all_devices,
    assert_equal_across_processes,
    is_main,
    main_first,
    merge_shards,
    preempted,
    process_shard,
    sum_over_processes,
    wait_for_all,
)


def test_lone_process_is_the_main_one_and_waits_for_nobody():
    assert is_main() and not preempted(1)
    wait_for_all()
    ran = []
    with main_first():
        ran.append(1)
    assert ran == [1]
    assert_equal_across_processes((1, 2), "never raised")
    assert len(all_devices()) >= 1


def test_shard_of_a_lone_process_is_the_whole_source():
    shard = process_shard(["a", "b", "c"])
    assert len(shard) == 3 and [shard[i] for i in range(3)] == ["a", "b", "c"]
    assert merge_shards([1, 2, 0.1], 3).tolist() == [1, 2, 0.1]


def test_sum_over_a_lone_process_keeps_numbers_of_64_bits():
    large = np.array([[2**40, 1]])
    total = sum_over_processes(large)
    np.testing.assert_array_equal(total, large)
    assert total.dtype == np.int64
