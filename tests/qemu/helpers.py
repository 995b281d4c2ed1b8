"""Waiting for what the peers of one server come to know of each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from ivshmem_server import Peer
    from tests.rig.qemu.ivshmem import IvshmemDevice

#: For what takes milliseconds, unless the machine is under load.
SECONDS = 60


async def until_joined(host: Peer, peer: int, *, vectors: int = 2) -> None:
    """Wait until the host peer can ring all vectors of `peer`."""
    changes = host.changes()
    with trio.fail_after(SECONDS):
        while host.peers.get(peer) != vectors:
            await anext(changes)


async def until_left(host: Peer, peer: int) -> None:
    """Wait until the host peer, which knows `peer`, is told that it has left."""
    changes = host.changes()
    with trio.fail_after(SECONDS):
        while peer in host.peers:
            await anext(changes)


async def until_ready(host: Peer, guest: IvshmemDevice, *, vectors: int = 2) -> None:
    """Wait until the guest's QEMU has read its set-up, and so knows every peer that was there before it.

    Its own last vector ends the set-up: the host rings that one until the interrupt arrives.
    """
    peer = await guest.position()
    await until_joined(host, peer, vectors=vectors)
    host.ring(peer, vectors - 1)
    await guest.msix.wait(vectors - 1, seconds=SECONDS)


async def until_rung(guest: IvshmemDevice, host: Peer, vector: int = 0) -> None:
    """Ring the host peer until it hears: QEMU does not tell when it has learned of a later peer."""
    with trio.fail_after(SECONDS):
        while True:
            await guest.ring(host.id, vector)
            with trio.move_on_after(0.01):
                await host.wait(vector)
                return


async def knock(guest: IvshmemDevice, peer: int, other: IvshmemDevice, vector: int = 0) -> int:
    """Ring `peer`, which is `other`, until its interrupt arrives; return the interrupt's message.

    For a peer that joined after the guest: QEMU does not tell when it has learned of one, and
    ignores the doorbell until then.
    """
    with trio.fail_after(SECONDS):
        while not await other.msix.fired(vector):
            await guest.ring(peer, vector)
    return await other.msix.wait(vector)
