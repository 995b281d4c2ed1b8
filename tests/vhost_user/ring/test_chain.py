"""Chains: buffers read and written from the front, however the driver cut them up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_user import Readable, Writable

BUFFERS = st.lists(st.binary(min_size=1, max_size=20), max_size=6)


def readable(*parts: bytes) -> Readable:
    return Readable([memoryview(part) for part in parts], sum(map(len, parts)))


def writable(*sizes: int) -> tuple[Writable, list[bytearray]]:
    memory = [bytearray(size) for size in sizes]
    return Writable([memoryview(part) for part in memory], sum(sizes)), memory


def test_read_goes_across_buffers() -> None:
    cursor = readable(b"abc", b"d", b"efgh")
    assert cursor.length == 8
    assert cursor.read(2) == b"ab"
    assert cursor.read(4) == b"cdef"
    assert cursor.remaining == 2
    assert cursor.read() == b"gh"
    assert cursor.read() == cursor.read(5) == b""


def test_read_returns_what_is_there_where_more_is_asked_for() -> None:
    assert readable(b"abc").read(10) == b"abc"


def test_write_goes_across_buffers_and_says_how_much_fitted() -> None:
    cursor, memory = writable(3, 1, 4)
    assert cursor.write(b"ab") == 2
    assert cursor.write(memoryview(b"cdef")) == 4
    assert cursor.written == 6
    assert cursor.write(b"ghijk") == 2
    assert cursor.remaining == 0
    assert b"".join(memory) == b"abcdefgh"


def test_write_takes_any_buffer_of_bytes() -> None:
    cursor, memory = writable(8)
    cursor.write(memoryview(b"\1\0\2\0").cast("H"))
    assert memory[0] == b"\1\0\2\0\0\0\0\0"


def test_buffers_are_the_memory_itself_from_here_on() -> None:
    cursor, memory = writable(3, 4)
    cursor.write(b"a")
    first, second = cursor.buffers
    assert (len(first), len(second)) == (2, 4)
    first[0] = ord("X")
    assert memory[0] == b"aX\0"


def test_first_goes_nowhere() -> None:
    cursor = readable(b"abc", b"def")
    assert [bytes(part) for part in cursor.first(4)] == [b"abc", b"d"]
    assert cursor.remaining == 6


@pytest.mark.parametrize("size", [-1, 5])
def test_advance_stays_within_the_buffers(size: int) -> None:
    cursor = readable(b"abcd")
    with pytest.raises(ValueError, match=f"{size} bytes of 4 that remain"):
        cursor.advance(size)
    assert cursor.read() == b"abcd"


@given(BUFFERS, st.lists(st.integers(0, 30)))
def test_reads_of_any_size_give_the_bytes_in_order(parts: list[bytes], sizes: list[int]) -> None:
    whole = b"".join(parts)
    cursor = readable(*parts)
    for size in sizes:
        rest = len(whole) - cursor.remaining
        assert b"".join(cursor.buffers) == whole[rest:]
        assert cursor.read(size) == whole[rest : rest + size]


@given(BUFFERS, st.lists(st.binary(max_size=30)))
def test_writes_of_any_size_fill_the_buffers_in_order(parts: list[bytes], pieces: list[bytes]) -> None:
    cursor, memory = writable(*map(len, parts))
    whole = b"".join(pieces)
    assert sum(map(cursor.write, pieces)) == cursor.written == min(len(whole), cursor.length)
    assert b"".join(memory).startswith(whole[: cursor.length])
