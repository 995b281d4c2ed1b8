"""Peers, servers and QEMUs that die: the others go on."""

from __future__ import annotations

import os
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import trio

from ivshmem_server import connect
from protocol.ivshmem import MAX_ID, MESSAGE_SIZE, Refusal, decode
from tests.qemu.helpers import SECONDS, knock, until_joined, until_left, until_ready, until_rung
from tests.rig.programs import tmpfs
from tests.rig.programs.server import start_server
from tests.rig.qemu.ivshmem import doorbell_arguments, probe
from tests.rig.qemu.msix import message
from tests.rig.qemu.qemu import start_qemu

if TYPE_CHECKING:
    from pathlib import Path

    from ivshmem_server import Peer
    from tests.rig.programs.server import RunningServer
    from tests.rig.qemu.ivshmem import IvshmemDevice
    from tests.rig.qemu.qemu import Machine

pytestmark = pytest.mark.qemu

GUEST = 1


async def test_killed_qemu_leaves_its_peers(server: RunningServer, host: Peer, machine: Machine) -> None:
    async with start_qemu(*doorbell_arguments(server.socket)) as victim:
        await until_joined(host, 2)
        survivor = await probe(machine)
        await knock(survivor, 2, await probe(victim))
        victim.program.kill()
        await until_left(host, 2)
    assert dict(host.peers) == {GUEST: 2}
    await survivor.ring(2)
    await until_ready(host, survivor)


async def test_qemu_that_quits_leaves_its_peers(host: Peer, machine: Machine) -> None:
    await until_joined(host, GUEST)
    await machine.qmp.execute("quit")
    await until_left(host, GUEST)
    assert await machine.stopped() == 0


async def test_qemu_is_never_shown_an_id_again_that_has_left(
    server: RunningServer, host: Peer, guest: IvshmemDevice, machine: Machine
) -> None:
    """A QEMU that sees one uses freed memory, and aborts sooner or later."""
    ids = []
    for _ in range(50):
        async with connect(server.socket, vectors=2) as visitor:
            ids.append(visitor.id)
            await until_joined(host, visitor.id)
        await until_left(host, visitor.id)
    assert len({host.id, GUEST, *ids}) == 52

    async with connect(server.socket, vectors=2) as visitor:
        await until_ready(visitor, guest)
    await machine.qmp.execute("quit")
    assert await machine.stopped() == 0


@pytest.mark.extended
@pytest.mark.slow
async def test_qemu_lives_when_all_ids_are_used_up(directory: Path) -> None:
    """The server admits nobody any more until the QEMU that has seen every id leave has left itself."""
    async with start_server(directory, memfd=True) as server:
        async with start_qemu(*doorbell_arguments(server.socket, vectors=1)) as machine:
            guest = await probe(machine)
            assert [visit(server.socket) for _ in range(MAX_ID)] == list(range(1, MAX_ID + 1))
            assert visit(server.socket) == Refusal.IDS_EXHAUSTED
            await guest.ring(0)
            assert await guest.msix.wait(0) == message(0)
        await server.until_peers()
        assert visit(server.socket) == 0


def visit(server: Path) -> int:
    """Join and leave again, as fast as may be; return the id, or the refusal's number."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(server))
        if version := decode(sock.recv(MESSAGE_SIZE)):
            return version
        own_id = decode(sock.recv(MESSAGE_SIZE))
        value = -1
        while value != own_id:
            data, fds, _, _ = socket.recv_fds(sock, MESSAGE_SIZE, 1)
            for fd in fds:
                os.close(fd)
            value = decode(data)
        return own_id


async def test_qemu_that_was_held_up_has_missed_nothing(
    server: RunningServer, host: Peer, guest: IvshmemDevice, machine: Machine
) -> None:
    """More happens meanwhile than its socket's buffer holds."""
    await until_ready(host, guest)
    async with AsyncExitStack() as stack:
        with machine.program.frozen():
            for _ in range(200):
                async with connect(server.socket, vectors=2) as passer_by:
                    await until_joined(host, passer_by.id)
            visitor = await stack.enter_async_context(connect(server.socket, vectors=2))
        await until_rung(guest, visitor, vector=1)
        host.ring(GUEST, 0)
        assert await guest.msix.wait(0) == message(0)


async def test_qemu_joins_a_crowd(directory: Path) -> None:
    """Its set-up is longer here than what a socket's buffer holds."""
    crowd, vectors = 8, 64
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(start_server(directory, "-n", str(vectors)))
        peers = [
            await stack.enter_async_context(connect(server.socket, vectors=vectors)) for _ in range(crowd)
        ]
        arguments = doorbell_arguments(server.socket, vectors=vectors)
        guest = await probe(await stack.enter_async_context(start_qemu(*arguments)))
        assert await guest.position() == crowd
        await until_ready(peers[0], guest, vectors=vectors)
        for peer in peers:
            await guest.ring(peer.id, vectors - 1)
        with trio.fail_after(SECONDS):
            assert [await peer.wait(vectors - 1) for peer in peers] == [1] * crowd


async def test_guests_go_on_without_their_server(directory: Path) -> None:
    async with start_server(directory, "-n", "2", memfd=True) as server:
        arguments = doorbell_arguments(server.socket)
        async with start_qemu(*arguments) as first, start_qemu(*arguments) as second:
            one, two = await probe(first), await probe(second)
            await knock(one, 1, two, vector=1)
            server.program.kill()
            await server.program.wait()

            await one.ring(1, 0)
            assert await two.msix.wait(0) == message(0)
            await two.ring(0, 1)
            assert await one.msix.wait(1) == message(1)
            await one.write(0, b"still shared")
            assert await two.read(0, 12) == b"still shared"
            assert await share_of_a_cpu(first) < 0.2


async def share_of_a_cpu(machine: Machine) -> float:
    """Measure how busy the machine is: near 0 when it has nothing to do, 1 when a thread spins."""
    before, start = machine.program.cpu_seconds(), trio.current_time()
    await trio.sleep(0.5)
    return (machine.program.cpu_seconds() - before) / (trio.current_time() - start)


@tmpfs.for_mounter
async def test_guest_fills_preallocated_memory_whatever_others_take(tmp_path: Path, directory: Path) -> None:
    options = ["-m", str(directory), "-l", "4M", "--prealloc"]
    launcher = tmpfs.launcher(directory)
    async with (
        start_server(tmp_path, *options, launcher=launcher) as server,
        start_qemu(*doorbell_arguments(server.socket, vectors=1)) as machine,
    ):
        guest = await probe(machine)
        tmpfs.fill_up(server.program, directory)
        for offset in range(0, 4 << 20, 1 << 16):
            await guest.write(offset, bytes([offset >> 16]) * (1 << 16))
        assert await guest.read((4 << 20) - 2, 2) == b"\x3f\x3f"


async def test_new_server_gives_no_id_that_a_guest_of_a_killed_one_has(
    tmp_path: Path, directory: Path
) -> None:
    async with start_server(tmp_path) as old, start_qemu(*doorbell_arguments(old.socket)) as machine:
        guest = await probe(machine)
        assert await guest.position() == 0
        old.program.kill()
        await old.program.wait()
        async with start_server(directory, "-M", old.shm.name) as new:
            async with connect(new.socket) as peer:
                assert peer.id == 1
                await guest.write(0, b"still mine")
                assert bytes(peer.memory[:10]) == b"still mine"
            await machine.qmp.execute("quit")
            await machine.stopped()
            async with connect(new.socket) as peer:
                assert peer.id == 0
    assert not old.shm.exists()
