"""Programs that we start have the signals unblocked that we block for ourselves.

How it works. A SignalFd needs its signals blocked in every thread, and a program that is started inherits
the mask of the thread that starts it: SIGTERM would never reach it. subprocess has no parameter for the
mask, and a device of somebody else may start programs. So an audit hook unblocks the signals in that thread
just before (trio.run_process() uses subprocess too, in a thread of its own), and they stay unblocked there.
A signal that comes to such a thread runs `_pass_on()` in the main thread, which blocks all of them there
again and sends the signal to the main thread, where the SignalFd reads it: none is lost, and none interrupts
anything. execve(2) sets signals that have a handler back to their default; after a fork without execve(2),
the child does that itself. Only a program that the main thread starts while a signal waits to be read, such
as one that ends us, may still have them blocked.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

_STARTS = frozenset({"subprocess.Popen", "os.exec", "os.posix_spawn"})
"""Audit events of the thread that is about to start a program."""

_held: set[int] = set()


def unblock_in_children(numbers: Iterable[int]) -> None:
    """Let programs that are started from now on have these signals, which all our threads block, unblocked.

    One that we ignore they ignore too. Call it in the main thread.
    """
    if not _held:
        sys.addaudithook(_unblock_before_start)
        os.register_at_fork(after_in_child=_set_back)
    _held.update(numbers)
    for number in _held:
        handle(number)


def handle(number: int) -> None:
    """Set the handler of a signal that all our threads block, unless it is ignored. Main thread only."""
    if number in _held and signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, _pass_on)


def _unblock_before_start(event: str, arguments: tuple[object, ...]) -> None:
    if event in _STARTS:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _held)


def _pass_on(number: int, frame: FrameType | None) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _held)
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, number)


def _set_back() -> None:
    for number in _held:
        if signal.getsignal(number) is _pass_on:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _held)
