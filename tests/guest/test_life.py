"""Guests that are reset, reboot, power off and die, and what the other peers notice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from ivshmem_server import PeerLeft
from tests.guest.conftest import Member, join

if TYPE_CHECKING:
    from ivshmem_server import Peer
    from tests.rig.programs.server import RunningServer

pytestmark = pytest.mark.guest

SECONDS = 60


async def still_works(host: Peer, member: Member) -> None:
    """Check memory and interrupts in both directions, as after any boot."""
    await member.guest.sh("ivshmem-bind")
    command = await member.listen(f"wait 1 read 0x10 ring {host.id} 3")
    host.memory[0x10:0x16] = b"again\0"
    host.ring(member.id, 1)
    with trio.fail_after(SECONDS):
        assert "interrupt vector=1 count=1\nagain" in await command.finish()
        assert await host.wait(3) == 1


@pytest.mark.extended
async def test_a_guest_that_boots_again_is_the_same_peer(host: Peer, member: Member) -> None:
    changes = host.changes()
    await member.run("write 0x20 before")
    await member.listen("wait 0")  # interrupts are enabled when the reset comes
    await member.guest.reset()
    await still_works(host, member)
    await member.guest.reboot()
    await still_works(host, member)

    assert await member.run("read 0x20") == "before"
    await member.guest.kill()
    with trio.fail_after(SECONDS):
        assert await anext(changes) == PeerLeft(member.id), "booting again was a change of the peers"


@pytest.mark.extended
async def test_a_guest_that_ends_has_left(server: RunningServer, host: Peer, member: Member) -> None:
    changes = host.changes()
    async with join(server) as second:
        await anext(changes)
        await member.guest.kill()

        with trio.fail_after(SECONDS):
            assert await anext(changes) == PeerLeft(member.id)
        assert dict(host.peers) == {second.id: 4}
        await second.run(f"ring {member.id} 0")  # to nobody: harmless
        await still_works(host, second)

        await second.guest.start("poweroff -f")
        with trio.fail_after(SECONDS):
            assert await anext(changes) == PeerLeft(second.id)
            assert await second.guest.program.wait() == 0
        assert not host.peers
