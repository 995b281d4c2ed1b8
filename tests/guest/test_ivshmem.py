"""A real Linux guest as a peer: its memory, its doorbell, its MSI-X interrupts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.guest.conftest import VECTORS, Member, join

if TYPE_CHECKING:
    from ivshmem_server import Peer
    from tests.rig.programs.server import RunningServer

pytestmark = pytest.mark.guest

SECONDS = 60


async def test_memory_is_the_same_for_guest_and_host(host: Peer, member: Member) -> None:
    last = len(host.memory) - 8
    host.memory[0x100:0x108] = b"by host\0"
    printed = await member.run(f"read 0x100 write 0x2000 by-guest write {last} at-end")

    assert printed == "by host"
    state = await member.guest.sh("ivshmem-guest vfio")
    assert state == f"id={member.id} memory={len(host.memory)} vectors={VECTORS}"
    assert member.id in host.peers
    assert bytes(host.memory[0x2000:0x2009]) == b"by-guest\0"
    assert bytes(host.memory[last:]) == b"at-end\0\0"


async def test_the_host_interrupts_the_guest_on_each_vector(host: Peer, member: Member) -> None:
    command = await member.listen("wait 3 wait 0 wait 2 wait 1 interrupts")
    for vector in (3, 0):
        host.ring(member.id, vector)
        with trio.fail_after(SECONDS):
            assert await command.line() == f"interrupt vector={vector} count=1"
    for vector in (1, 2):  # the first of them comes before the guest waits for it
        host.ring(member.id, vector)
    with trio.fail_after(SECONDS):
        assert await command.line() == "interrupt vector=2 count=1"
        assert await command.line() == "interrupt vector=1 count=1"

    interrupts = (await command.finish()).splitlines()
    assert len(interrupts) == VECTORS
    for vector, line in enumerate(interrupts):
        number, count, controller, *_, name = line.split()
        assert name.startswith(f"vfio-msix[{vector}]"), f"interrupt {number}"
        assert int(count) == 1
        assert "MSI" in controller


async def test_the_guest_interrupts_the_host_on_each_vector(host: Peer, member: Member) -> None:
    for vector in range(VECTORS):
        await member.run(f"ring {host.id} {vector}")
        with trio.fail_after(SECONDS):
            assert await host.wait(vector) == 1

    # The sysfs files of an unbound device reach memory and doorbell; only interrupts need vfio.
    await member.guest.sh(f"echo {member.address} > /sys/bus/pci/drivers/vfio-pci/unbind")
    await member.guest.sh(f"ivshmem-guest sysfs write 0x40 unbound ring {host.id} 2")
    with trio.fail_after(SECONDS):
        assert await host.wait(2) == 1
    assert bytes(host.memory[0x40:0x48]) == b"unbound\0"


async def test_two_guests_share_memory_and_interrupt_each_other(
    server: RunningServer, host: Peer, member: Member
) -> None:
    async with join(server) as second:
        for sender, receiver, vector in ((second, member, 1), (member, second, 2)):
            command = await receiver.listen(f"wait {vector} read 0x80")
            await sender.run(f"write 0x80 from-{sender.id} ring {receiver.id} {vector}")
            with trio.fail_after(SECONDS):
                assert await command.finish() == f"interrupt vector={vector} count=1\nfrom-{sender.id}"
        assert bytes(host.memory[0x80:0x87]) == f"from-{member.id}\0".encode()
