"""What tests ask of a peer: who rang it, who came."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ivshmem_server import PeerJoined
from tests.ivshmem_server.clients import SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ivshmem_server import Change, Peer


async def rung(peer: Peer) -> list[int]:
    """Take the rings that came, and return their vectors. No task may be busy with anything else."""
    found = []

    async def listen(vector: int) -> None:
        await peer.wait(vector)
        found.append(vector)

    async with trio.open_nursery() as nursery:
        for vector in range(peer.vectors):
            nursery.start_soon(listen, vector)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return sorted(found)


async def following(changes: AsyncIterator[Change]) -> Change:
    """Wait for the next change."""
    with trio.fail_after(SECONDS):
        return await anext(changes)


async def next_joined(changes: AsyncIterator[Change]) -> int:
    """Wait until somebody joins; return the id."""
    while not isinstance(change := await following(changes), PeerJoined):
        pass
    return change.id
