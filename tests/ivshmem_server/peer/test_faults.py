"""Peers of a server that breaks the protocol, or that keeps to it in the least helpful way."""

from __future__ import annotations

import contextlib
import resource
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import ivshmem_server
from ivshmem_server import PeerJoined, PeerLeft, RemoteProtocolError
from protocol.io import AncillaryLostError
from protocol.ivshmem import encode
from tests.ivshmem_server.clients import SECONDS
from tests.ivshmem_server.scripted import (
    ALONE,
    ID,
    KINDS,
    MEMORY,
    OWN,
    PEER,
    PEERS,
    SETUP,
    US,
    VERSION,
    ScriptedServer,
    Step,
    scripted,
    split,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio.testing import MockClock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "server"


async def assert_refused(path: Path, reason: str, *, vectors: int | None = None) -> None:
    """Connect to what a test has set up there; it must fail for `reason`, without any group around it."""
    with pytest.raises(RemoteProtocolError, match=reason):
        async with ivshmem_server.connect(path, vectors=vectors):
            pytest.fail("the set-up counts as complete")


# The set-up


@pytest.mark.parametrize("vectors", [None, 2])
async def test_setup_may_come_byte_by_byte(path: Path, vectors: int | None) -> None:
    async with scripted(path, *split(*SETUP)), ivshmem_server.connect(path, vectors=vectors) as peer:
        assert (peer.id, peer.vectors, dict(peer.peers), len(peer.memory)) == (US, 2, {PEER: 2}, 4096)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([(1,), ID], "protocol version 1; this client knows version 0 only"),
        ([(-9,)], "protocol version -9"),
        ([(3,), MEMORY], "from before QEMU 2.5"),
        ([(0,), MEMORY], "from before QEMU 2.5"),
        ([VERSION, (65536,)], "our id was due"),
        ([VERSION, ID, OWN], "shared memory was due"),
        ([VERSION, ID, (-1,)], "shared memory was due .* without a file descriptor"),
        ([VERSION, ID, (-1, "memory", "memory")], "came with 2 file descriptors"),
        ([VERSION, ID, (-1, "memory", *["eventfd"] * 200)], "came with 201 file descriptors"),
        ([VERSION, ID, MEMORY, (US,)], "we, peer 5, have left"),
        ([VERSION, ID, MEMORY, (PEER,)], "peer 2 left, but was not connected"),
        ([*ALONE, (-7, "eventfd")], "a peer id was due"),
        ([VERSION, ID, (-1, "small")], "memory is unusable: 4095 bytes long; 4096 are the least"),
        ([VERSION, ID, (-1, "empty")], "memory is unusable: 0 bytes"),
        ([VERSION, ID, (-1, "huge")], "memory is unusable: .* cannot be mapped"),
        ([VERSION, ID, (-1, "read-only")], "memory is unusable: .* cannot be mapped: Permission denied"),
        ([VERSION, ID, (-1, "directory")], "memory is unusable: no regular file"),
        ([VERSION, ID, (-1, "device")], "memory is unusable: no regular file"),
        ([VERSION, ID, (-1, "eventfd")], "memory is unusable: no regular file"),
        ([VERSION, ID, MEMORY, (PEER, "socket")], "vector 0 of peer 2 is not an eventfd but socket"),
        ([VERSION, ID, MEMORY, OWN, (US, "memory")], "vector 1 of peer 5 is not an eventfd but .*memfd"),
    ],
)
async def test_fault_in_the_setup_is_named(path: Path, steps: list[Step], reason: str) -> None:
    async with scripted(path, *steps):
        await assert_refused(path, reason)


@pytest.mark.parametrize("count", range(len(SETUP)))
async def test_server_that_dies_in_the_setup_is_named_with_what_was_due(path: Path, count: int) -> None:
    missing = ["its protocol version", "our id", "the shared memory", *["our vectors"] * 4][count]
    async with scripted(path, *SETUP[:count], then_close=True):
        await assert_refused(path, f"closed during set-up, where {missing}", vectors=2)


async def test_server_that_dies_inside_a_message_is_named(path: Path) -> None:
    async with scripted(path, *SETUP[:4], (b"\x05\0\0", "eventfd"), then_close=True):
        await assert_refused(path, r"closed inside a message \(3 of 8 bytes\)")


