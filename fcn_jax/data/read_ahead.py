"""Prefetching with threads: results in order, in bounded memory."""

import collections
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def read_ahead(
    work: Callable[[int], Result], n: int, *, threads: int = 2
) -> Iterator[Result]:
    """Compute work(0), ..., work(n - 1) in threads and yield the results in order.

    At most ``3 * threads`` results are queued, so memory stays bounded. An exception of
    ``work`` is raised when its result is due.
    """
    ahead: collections.deque = collections.deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for i in range(n):
            ahead.append(pool.submit(work, i))
            if len(ahead) > 3 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        # If the caller stops early, the queued work is not done, and the caller does
        # not wait for the work that has begun.
        pool.shutdown(wait=False, cancel_futures=True)
