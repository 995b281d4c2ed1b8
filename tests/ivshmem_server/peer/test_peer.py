"""Peers of a real server: memory, rings, who comes and goes, and how a `connect()` block ends."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import trio

import ivshmem_server
from ivshmem_server import NoSuchPeerError, NoSuchVectorError, PeerJoined, PeerLeft, RemoteProtocolError
from protocol.ivshmem import Refusal
from tests.ivshmem_server.clients import SECONDS, serving
from tests.ivshmem_server.peers import following, rung
from tests.rig.programs import process
from tests.rig.programs.server import start_server

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "server"


async def test_first_peer_has_id_0_and_is_alone(path: Path) -> None:
    async with serving(path, vectors=3), ivshmem_server.connect(path) as peer:
        assert (peer.id, peer.vectors, dict(peer.peers)) == (0, 3, {})
        assert peer.connected


async def test_peers_know_each_other_with_their_vectors(path: Path) -> None:
    async with serving(path, vectors=2), ivshmem_server.connect(path) as first:
        changes = first.changes()
        async with ivshmem_server.connect(path) as second:
            assert dict(second.peers) == {first.id: 2}
            assert await following(changes) == PeerJoined(second.id, 2)
            assert dict(first.peers) == {second.id: 2}
        assert await following(changes) == PeerLeft(second.id)
        assert dict(first.peers) == {}


async def test_peers_view_cannot_be_written(path: Path) -> None:
    async with serving(path), ivshmem_server.connect(path) as peer:
        with pytest.raises(TypeError):
            peer.peers[7] = 1  # type: ignore[index]


async def test_what_one_writes_the_other_reads(path: Path) -> None:
    async with (
        serving(path) as server,
        ivshmem_server.connect(path) as first,
        ivshmem_server.connect(path) as second,
    ):
        first.memory[4090:4095] = b"hello"
        second.memory.cast("Q")[1] = 0x0123456789ABCDEF
        assert bytes(second.memory[4090:4095]) == b"hello"
        assert first.memory.cast("Q")[1] == 0x0123456789ABCDEF
        assert len(first.memory) == server.memory.size


async def test_rings_are_counted_on_their_vector_only(path: Path) -> None:
    async with (
        serving(path, vectors=2),
        ivshmem_server.connect(path) as first,
        ivshmem_server.connect(path) as second,
    ):
        for _ in range(3):
            second.ring(first.id, 1)
        second.ring(first.id)
        assert await first.wait(1) == 3
        assert await first.wait() == 1
        assert await rung(first) == []


async def test_wait_wakes_when_the_ring_comes(path: Path) -> None:
    async with (
        serving(path),
        ivshmem_server.connect(path) as first,
        ivshmem_server.connect(path) as second,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_ring_when_somebody_waits, second, first.id)
        with trio.fail_after(SECONDS):
            assert await first.wait() == 1


async def _ring_when_somebody_waits(peer: ivshmem_server.Peer, other: int) -> None:
    await trio.testing.wait_all_tasks_blocked()
    peer.ring(other)


async def test_cancelled_wait_loses_no_ring(path: Path) -> None:
    async with serving(path), ivshmem_server.connect(path) as peer:
        for turn in range(1, 20):
            peer.ring(peer.id)
            with trio.CancelScope() as scope:
                scope.cancel()
                await peer.wait()
            assert scope.cancelled_caught, turn
        assert await peer.wait() == 19


async def test_peer_can_ring_itself(path: Path) -> None:
    async with serving(path, vectors=2), ivshmem_server.connect(path) as peer:
        peer.ring(peer.id, 1)
        assert await peer.wait(1) == 1


async def test_two_tasks_cannot_wait_on_one_vector(path: Path) -> None:
    async with (
        serving(path),
        ivshmem_server.connect(path) as peer,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(peer.wait)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await peer.wait()
        nursery.cancel_scope.cancel()


async def test_ring_names_who_is_there_instead(path: Path) -> None:
    async with serving(path), ivshmem_server.connect(path) as first, ivshmem_server.connect(path):
        with pytest.raises(NoSuchPeerError, match=r"peer 7 is not connected; .*us, peer 0, there is 1"):
            first.ring(7)


@pytest.mark.parametrize("vector", [2, -1])
async def test_ring_and_wait_refuse_a_vector_that_is_not_there(path: Path, vector: int) -> None:
    async with (
        serving(path, vectors=2),
        ivshmem_server.connect(path) as first,
        ivshmem_server.connect(path) as second,
    ):
        with pytest.raises(NoSuchVectorError, match=rf"peer 1 has no vector {vector}, only 0\.\.1"):
            first.ring(second.id, vector)
        with pytest.raises(NoSuchVectorError, match=rf"we have no vector {vector}, only 0\.\.1"):
            await first.wait(vector)


async def test_peer_that_left_cannot_be_rung(path: Path) -> None:
    async with serving(path), ivshmem_server.connect(path) as first:
        changes = first.changes()
        async with ivshmem_server.connect(path) as second:
            pass
        assert [await following(changes), await following(changes)] == [PeerJoined(1, 1), PeerLeft(1)]
        with pytest.raises(NoSuchPeerError, match="there is nobody"):
            first.ring(second.id)


async def test_each_subscription_starts_with_its_call(path: Path) -> None:
    async with serving(path), ivshmem_server.connect(path) as peer:
        early = peer.changes()
        async with ivshmem_server.connect(path) as other:
            assert await following(early) == PeerJoined(other.id, 1)
            late = peer.changes()
        assert await following(late) == await following(early) == PeerLeft(other.id)


async def test_cancelled_subscriber_loses_no_change(path: Path) -> None:
    async with serving(path), ivshmem_server.connect(path) as peer:
        changes = peer.changes()
        with trio.move_on_after(0):
            await anext(changes)
        async with ivshmem_server.connect(path) as other:
            assert await following(changes) == PeerJoined(other.id, 1)


async def test_vectors_beyond_those_expected_are_closed(path: Path) -> None:
    async with serving(path, vectors=4), ivshmem_server.connect(path, vectors=2) as first:
        changes = first.changes()
        async with ivshmem_server.connect(path, vectors=3) as second:
            assert (first.vectors, second.vectors) == (2, 3)
            assert dict(second.peers) == {first.id: 3}
            assert await following(changes) == PeerJoined(second.id, 2)
            with pytest.raises(NoSuchVectorError):
                first.ring(second.id, 2)


async def test_fewer_vectors_than_expected_name_both_numbers(path: Path) -> None:
    async with serving(path, vectors=2):
        with pytest.raises(RemoteProtocolError, match=r"gives 2 of the 3 vectors.* -n 3, or expect 2"):
            async with ivshmem_server.connect(path, vectors=3):
                pytest.fail("the set-up is incomplete")


@pytest.mark.parametrize("vectors", [0, 2049])
async def test_impossible_number_of_vectors_is_our_callers_mistake(path: Path, vectors: int) -> None:
    with pytest.raises(ValueError, match=r"1\.\.2048"):
        async with ivshmem_server.connect(path, vectors=vectors):
            pass


async def test_refusal_is_told_in_words(path: Path) -> None:
    async with serving(path, max_peers=1), ivshmem_server.connect(path):
        with pytest.raises(RemoteProtocolError, match=Refusal.FULL.text):
            async with ivshmem_server.connect(path):
                pass


# No server, yet or any more


async def test_no_server_is_an_os_error_that_names_the_path(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(path)):
        async with ivshmem_server.connect(path):
            pass


async def test_server_that_comes_up_late_is_waited_for(path: Path) -> None:
    joined = trio.Event()

    async def join() -> None:
        async with ivshmem_server.connect(path, wait_for_server=SECONDS):
            joined.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(join)
        await trio.testing.wait_all_tasks_blocked()
        async with serving(path):
            await joined.wait()


async def test_stale_socket_of_a_dead_server_is_no_server(tmp_path: Path) -> None:
    async with start_server(tmp_path, memfd=True) as server:
        server.program.kill()
        await server.program.wait()
    with pytest.raises(ConnectionRefusedError, match=str(server.socket)):
        async with ivshmem_server.connect(server.socket):
            pass
    joined = trio.Event()

    async def join() -> None:
        async with ivshmem_server.connect(server.socket, wait_for_server=SECONDS):
            joined.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(join)
        await trio.testing.wait_all_tasks_blocked()
        async with serving(server.socket):
            await joined.wait()


async def test_peers_go_on_when_the_server_has_died(tmp_path: Path) -> None:
    async with (
        start_server(tmp_path, memfd=True) as server,
        ivshmem_server.connect(server.socket) as first,
        ivshmem_server.connect(server.socket) as second,
    ):
        changes = first.changes()
        server.program.kill()
        await server.program.wait()
        with trio.fail_after(SECONDS):
            assert [change async for change in changes] == []
        assert not first.connected
        assert [change async for change in first.changes()] == []
        second.ring(first.id)
        assert await first.wait() == 1
        first.memory[:2] = b"on"
        assert bytes(second.memory[:2]) == b"on"


# How a block ends


async def test_exception_of_the_block_comes_out_as_it_is(path: Path) -> None:
    async with serving(path):
        error = LookupError("mine")
        with pytest.raises(LookupError) as caught:
            async with ivshmem_server.connect(path):
                raise error
        assert caught.value is error


async def test_exception_of_a_cancelled_block_is_not_lost(path: Path) -> None:
    async with serving(path):
        error = LookupError("mine")
        with trio.CancelScope() as scope, pytest.raises(LookupError) as caught:
            await _fail_when_cancelled(path, scope, error)
        assert caught.value is error


async def _fail_when_cancelled(path: Path, scope: trio.CancelScope, error: Exception) -> None:
    async with ivshmem_server.connect(path):
        scope.cancel()
        try:
            await trio.sleep_forever()
        finally:
            raise error


async def test_block_can_be_cancelled(path: Path) -> None:
    async with serving(path):
        with trio.CancelScope() as scope:
            async with ivshmem_server.connect(path):
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught


async def test_leaving_is_noticed_by_the_server(path: Path) -> None:
    async with serving(path) as server:
        async with ivshmem_server.connect(path):
            assert len(list(server.clients)) == 1
        while list(server.clients):
            await trio.lowlevel.checkpoint()


async def test_closed_peer_says_so(path: Path) -> None:
    async with serving(path), ivshmem_server.connect(path) as other:
        async with ivshmem_server.connect(path) as peer:
            pass
        with pytest.raises(trio.ClosedResourceError):
            peer.ring(other.id)
        with pytest.raises(trio.ClosedResourceError):
            await peer.wait()
        with pytest.raises(ValueError, match="released"):
            bytes(peer.memory)
        assert not peer.connected


async def test_task_that_waits_when_the_block_ends_is_told(path: Path) -> None:
    async with serving(path), trio.open_nursery() as nursery:

        async def wait(peer: ivshmem_server.Peer) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await peer.wait()

        async with ivshmem_server.connect(path) as peer:
            nursery.start_soon(wait, peer)
            await trio.testing.wait_all_tasks_blocked()


async def test_views_that_are_kept_outlive_the_block(path: Path) -> None:
    async with serving(path), ivshmem_server.connect(path) as other:
        async with ivshmem_server.connect(path) as peer:
            words = peer.memory.cast("I")
        other.memory.cast("I")[3] = 77
        assert words[3] == 77


# Another process

_PONG = """
import sys, trio, ivshmem_server
async def main():
    async with ivshmem_server.connect(sys.argv[1], vectors=1) as peer:
        while True:
            await peer.wait()
            peer.ring(0)
trio.run(main)
"""


async def test_no_ring_is_lost_between_two_processes(path: Path) -> None:
    async with serving(path), ivshmem_server.connect(path, vectors=1) as peer:
        changes = peer.changes()
        async with process.start([sys.executable, "-c", _PONG, str(path)]):
            joined = await following(changes)
            with trio.fail_after(SECONDS):
                for _ in range(2000):
                    peer.ring(joined.id)
                    assert await peer.wait() == 1