@pytest.mark.parametrize("count", range(5))
async def test_server_that_hangs_in_the_setup_is_named_with_what_was_due(
    path: Path, count: int, autojump_clock: MockClock
) -> None:
    missing = ["its protocol version", "our id", "the shared memory", *["our vectors"] * 2][count]
    async with scripted(path, *SETUP[:count]):
        whose = "" if count else r"; is it the socket of an ivshmem server\?"
        await assert_refused(path, f"took over 10 s, and {missing} had not come{whose}$")
    assert autojump_clock.current_time() == pytest.approx(10, abs=0.1)


async def test_server_that_does_not_accept_is_named(path: Path, autojump_clock: MockClock) -> None:
    with trio.socket.socket(trio.socket.AF_UNIX) as sock:
        await sock.bind(str(path))
        sock.listen(0)
        with trio.socket.socket(trio.socket.AF_UNIX) as first:
            await first.connect(str(path))
            await assert_refused(path, "did not accept us within 10 s")
    assert autojump_clock.current_time() == pytest.approx(10, abs=0.1)


async def test_setup_without_a_number_of_vectors_ends_when_the_server_is_quiet(
    path: Path, autojump_clock: MockClock
) -> None:
    async with scripted(path, *ALONE), ivshmem_server.connect(path, quiet=3) as peer:
        assert autojump_clock.current_time() == pytest.approx(3, abs=0.1)
        assert peer.vectors == 2


@pytest.mark.parametrize(("setup", "vectors"), [(ALONE, 2), (SETUP, 2), (SETUP, None)])
async def test_setup_ends_with_the_last_vector_where_it_is_known(
    path: Path, setup: tuple[Step, ...], vectors: int | None, autojump_clock: MockClock
) -> None:
    """From the caller, or from how many another peer has."""
    async with scripted(path, *setup), ivshmem_server.connect(path, vectors=vectors, quiet=3) as peer:
        assert autojump_clock.current_time() < 0.1
        assert peer.vectors == 2


async def test_setup_ends_when_the_server_gives_us_less_than_others(
    path: Path, autojump_clock: MockClock
) -> None:
    async with scripted(path, *SETUP[:-1]), ivshmem_server.connect(path, quiet=3) as peer:
        assert autojump_clock.current_time() == pytest.approx(3, abs=0.1)
        assert (peer.vectors, dict(peer.peers)) == (1, {PEER: 2})


async def test_own_vectors_that_come_late_are_taken_while_we_expect_them(
    path: Path, autojump_clock: MockClock
) -> None:
    async with scripted(path, *SETUP[:-1]) as server, trio.open_nursery() as nursery:

        async def send_the_last() -> None:
            await server.sent.wait()
            await trio.sleep(0.9)
            await server.send(OWN)

        nursery.start_soon(send_the_last)
        async with ivshmem_server.connect(path, vectors=2) as peer:
            assert peer.vectors == 2
    assert autojump_clock.current_time() == pytest.approx(0.9, abs=0.05)


async def test_own_vectors_that_come_after_the_setup_can_be_waited_on(path: Path) -> None:
    async with scripted(path, *SETUP[:-1]) as server, ivshmem_server.connect(path) as peer:
        assert peer.vectors == 1
        await server.send(OWN)
        while peer.vectors == 1:
            await trio.lowlevel.checkpoint()
        peer.ring(peer.id, 1)
        assert await peer.wait(1) == 1


async def test_limit_of_open_files_is_named(path: Path) -> None:
    async with scripted(path, *SETUP[:4], *[PEERS] * 30, *SETUP[-2:]):
        with _open_files_limited(more=12), pytest.raises(AncillaryLostError, match="ulimit -n"):
            async with ivshmem_server.connect(path):
                pass


