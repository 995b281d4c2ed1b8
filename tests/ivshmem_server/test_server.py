"""IvshmemServer as its clients see it: joins, leaves, refusals, and everything clients do wrong."""

from __future__ import annotations

import logging
import os
import resource
import socket
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from ivshmem_server.refusals import SPARE_DESCRIPTORS
from ivshmem_server.status import format_status, status_document
from protocol.io import connect
from protocol.ivshmem import MAX_ID, MAX_VECTORS, MemoryReceived, Refusal, VectorReceived
from tests.ivshmem_server.clients import SECONDS, Client, first_value, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from protocol.fds import OwnedFd


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "server"


async def until_peers(client: Client, *peers: int) -> None:
    with trio.fail_after(SECONDS):
        await client.read_until_knows(*peers)


async def test_clients_are_told_of_each_other(path: Path) -> None:
    async with serving(path, vectors=3) as server:
        first = await Client.joined(path, 3)
        second = await Client.joined(path, 3)
        await until_peers(first, 1)
        assert (first.id, second.id) == (0, 1)
        assert first.vectors == second.vectors == {0: 3, 1: 3}
        assert first.eventfd_inodes == second.eventfd_inodes
        assert first.memory_size == second.memory_size == 1 << 20
        assert [client.member.id for client in server.clients] == [0, 1]
        second.close()
        await until_peers(first)
        assert first.left == [1]
        first.close()


async def test_peer_has_as_many_vectors_as_msix_allows(path: Path) -> None:
    async with serving(path, vectors=MAX_VECTORS):
        client = await Client.joined(path, MAX_VECTORS)
        assert client.vectors == {0: MAX_VECTORS}
        client.close()


async def test_id_is_not_reused_while_anyone_saw_it_leave(path: Path) -> None:
    async with serving(path):
        witness = await Client.joined(path)
        for expected in (1, 2, 3):
            client = await Client.joined(path)
            assert client.id == expected
            client.close()
            while len(witness.left) < expected:
                await witness.read()
        assert witness.left == [1, 2, 3]
        witness.close()


async def test_ids_start_again_when_nobody_saw_them_leave(path: Path) -> None:
    async with serving(path) as server:
        for _ in range(3):
            client = await Client.joined(path)
            assert client.id == 0  # what a guest with master=on needs when it is started again
            client.close()
            while list(server.clients):
                await trio.lowlevel.checkpoint()


async def test_new_client_is_refused_when_every_id_was_seen_leaving(path: Path) -> None:
    async with serving(path) as server:
        witness = await Client.joined(path)
        server._registry._ids._unused = MAX_ID
        last = await Client.joined(path)
        assert last.id == MAX_ID
        stream = await connect(str(path))
        assert await first_value(stream) == Refusal.IDS_EXHAUSTED
        stream.close()
        last.close()
        witness.close()


@pytest.mark.parametrize("sticky", [False, True])
async def test_ids_that_are_left_are_counted(path: Path, sticky: bool) -> None:
    async with serving(path, sticky=sticky) as server:
        assert (server.ids.left, server.ids.held) == (65536, 0)
        witness = await Client.joined(path)
        for count in range(1, 4):
            (await Client.joined(path)).close()
            while len(list(server.clients)) > 1:
                await trio.lowlevel.checkpoint()
            held = 0 if sticky else count
            assert (server.ids.left, server.ids.held) == (65535 - held, held)
            assert ("held back" in format_status(status_document(server))) == bool(held)
        witness.close()
        while list(server.clients):
            await trio.lowlevel.checkpoint()
        assert (server.ids.left, server.ids.held) == (65536, 0)


