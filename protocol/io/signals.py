"""Signals that end a program, read in its loop and nowhere else: nothing is interrupted half-way.

No handler runs, which a flood of signals would call one within another: from when there is something to
clean up, they are blocked in every thread, and read from a signalfd(2), which Python lacks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
from typing import TYPE_CHECKING, NoReturn

import trio

from protocol.fds import OwnedFd

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_SET_BYTES = 128
"""Of a sigset_t."""
_INFO = struct.Struct("=I124x")
"""struct signalfd_siginfo, which begins with the number."""

_libc_signalfd = ctypes.CDLL(None, use_errno=True).signalfd
_libc_signalfd.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int)


def stop_signals() -> list[signal.Signals]:
    """Return the signals that end us: not SIGHUP under nohup(1), which has us ignore it."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in _STOP if number is not signal.SIGHUP or not ignored]


def hold(numbers: Iterable[int]) -> None:
    """Keep signals from this thread, and from those that it starts from now on: a SignalFd reads them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal that was held be a KeyboardInterrupt for the length of the block, which may take long."""
    numbers = stop_signals()
    for number in numbers:
        signal.signal(number, _interrupt)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        yield
    finally:
        hold(numbers)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    hold(_STOP)  # nobody interrupts the clean-up
    raise KeyboardInterrupt


def die_of(number: int) -> NoReturn:
    """End at once, as by a signal that nobody handles."""
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    signal.raise_signal(number)
    raise SystemExit(128 + number)


class SignalFd(OwnedFd):
    """Where signals are read that all threads `hold()`. Whoever makes it closes it."""

    __slots__ = ()

    def __init__(self, numbers: Iterable[int]) -> None:
        """Read these signals. Raises OSError at the limit of open files."""
        bits = sum(1 << number - 1 for number in set(numbers))
        fd = _libc_signalfd(-1, bits.to_bytes(_SET_BYTES, "little"), os.O_CLOEXEC | os.O_NONBLOCK)
        if fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        super().__init__(fd)

    async def wait(self) -> int:
        """Wait for a signal, and return its number; one that came several times comes once."""
        while True:
            await trio.lowlevel.wait_readable(self.fileno())
            if (number := self.take()) is not None:
                return number

    def take(self) -> int | None:
        """Return the number of a signal that has come; None where none has."""
        try:
            number: int = _INFO.unpack(os.read(self.fileno(), _INFO.size))[0]
        except BlockingIOError:
            return None
        return number