@contextmanager
def _open_files_limited(*, more: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Later


async def test_peer_is_announced_once_all_its_vectors_have_come(path: Path) -> None:
    async with scripted(path, *SETUP) as server, ivshmem_server.connect(path) as peer:
        changes = peer.changes()
        await server.send((9, "eventfd"), (8, "eventfd"), (8, "eventfd"), (8,), (9, "eventfd"))
        with trio.fail_after(SECONDS):
            assert [await anext(changes) for _ in range(3)] == [
                PeerJoined(8, 2),
                PeerLeft(8),
                PeerJoined(9, 2),
            ]
        assert dict(peer.peers) == {PEER: 2, 9: 2}


async def test_iteration_over_changes_ends_when_the_server_goes(path: Path) -> None:
    async with (
        scripted(path, *SETUP) as server,
        ivshmem_server.connect(path) as peer,
        trio.open_nursery() as nursery,
    ):

        async def close_when_somebody_waits() -> None:
            await trio.testing.wait_all_tasks_blocked()
            server.close()

        changes = peer.changes()
        nursery.start_soon(close_when_somebody_waits)
        with trio.fail_after(SECONDS):
            assert [change async for change in changes] == []


async def test_descriptor_of_half_a_message_is_closed_at_the_end(path: Path) -> None:
    async with scripted(path, *SETUP) as server, ivshmem_server.connect(path):
        await server.send((b"\x09", "eventfd"))
        await trio.testing.wait_all_tasks_blocked()


async def test_peer_that_leaves_before_it_was_announced_is_not_mentioned(path: Path) -> None:
    async with scripted(path, *SETUP) as server, ivshmem_server.connect(path) as peer:
        changes = peer.changes()
        await server.send((9, "eventfd"), (9,), (PEER,))
        with trio.fail_after(SECONDS):
            assert await anext(changes) == PeerLeft(PEER)


async def _block(path: Path, server: ScriptedServer, error: Exception | None = None) -> None:
    """Be a peer while the server breaks the protocol; raise `error` when cancelled for that."""
    async with ivshmem_server.connect(path):
        await server.send((-3,))
        try:
            with trio.fail_after(SECONDS):
                await trio.sleep_forever()
        finally:
            if error:
                raise error


async def test_fault_after_the_setup_cancels_the_block_and_comes_out_bare(path: Path) -> None:
    async with scripted(path, *SETUP) as server:
        with pytest.raises(RemoteProtocolError, match="a peer id was due"):
            await _block(path, server)


async def test_fault_does_not_hide_what_the_block_raises_itself(path: Path) -> None:
    async with scripted(path, *SETUP) as server:
        with pytest.raises(LookupError, match="mine"):
            await _block(path, server, LookupError("mine"))


async def test_flood_of_messages_does_not_starve_the_block(path: Path) -> None:
    async with scripted(path, *SETUP) as server, ivshmem_server.connect(path) as peer:

        async def flood() -> None:
            while True:
                await server.send((9, "eventfd"), (9,))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            with trio.fail_after(SECONDS):
                for _ in range(100):
                    peer.ring(peer.id)
                    assert await peer.wait() == 1
            nursery.cancel_scope.cancel()


# Anything

_kinds = st.sampled_from(sorted(KINDS))
_values = st.sampled_from([0, 1, -1, -2, US, PEER, 65535, 65536]) | st.integers(-(1 << 63), (1 << 63) - 1)
_payloads = _values | st.binary(min_size=1, max_size=20)
_steps = st.sampled_from(SETUP) | st.builds(lambda what, kinds: (what, *kinds), _payloads, st.lists(_kinds))


@given(
    right=st.integers(0, len(SETUP)),
    then=st.lists(_steps, max_size=8),
    cut=st.integers(1, 8),
    vectors=st.none() | st.integers(1, 3),
)
async def test_whatever_a_server_sends_connect_works_or_names_the_fault(
    tmp_path_factory: pytest.TempPathFactory, right: int, then: list[Step], cut: int, vectors: int | None
) -> None:
    """The server then dies inside or after the last message, so that nothing is waited for."""
    path = tmp_path_factory.mktemp("server") / "socket"
    end: Step = (encode(US)[:cut], "eventfd")
    async with scripted(path, *SETUP[:right], *then, end, then_close=True):
        with contextlib.suppress(RemoteProtocolError):
            async with ivshmem_server.connect(path, vectors=vectors) as peer:
                peer.ring(peer.id)
                assert await peer.wait() == 1
                assert 0 <= peer.id <= 65535
                assert len(peer.memory) == 4096