async def test_ids_that_run_out_are_told_in_time(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(path) as server:
        witness = await Client.joined(path)
        for used in (49000, 49152, 60000, 61441, 65535):
            server._registry._ids._unused = used  # as if so many had come and gone
            (await Client.joined(path)).close()
            while len(list(server.clients)) > 1:
                await trio.lowlevel.checkpoint()
        witness.close()
    warnings = [record.getMessage() for record in caplog.records]
    assert [int(text.split()[0]) for text in warnings] == [16383, 4094, 0]
    assert warnings[0] == (
        "16383 of 65536 ids are left: 49151 are held back, as connected peers have seen them leave;"
        " restart those that have been connected for longest"
        f" (peer 0 (pid {os.getpid()}, uid {os.getuid()})), or start the server with --sticky"
    )


async def test_sticky_server_gives_id_and_eventfds_to_the_next(path: Path) -> None:
    async with serving(path, vectors=2, sticky=True) as server:
        stays = await Client.joined(path, 2)
        leaves = await Client.joined(path, 2)
        known = leaves.eventfd_inodes[1]
        leaves.close()
        while server.vacant_slots != 1:
            await trio.lowlevel.checkpoint()
        follows = await Client.joined(path, 2)
        assert follows.id == 1
        assert follows.eventfd_inodes[1] == known
        third = await Client.joined(path, 2)
        await until_peers(stays, 1, 2)
        assert stays.left == []
        assert stays.messages == 3 + 2 + 2 + 2  # nothing of the leave, nothing of the return
        for client in (stays, follows, third):
            client.close()


async def test_sticky_slot_forgets_the_rings_of_its_last_owner(path: Path) -> None:
    async with serving(path, sticky=True) as server:
        first = await Client.joined(path)
        slot = next(server.clients).member.announcement.eventfds[0]
        first.close()
        while not server.vacant_slots:
            await trio.lowlevel.checkpoint()
        os.eventfd_write(slot.fileno(), 5)
        second = await Client.joined(path)
        os.eventfd_write(slot.fileno(), 1)
        assert os.eventfd_read(slot.fileno()) == 1
        second.close()


async def test_one_who_came_during_a_vacancy_is_told_when_the_slot_is_taken(path: Path) -> None:
    async with serving(path, sticky=True) as server:
        stays = await Client.joined(path)
        leaves = await Client.joined(path)
        leaves.close()
        while not server.vacant_slots:
            await trio.lowlevel.checkpoint()
        # Somebody takes the slot and a newcomer gets the next id; then the slot falls vacant again.
        taker = await Client.joined(path)
        newcomer = await Client.joined(path)
        assert (taker.id, newcomer.id) == (1, 2)
        assert set(newcomer.vectors) == {0, 1, 2}
        for client in (stays, taker, newcomer):
            client.close()


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"max_peers": 1}, Refusal.FULL),
        ({"allow_uids": [os.getuid() + 1]}, Refusal.NOT_ALLOWED),
        ({"allow_gids": [os.getgid() + 1]}, Refusal.NOT_ALLOWED),
    ],
)
async def test_refused_client_gets_a_version_it_does_not_know(
    path: Path, options: dict[str, int], refusal: Refusal, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(path, **options):
        admitted = await Client.joined(path) if refusal is Refusal.FULL else None
        stream = await connect(str(path))
        assert await first_value(stream) == refusal
        assert await stream.receive(1) == (b"", [])
        assert refusal.text in caplog.text
        stream.close()
        if admitted:
            admitted.close()


@pytest.mark.parametrize("option", ["allow_uids", "allow_gids"])
async def test_allowed_user_and_group_get_in(path: Path, option: str) -> None:
    own = os.getuid() if option == "allow_uids" else os.getgid()
    async with serving(path, **{option: [own, own + 1]}):
        client = await Client.joined(path)
        assert client.id == 0
        client.close()


@contextmanager
def no_file_to_be_opened() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_server_lives_on_at_its_limit_of_open_files(path: Path) -> None:
    async with serving(path) as server:
        witness = await Client.joined(path)
        refused = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for sock in refused:
            sock.connect(str(path))
        with no_file_to_be_opened():
            while server.counters["refused: no_resources"] < len(refused):
                await trio.lowlevel.checkpoint()
        for sock in refused:
            assert int.from_bytes(sock.recv(8), "little", signed=True) == Refusal.NO_RESOURCES
            sock.close()
        later = await Client.joined(path)
        await until_peers(witness, later.id)
        later.close()
        witness.close()


async def test_refused_clients_hold_their_connections_at_the_limit_of_open_files_too(path: Path) -> None:
    """QEMU reads a refusal only once the device is plugged in: where it finds the end, it spins for ever."""
    async with serving(path) as server:
        refused = [socket.socket(socket.AF_UNIX) for _ in range(SPARE_DESCRIPTORS + 3)]
        for sock in refused:
            sock.connect(str(path))
        with no_file_to_be_opened():
            while server.counters["refused: no_resources"] < len(refused):
                await trio.lowlevel.checkpoint()
            ended = []
            for sock in refused:
                assert int.from_bytes(sock.recv(8), "little", signed=True) == Refusal.NO_RESOURCES
                assert sock.recv(8) == b""  # there is no more to come, but the connection is there
                with suppress(BrokenPipeError):
                    sock.send(b"x", socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
                    continue
                ended.append(sock)
            assert ended == refused[:3], "of more than there are spare descriptors, the first ones are closed"
        for sock in refused:
            sock.close()


async def test_client_that_sends_anything_is_disconnected(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(path):
        witness = await Client.joined(path)
        talker = await Client.joined(path)
        await until_peers(witness, talker.id)
        await talker.stream.send(b"x", [0])
        await until_peers(witness)
        assert "one-way" in caplog.text
        talker.close()
        witness.close()


async def test_half_closed_client_has_left(path: Path) -> None:
    async with serving(path):
        witness = await Client.joined(path)
        half = await Client.joined(path)
        await until_peers(witness, half.id)
        half.stream._sock.shutdown(socket.SHUT_WR)
        await until_peers(witness)
        half.close()
        witness.close()


async def test_client_that_does_not_read_is_disconnected_at_the_limit_and_the_others_go_on(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(path, vectors=64, max_queued=100) as server:
        slow = await Client.connect(path)
        others: list[Client] = []
        while server.counters["disconnected"] == 0:
            others.append(await Client.joined(path, 64))
            assert len(others) < 20
        assert "--max-queued 100" in caplog.text
        assert "peer 0 " in caplog.text
        first = others[0]
        while 0 not in first.left:
            await first.read()
        for client in (slow, *others):
            client.close()


async def test_slow_client_gets_every_message_once_it_reads(path: Path) -> None:
    async with serving(path, vectors=8) as server:
        slow = await Client.connect(path)
        others = [await Client.joined(path, 8) for _ in range(100)]  # far more than a socket holds
        assert next(server.clients).member.session.queued > 0
        await until_peers(slow, *range(1, 101))
        assert slow.messages == 3 + 8 + 100 * 8
        for client in (slow, *others):
            client.close()


async def test_join_that_a_slow_client_never_saw_is_withdrawn_with_its_leave(path: Path) -> None:
    async with serving(path, vectors=8) as server:
        slow = await Client.connect(path)
        stays = [await Client.joined(path, 8) for _ in range(60)]
        session = next(server.clients).member.session
        before = session.queued
        assert before > 0
        for _ in range(5):
            gone = await Client.joined(path, 8)
            gone.close()
            while len(list(server.clients)) > 61:
                await trio.lowlevel.checkpoint()
        assert session.queued == before  # a stalled client costs nothing, whatever the others do
        await until_peers(slow, *range(1, 61))
        assert slow.left == []
        for client in (slow, *stays):
            client.close()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=8))
async def test_client_that_dies_anywhere_in_the_handshake_harms_nobody(
    tmp_path_factory: pytest.TempPathFactory, deaths: list[tuple[int, bool]]
) -> None:
    path = tmp_path_factory.mktemp("server") / "socket"
    async with serving(path, vectors=2) as server:
        witness = await Client.joined(path, 2)
        for number, (messages, abruptly) in enumerate(deaths, 1):
            client = await Client.connect(path)
            for _ in range(min(messages, 3 + 2 + 2)):
                await client.read()
            if abruptly:
                client.stream._sock.shutdown(socket.SHUT_RDWR)
            client.close()
            while server.counters["left"] + server.counters["disconnected"] < number:
                await trio.lowlevel.checkpoint()
        last = await Client.joined(path, 2)
        assert last.vectors == {0: 2, last.id: 2}
        await until_peers(witness, last.id)
        witness.close()
        last.close()


async def test_server_counts_what_happened(path: Path) -> None:
    async with serving(path) as server:
        first = await Client.joined(path)
        second = await Client.joined(path)
        second.close()
        while server.counters["left"] < 1:
            await trio.lowlevel.checkpoint()
        assert server.counters["joined"] == 2
        assert server.counters["messages"] == 4 + 5 + 1 + 1
        first.close()


async def test_joins_and_leaves_are_logged_with_who(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "ivshmem_server")
    async with serving(path) as server:
        client = await Client.joined(path)
        client.close()
        while server.counters["left"] < 1:
            await trio.lowlevel.checkpoint()
    who = f"peer 0 (pid {os.getpid()}, uid {os.getuid()})"
    assert [record.getMessage() for record in caplog.records] == [f"{who} joined", f"{who} left"]


async def test_clients_keep_memory_and_doorbells_when_the_server_has_gone(path: Path) -> None:
    async with serving(path):
        client = await Client.connect(path)
        kept: list[OwnedFd] = []
        while client.session.vectors < 1:
            events = client.session.receive(*await client.stream.receive(client.session.bytes_wanted))
            for event in events:
                if isinstance(event, VectorReceived | MemoryReceived):
                    kept.append(event.fd)
    assert await client.stream.receive(8) == (b"", [])
    memory, doorbell = kept
    os.eventfd_write(doorbell.fileno(), 3)
    assert os.eventfd_read(doorbell.fileno()) == 3
    assert os.pwrite(memory.fileno(), b"still here", 0) == 10
    memory.close()
    doorbell.close()
    client.close()


async def test_many_servers_in_one_process(tmp_path: Path) -> None:
    with ExitStack() as stack:
        async with serving(tmp_path / "a"), serving(tmp_path / "b", vectors=2), serving(tmp_path / "c"):
            for name, vectors in (("a", 1), ("b", 2), ("c", 1)):
                client = await Client.joined(tmp_path / name, vectors)
                stack.callback(client.close)
                assert client.vectors == {0: vectors}
