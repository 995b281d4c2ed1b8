"""The relay of a trace: any bytes and descriptors arrive as they were sent."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import trio
from hypothesis import given
from hypothesis import strategies as st

from protocol.fds import OwnedFd
from protocol.io import FdStream
from protocol.io.stream import MAX_FDS
from protocol.vhost_user import pack
from vhost_user.trace.relay import Relay

if TYPE_CHECKING:
    from protocol.vhost_user import Frame
    from vhost_user.trace.relay import Raw

SECONDS = 60


class Silent:
    """A listener that lets everything pass."""

    def message(self, frame: Frame, *, from_requester: bool) -> None:
        pass

    def raw(self, raw: Raw, *, from_requester: bool) -> None:
        pass

    def ended(self, reason: str, *, from_requester: bool) -> None:
        pass


@given(
    st.lists(
        st.tuples(
            st.binary(min_size=1, max_size=100)
            | st.builds(pack, st.integers(0, 50), st.sampled_from([1, 5, 9]), st.binary(max_size=40)),
            st.integers(0, 3),
        ),
        max_size=6,
    )
)
async def test_whatever_is_sent_arrives(chunks: list[tuple[bytes, int]]) -> None:
    """Bytes arrive as they were sent; descriptors not before the bytes that they were sent with."""
    pairs = [socket.socketpair() for _ in range(2)]
    (sender, one), (other, receiver) = ((FdStream(a), FdStream(b)) for a, b in pairs)
    arrived, files = b"", 0
    with OwnedFd(os.memfd_create("file")) as file, trio.fail_after(SECONDS), sender, one, other, receiver:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Relay(one, other, Silent()).run)
            for data, count in chunks:
                await sender.send(data, [file.fileno()] * count)
            sender.close()
            while True:
                data, fds = await receiver.receive(7, MAX_FDS)
                arrived += data
                files += len(fds)
                for fd in fds:
                    fd.close()
                if not data:
                    break
    assert arrived == b"".join(data for data, _ in chunks)
    assert files == sum(count for _, count in chunks)
