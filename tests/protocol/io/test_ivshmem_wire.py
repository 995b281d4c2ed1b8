"""Both sessions over a real socket: each descriptor arrives with its message, whatever the reads."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket

from hypothesis import given
from hypothesis import strategies as st

from protocol.fds import OwnedFd
from protocol.io import FdStream
from protocol.ivshmem import Registry, ServerSession
from tests.protocol.ivshmem.world import FakeClient, identity, new_eventfds


def send(session: ServerSession, stream: FdStream) -> None:
    """Send what the kernel takes, as a server does."""
    with contextlib.suppress(BlockingIOError):
        while (message := session.next_message()) is not None:
            assert stream.send_nowait(message.buffers, message.ancillary) == 8  # whole or not at all
            session.sent()


@given(
    before=st.integers(0, 6),
    after=st.integers(0, 6),
    vectors=st.integers(1, 4),
    sizes=st.lists(st.integers(1, 8), min_size=1),
)
def test_descriptors_arrive_with_their_messages(
    before: int, after: int, vectors: int, sizes: list[int]
) -> None:
    left, right = socket.socketpair()
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # as little as the kernel allows
    with OwnedFd(os.memfd_create("memory")) as memory, FdStream(left) as server, FdStream(right) as stream:
        registry = Registry(memory.fileno(), vectors)
        others = [registry.join(new_eventfds) for _ in range(before)]
        member = registry.join(new_eventfds)
        others += [registry.join(new_eventfds) for _ in range(after)]
        client = FakeClient(member.session)
        for size in itertools.cycle(sizes):
            send(member.session, server)
            try:
                client.receive(*stream.receive_nowait(min(size, client.bytes_wanted)))
            except BlockingIOError:
                break
        assert client.id == member.id
        assert client.memory == os.fstat(memory.fileno()).st_ino
        assert client.vectors == [identity(fd) for fd in member.announcement.eventfds]
        assert client.peers == {
            other.id: [identity(fd) for fd in other.announcement.eventfds] for other in others
        }
        registry.close()
