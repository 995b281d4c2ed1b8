"""Who has gone, and who has only said all that there is to say."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.io.hangup import fail_without_reader, has_hung_up, until_hung_up

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 60


@pytest.mark.parametrize(
    ("does", "has_gone"),
    [
        (lambda other: None, False),
        (lambda other: other.send(b"not read yet"), False),
        (lambda other: other.shutdown(socket.SHUT_WR), False),
        (lambda other: other.shutdown(socket.SHUT_RD), False),
        (lambda other: other.shutdown(socket.SHUT_RDWR), True),
        (lambda other: other.close(), True),
    ],
)
def test_socket(does: Callable[[socket.socket], object], has_gone: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        does(theirs)
        assert has_hung_up(ours.fileno()) is has_gone


def test_pseudo_terminal_until_somebody_has_it_open_again() -> None:
    ours, theirs = os.openpty()
    path = os.ttyname(theirs)
    try:
        assert not has_hung_up(ours)
        os.close(theirs)
        assert has_hung_up(ours)
        theirs = os.open(path, os.O_RDWR | os.O_NOCTTY)
        assert not has_hung_up(ours)
        os.close(theirs)
    finally:
        os.close(ours)


def test_pipe_of_which_nobody_has_the_end_that_is_read() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"not read yet")
        assert not has_hung_up(writer)
        os.close(reader)
        assert has_hung_up(writer)
    finally:
        os.close(writer)


@pytest.mark.parametrize("path", [os.devnull, __file__])
def test_file_never_hangs_up(path: str) -> None:
    with Path(path).open("rb") as file:
        assert not has_hung_up(file.fileno())


async def test_reader_that_leaves_is_a_failure() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with trio.fail_after(SECONDS), pytest.raises(BrokenPipeError):
            await fail_without_reader(writer)
    finally:
        os.close(writer)


async def test_it_is_waited_for_even_where_all_was_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, trio.fail_after(SECONDS):
        theirs.shutdown(socket.SHUT_WR)
        assert ours.recv(1) == b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_hung_up, ours.fileno())
            await wait_all_tasks_blocked()
            theirs.close()
