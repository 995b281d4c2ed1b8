"""Limits of another process, lowered while it runs, so that it can have no more."""

from __future__ import annotations

import os
import resource
import threading
import time
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from trio._core import _thread_cache as thread_cache

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.rig.programs.process import Program

_A_MOMENT = 0.01
"""Seconds after which a file is open no more that is opened and closed again."""

LARGER_THAN_ANY_ADDRESS_SPACE = 1 << 56

ROOM = 64 << 20
"""Bytes of address space that a process needs to go on, whatever it does."""


@contextmanager
def limited(program: Program, kind: int, value: int) -> Iterator[None]:
    """Let a process have no more of a resource (RLIMIT_...) than `value`, for the length of the block."""
    soft, hard = resource.prlimit(program.pid, kind)
    resource.prlimit(program.pid, kind, (value, hard))
    try:
        yield
    finally:
        resource.prlimit(program.pid, kind, (soft, hard))


@contextmanager
def files_limited(program: Program, more: int = 0) -> Iterator[None]:
    """Let a process open only `more` files for the length of the block, beside those that it keeps open."""
    used = _open_files(program)
    time.sleep(_A_MOMENT)
    used &= _open_files(program)
    free = (number for number in count() if number not in used)
    for _ in range(more):
        next(free)
    with limited(program, resource.RLIMIT_NOFILE, next(free)):
        yield


@contextmanager
def memory_limited(program: Program) -> Iterator[None]:
    """Let a process map nothing that is large, for the length of the block."""
    pages = int(Path(f"/proc/{program.pid}/statm").read_text().split()[0])
    with limited(program, resource.RLIMIT_AS, pages * resource.getpagesize() + ROOM):
        yield


@contextmanager
def threads_refused() -> Iterator[None]:
    """Let this process start no thread: each would have a stack that there is no address space for."""
    kept, thread_cache.THREAD_CACHE = thread_cache.THREAD_CACHE, thread_cache.ThreadCache()  # idle ones
    before = threading.stack_size(LARGER_THAN_ANY_ADDRESS_SPACE)
    try:
        yield
    finally:
        threading.stack_size(before)
        thread_cache.THREAD_CACHE = kept


def _open_files(program: Program) -> set[int]:
    return {int(name) for name in os.listdir(f"/proc/{program.pid}/fd")}  # noqa: PTH208
