"""Work done by threads: a little ahead of where its results are used, or side by side."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

S = TypeVar("S")
T = TypeVar("T")


def ahead(
    call: Callable[[S], T],
    items: Iterable[S],
    workers: int,
    early: int | None = None,
    *,
    name: str = "zsad-ahead",
) -> Generator[T, None, None]:
    """Yield ``call(item)`` in order; at most ``early`` (default 4 per worker) results wait.

    ``name`` begins the names of the threads.  Closing the generator drops the queue and ends the threads.
    torch computes with one thread inside each of them: several of them are what uses the cores.
    """
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name, initializer=_compute_alone)
    waiting = iter(items)
    queue: deque[Future[T]] = deque()
    try:
        queue.extend(pool.submit(call, item) for item in islice(waiting, early or 4 * workers))
        while queue:
            done = queue.popleft().result()
            queue.extend(pool.submit(call, item) for item in islice(waiting, 1))
            yield done
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if torch:  # threads that others start later begin with what was set last, wherever that was
            torch.set_num_threads(threads)


def _compute_alone() -> None:
    """Let torch compute with one thread in the one that calls this."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def in_pieces(walk: Callable[[Tensor], Tensor], rows: Tensor, most: int, least: int = 1) -> Tensor:
    """Return ``walk(rows)`` without gradients, computed in pieces of at most ``most`` of the rows (n, ...).

    On a CPU every core has a piece of its own, of ``least`` rows or more: threads that share the steps of one
    wait for each other.  On other devices one piece follows the other.  The results (n, ...) are joined.
    """
    import torch

    @torch.no_grad()  # holds for the thread that sets it
    def alone(piece: Tensor) -> Tensor:
        return walk(piece)

    threads = torch.get_num_threads() if rows.device.type == "cpu" else 1
    rounds = max(1, math.ceil(len(rows) / (most * threads)))
    pieces = torch.split(rows, max(least, math.ceil(len(rows) / (rounds * threads))))
    side_by_side = threads > 1 and len(pieces) > 1
    done = ahead(alone, pieces, threads, name="zsad-walk") if side_by_side else map(alone, pieces)
    return torch.cat([*done])
