"""Whether the other end of a connection has closed it, and not only its sending side."""

from __future__ import annotations

import errno
import os
import select

import trio

LOOK_SECONDS = 0.1
"""How often to look: trio can wait for an end of input alone, which may be long past."""


def has_hung_up(fd: int) -> bool:
    """Tell whether both directions of a socket are shut, or the other end of a pipe or terminal is closed.

    `fd` is our end, of a socket that is connected, of a pipe that we write to, or of a pseudo-terminal
    (the master). A file never hangs up.
    """
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


async def until_hung_up(fd: int) -> None:
    """Wait until `has_hung_up()`. The caller keeps `fd` open meanwhile."""
    while not has_hung_up(fd):  # noqa: ASYNC110 -- nothing tells
        await trio.sleep(LOOK_SECONDS)


async def fail_without_reader(fd: int) -> None:
    """Wait until `has_hung_up()`, and raise BrokenPipeError: what is printed to `fd` has no reader."""
    await until_hung_up(fd)
    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
