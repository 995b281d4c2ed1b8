"""Whether clients reach a listener."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from protocol.io import Listener, connect

if TYPE_CHECKING:
    from pathlib import Path


def is_socket(path: Path) -> bool:
    return path.is_socket()


async def assert_serves(listener: Listener, path: Path) -> None:
    """Assert that who connects to the path reaches the listener."""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_greet, listener)
            with await connect(str(path)) as client:
                assert await client.receive_exactly(5) == (b"hello", [])


async def _greet(listener: Listener) -> None:
    with await listener.accept() as stream:
        await stream.send(b"hello")
