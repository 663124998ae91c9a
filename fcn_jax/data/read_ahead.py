"""Work done in threads ahead of its use, in order and a little at a time."""

import collections
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def read_ahead(
    work: Callable[[int], Result], n: int, *, threads: int = 2
) -> Iterator[Result]:
    """The results of work(0), work(1), ..., work(n - 1).

    At most three for each thread wait for their use, so memory stays bounded. An error
    arrives when its result is due.
    """
    ahead: collections.deque = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for i in range(n):
                ahead.append(pool.submit(work, i))
                if len(ahead) > 3 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:  # Whoever stops early need not wait for what nobody wants.
            pool.shutdown(cancel_futures=True)
