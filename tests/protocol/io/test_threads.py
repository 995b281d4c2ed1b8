"""Calls in threads, where there are some and where there are none."""

from __future__ import annotations

import threading

import pytest
import trio

from protocol.io.threads import NO_THREAD, run_in_thread, start_threads
from tests.rig.programs.limits import threads_refused


async def test_function_runs_in_a_thread() -> None:
    complaints: list[str] = []
    thread = await run_in_thread(threading.current_thread, complain=complaints.append)
    assert thread is not threading.current_thread()
    assert not complaints


async def test_function_runs_here_while_no_thread_can_be_started() -> None:
    complaints: list[str] = []
    limiter = trio.CapacityLimiter(1)
    with threads_refused():
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await trio.to_thread.run_sync(int)
        assert await run_in_thread(int, "7", complain=complaints.append, limiter=limiter) == 7
        thread = await run_in_thread(threading.current_thread, complain=complaints.append, limiter=limiter)
    assert thread is threading.current_thread()
    assert complaints == [NO_THREAD] * 2
    assert await run_in_thread(threading.current_thread, complain=complaints.append) is not thread


@pytest.mark.parametrize("error", [RuntimeError("own"), OSError(5, "own")])
async def test_what_the_function_raises_is_no_lack_of_threads(error: Exception) -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error), match="own"):
        await run_in_thread(fail, complain=pytest.fail)
    assert calls == [1]


async def test_cancelled_call_does_not_begin() -> None:
    with threads_refused(), trio.CancelScope() as scope:
        scope.cancel()
        await run_in_thread(pytest.fail, "it was called", complain=pytest.fail)
    assert scope.cancelled_caught


def test_as_many_threads_start_as_can() -> None:
    with threads_refused():
        assert start_threads([threading.Thread(target=int)]) == []
    threads = [threading.Thread(target=int) for _ in range(3)]
    assert start_threads(threads) == threads
    for thread in threads:
        thread.join()
