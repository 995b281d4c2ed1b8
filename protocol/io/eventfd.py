"""Eventfds that other processes hold too: signalled and read without ever blocking the loop.

eventfd(2). O_NONBLOCK belongs to the open file, which every process that was passed the descriptor
shares, and QEMU sets and clears it at will. So nothing here relies on it.
"""

# How it works: the counter is in the kernel and shared by all who have the descriptor, so that an event
# outlives its sender. signal() adds 1, without waiting: where the counter is full, the reader has an event
# anyhow. take() and wait() read and reset it in one system call, which a signal of another process comes
# before or after, and never between. There must be one reader: a second one takes events that the first then
# misses. wait() awaits nothing between the read and its return, so that cancellation loses no event.
#
# Each process closes its own descriptor; the eventfd goes with the last. A crash of a reader leaves the
# count for who reads next, such as the next owner of a slot of a sticky server, which drains it first.

from __future__ import annotations

import contextlib
import os
import select
import sys

import trio

from protocol.fds import OwnedFd

_ONE = (1).to_bytes(8, sys.byteorder)


class EventFd(OwnedFd):
    """An eventfd: a counter that one side adds to and the other waits on and resets.

    Signals coalesce: a reader learns how often it was signalled since it last read. There must be
    one reader only.
    """

    __slots__ = ("_buffer", "_poll")

    def __init__(self, fd: int) -> None:
        """Take ownership of the open eventfd `fd`."""
        super().__init__(fd)
        self._buffer = bytearray(8)
        self._poll: select.poll | None = None

    @classmethod
    def create(cls) -> EventFd:
        """Return a new eventfd that counts from 0. Raises OSError at the fd limit."""
        return cls(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    def signal(self) -> None:
        """Add 1. Does nothing where the counter is full: the reader has an event to take already.

        Whoever holds the descriptor too could stall us: by filling the counter between our look and
        our write, having made the file blocking. Linux has no write to an eventfd that rules it out
        (RWF_NOWAIT is for reads only). Raises ValueError once closed.
        """
        fd = self.fileno()
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLOUT)
        for _, events in self._poll.poll(0):
            if events & select.POLLOUT:  # not on POLLERR alone, which is a counter that the kernel overran
                with contextlib.suppress(BlockingIOError):  # another process has just filled it
                    os.write(fd, _ONE)

    def take(self) -> int:
        """Return the counter and reset it to 0; 0 where it was not signalled. Never blocks."""
        return drain(self.fileno(), self._buffer)

    async def wait(self) -> int:
        """Wait until it is signalled; return the counter (at least 1) and reset it.

        Cancelled, it has taken nothing. Raises trio.BusyResourceError where another task waits
        already, trio.ClosedResourceError if the eventfd is closed before or meanwhile.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if count := drain(self._open_fd(), self._buffer):
            await trio.lowlevel.cancel_shielded_checkpoint()
        while not count:
            await trio.lowlevel.wait_readable(self._open_fd())
            count = drain(self._open_fd(), self._buffer)
        return count

    def close(self) -> None:
        """Close the eventfd; a task that waits on it gets trio.ClosedResourceError."""
        if not self.closed and trio.lowlevel.in_trio_run():
            trio.lowlevel.notify_closing(self.fileno())
        super().close()

    def _open_fd(self) -> int:
        if self.closed:
            raise trio.ClosedResourceError("the eventfd is closed")
        return self.fileno()


def drain(fd: int, buffer: bytearray | None = None) -> int:
    """Return the counter of the eventfd `fd` and reset it to 0; 0 if it was not signalled. Never blocks."""
    buffer = bytearray(8) if buffer is None else buffer
    try:
        os.preadv(fd, [buffer], -1, os.RWF_NOWAIT)
    except BlockingIOError:
        return 0
    return int.from_bytes(buffer, sys.byteorder)
