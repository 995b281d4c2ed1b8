"""Framing: reads that never cross a message's end, and lost framing."""

from __future__ import annotations

import struct
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.vhost_user import HEADER_SIZE, MAX_PAYLOAD, Frame, Framer, pack
from tests.protocol.vhost_user.wire import NEED_REPLY, REPLY, VERSION, new_fds


def whole(framer: Framer, data: bytes) -> Frame:
    """Feed a message in the reads that the framer asks for."""
    while True:
        size = framer.bytes_wanted
        frame = framer.feed(data[:size])
        data = data[size:]
        if frame:
            assert data == b""
            return frame


def test_header_is_three_native_words() -> None:
    assert pack(9, VERSION | NEED_REPLY, b"abc") == struct.pack("=III", 9, 9, 3) + b"abc"


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**30 - 1), st.binary(max_size=MAX_PAYLOAD))
def test_message_survives(number: int, other_flags: int, payload: bytes) -> None:
    data = pack(number, other_flags << 2 | VERSION, payload)
    frame = whole(Framer(), data)
    assert (frame.number, frame.flags, frame.payload) == (number, other_flags << 2 | VERSION, payload)
    assert frame.data == data
    assert frame.need_reply == bool(other_flags & 2)
    assert frame.is_reply == bool(other_flags & 1)


@given(st.binary(max_size=40), st.lists(st.integers(1, 52), min_size=1))
def test_message_survives_any_split(payload: bytes, sizes: list[int]) -> None:
    framer, data, frames = Framer(), pack(1, VERSION, payload) * 2, []
    for size in cycle(sizes):
        chunk = data[: min(size, framer.bytes_wanted)]
        data = data[len(chunk) :]
        if not chunk:
            break
        if frame := framer.feed(chunk):
            frames.append(frame)
    assert [frame.payload for frame in frames] == [payload] * 2


def test_reads_end_where_header_and_payload_end() -> None:
    framer = Framer()
    assert framer.bytes_wanted == HEADER_SIZE
    framer.feed(pack(1, VERSION, b"abc")[:5])
    assert framer.bytes_wanted == HEADER_SIZE - 5
    framer.feed(pack(1, VERSION, b"abc")[5:HEADER_SIZE])
    assert framer.bytes_wanted == 3
    assert framer.feed(b"abc") is not None
    assert framer.bytes_wanted == HEADER_SIZE


def test_descriptors_stay_with_their_message() -> None:
    framer = Framer()
    first, second = new_fds(2), new_fds(1)
    assert framer.feed(pack(1, VERSION, b"ab")[:12], first) is None
    one = framer.feed(b"ab")
    two = framer.feed(pack(2, VERSION, b""), second)
    assert one is not None
    assert two is not None
    assert (tuple(one.fds), tuple(two.fds)) == (first, second)
    assert (one.fault, two.fault) == ("", "")
    one.close()
    two.close()
    assert all(fd.closed for fd in first + second)


def test_descriptors_after_the_first_byte_are_a_fault() -> None:
    framer = Framer()
    framer.feed(pack(1, VERSION, b"a")[:12])
    frame = framer.feed(b"a", new_fds(1))
    assert frame is not None
    assert frame.fault == "file descriptors came after the first byte"
    frame.close()
    after = framer.feed(pack(2, VERSION, b""))
    assert after is not None
    assert after.fault == ""


@pytest.mark.parametrize("version", [0, 2, 3])
def test_other_version_loses_framing(version: int) -> None:
    fds = new_fds(2)
    with pytest.raises(RemoteProtocolError, match="this is not vhost-user version 1: request 1, flags"):
        Framer().feed(pack(1, version, b""), fds)
    assert all(fd.closed for fd in fds)


def test_too_much_payload_loses_framing_before_it_is_read() -> None:
    fds = new_fds(2)
    with pytest.raises(RemoteProtocolError, match="request 1 has 4097 bytes of payload; 4096 are the limit"):
        Framer().feed(struct.pack("=III", 1, VERSION, MAX_PAYLOAD + 1), fds)
    assert all(fd.closed for fd in fds)


@pytest.mark.parametrize("sent", [1, 11, 12, 14])
def test_end_inside_a_message_loses_framing(sent: int) -> None:
    framer, fds = Framer(), new_fds(1)
    data = pack(1, VERSION | REPLY, b"abc")[:sent]
    framer.feed(data[:12], fds)
    if data[12:]:
        framer.feed(data[12:])
    with pytest.raises(RemoteProtocolError, match=f"ended after {sent} bytes? of a message"):
        framer.feed(b"")
    assert fds[0].closed


def test_end_between_messages_is_no_error() -> None:
    framer = Framer()
    whole(framer, pack(1, VERSION, b"abc"))
    assert framer.feed(b"") is None


def test_more_than_was_wanted_is_our_error() -> None:
    fds = new_fds(1)
    with pytest.raises(LocalProtocolError, match="13 bytes were read where 12 were wanted"):
        Framer().feed(bytes(13), fds)
    assert fds[0].closed
