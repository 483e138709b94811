"""Threads stay as urgent as they were, whatever an encoder makes of them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

THREADS = Path("/proc/self/task")
REAL_TIME = (1, 2)  # SCHED_FIFO, SCHED_RR, which only some systems have by name


@contextlib.contextmanager
def keep_priority() -> Iterator[None]:
    """Afterwards no thread of this process runs in real time that did not before.

    Where the process is root's, as in most containers, SVT-AV1 puts its own threads and the one
    that calls it before all others of the machine (SCHED_FIFO, 99). The caller would stay there,
    with each process that it starts.
    """
    if sys.platform != "linux":
        yield
        return
    before = _schedulers()
    try:
        yield
    finally:
        for thread, policy in _schedulers().items():
            if policy != before.get(thread, os.SCHED_OTHER) and policy in REAL_TIME:
                with contextlib.suppress(OSError):  # a thread that has ended
                    os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def _schedulers() -> dict[int, int]:
    """The policy of each thread of this process, by its number."""
    found = {}
    with contextlib.suppress(OSError):
        for thread in sorted(THREADS.iterdir()):
            with contextlib.suppress(OSError):
                found[int(thread.name)] = os.sched_getscheduler(int(thread.name))
    return found
