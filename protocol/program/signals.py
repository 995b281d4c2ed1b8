"""Signals to a program that serves, read in its loop: no step is interrupted half-way.

No handler runs, which a flood of signals would call one within another: from when there is something to
clean up, they are blocked in every thread, and read from a signalfd(2), which Python lacks.

SIGTERM and SIGINT end the program. SIGHUP opens the log's file again, and ends the program only where its
terminal has hung up: whoever else sends it, such as logrotate(8), does not mean to cut the guests off.
Where SIGHUP was ignored when the program was started, as under nohup(1), it never ends the program, and opens
the log's file again where there is one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
from typing import TYPE_CHECKING, NoReturn

import trio

from protocol.fds import OwnedFd
from protocol.program import children, logs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

_STOP = (signal.SIGTERM, signal.SIGINT)

_SET_BYTES = 128
"""Of a sigset_t."""
_INFO = struct.Struct("=I124x")
"""struct signalfd_siginfo, which begins with the number."""

_libc_signalfd = ctypes.CDLL(None, use_errno=True).signalfd
_libc_signalfd.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int)


def heeds_hangup() -> bool:
    """Tell whether SIGHUP may end us: under nohup(1), which has us ignore it, it may not."""
    return signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def hold(numbers: Iterable[int]) -> None:
    """Keep signals from this thread, and from those that it starts from now on: a SignalFd reads them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal that was held be a KeyboardInterrupt for the length of the block, which may take long."""
    for number in _STOP:
        signal.signal(number, _interrupt)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP)
        yield
    finally:
        hold(_STOP)
        for number in _STOP:
            children.handle(number)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    hold(_STOP)  # the clean-up is not interrupted
    raise KeyboardInterrupt


def die_of(number: int) -> NoReturn:
    """End at once, as by a signal without a handler."""
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


class ServiceSignals(SignalFd):
    """The signals of a program that serves: those that end it, and `more`. SIGHUP is dealt with here.

    From when it is made, they are held; programs that are started have them unblocked. Whoever makes it
    closes it.
    """

    __slots__ = ("_may_hang_up",)

    def __init__(self, more: Iterable[int] = (), *, has_children: bool = True) -> None:
        """Hold and read the signals; without children, it is not seen to that they get them.

        Raises OSError at the limit of open files.
        """
        numbers = {*_STOP, *more}
        self._may_hang_up = heeds_hangup() and _has_terminal()
        if heeds_hangup() or logs.is_file():
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the kernel drops what is ignored
            numbers.add(signal.SIGHUP)
        super().__init__(numbers)
        hold(numbers)
        if has_children:
            children.unblock_in_children(numbers)

    def take(self) -> int | None:
        """Return the number of a signal that has come; None where none has, or SIGHUP that ends nothing."""
        while (number := super().take()) == signal.SIGHUP:
            if self._may_hang_up and not _has_terminal():
                break
            logs.reopen()
        return number


def _has_terminal() -> bool:
    """Tell whether we have a controlling terminal. After a hangup its processes have none."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno not in {errno.ENXIO, errno.EIO, errno.ENOENT}
    return True
