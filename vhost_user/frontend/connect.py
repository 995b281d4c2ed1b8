"""connect(): a front-end for the length of a block, whose tasks run in its background."""

from __future__ import annotations

import os
from contextlib import ExitStack, asynccontextmanager, closing
from typing import TYPE_CHECKING

from protocol.io.background import background
from vhost_user.frontend.frontend import Frontend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from protocol.io import FdStream

MEMORY_SIZE = 64 << 20
"""Bytes of guest memory, unless told otherwise."""
PATIENCE_SECONDS = 10.0
"""How long a reply may take, and a chain that the device has, unless told otherwise."""


@asynccontextmanager
async def connect(
    path: str | os.PathLike[str] | None = None,
    *,
    stream: FdStream | None = None,
    memory_size: int = MEMORY_SIZE,
    patience: float = PATIENCE_SECONDS,
    wait_for_backend: float = 0,
    resilient: bool = False,
) -> AsyncIterator[Frontend]:
    """Connect to the vhost-user back-end at `path`, for the length of an `async with` block.

    The block gets a Frontend whose guest has `memory_size` bytes, and nothing negotiated yet.
    `stream` is a connection that is there already, in the place of `path`, and belongs to the front-end
    from here on. A reply, and a chain that the device has, may take `patience` seconds.
    `wait_for_backend` is for how many seconds a back-end that is not up yet is waited for. With
    `resilient`, tasks that wait for a queue go on waiting when the connection is lost, until
    `Frontend.reconnect()`.

    Raises OSError if the socket has no listener, RemoteProtocolError if the back-end breaks the protocol
    (while the block runs too: it is cancelled then). What the block raises comes out as it is. At the
    end of the block everything is closed.
    """
    if (path is None) == (stream is None):
        raise ValueError("give one of path and stream")
    path = None if path is None else os.fspath(path)
    with ExitStack() as stack:
        async with background() as start:
            front = stack.enter_context(closing(Frontend(start, path, patience, resilient=resilient)))
            front.memory.create(memory_size)
            await front.attach(stream, wait_for_backend)
            yield front
