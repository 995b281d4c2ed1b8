"""Threads for calls that block, where the process may be at its limit of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

NO_THREAD = (
    "no thread can be started; raise the limit of processes (ulimit -u), or of the service's tasks (TasksMax)"
)
"""Cause and remedy, in one line."""

_T = TypeVar("_T")


async def run_in_thread(
    function: Callable[..., _T],
    *arguments: object,
    complain: Callable[[str], None],
    limiter: trio.CapacityLimiter | None = None,
) -> _T:
    """Return what `function` returns that is called in a thread, as by trio.to_thread.run_sync().

    Where no thread can be started, `complain` is called with cause and remedy, and `function` in the thread
    of the caller: all tasks wait for it, but nothing fails. Raises what `function` raises.
    """
    began = False

    def begin() -> _T:
        nonlocal began
        began = True
        return function(*arguments)

    try:
        return await trio.to_thread.run_sync(begin, limiter=limiter)
    except RuntimeError:
        if began:
            raise
    complain(NO_THREAD)
    await trio.lowlevel.checkpoint()
    return function(*arguments)


def start_threads(threads: list[threading.Thread]) -> list[threading.Thread]:
    """Start threads, as many as can be; return those that run."""
    for number, thread in enumerate(threads):
        try:
            thread.start()
        except RuntimeError:
            return threads[:number]
    return threads
