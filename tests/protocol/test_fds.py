"""OwnedFd: closed exactly once, whatever happens to its owner."""

from __future__ import annotations

import array
import os
import socket
import sys
import warnings
from typing import TYPE_CHECKING

import pytest

from protocol.fds import OwnedFd, rights

if TYPE_CHECKING:
    from sys import UnraisableHookArgs


def new_number() -> int:
    """Return a new descriptor."""
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def test_close_closes() -> None:
    number = new_number()
    fd = OwnedFd(number)
    assert fd.fileno() == number
    fd.close()
    assert fd.closed
    assert not is_open(number)


def test_second_close_spares_who_got_the_number_next() -> None:
    fd = OwnedFd(new_number())
    fd.close()
    with OwnedFd(new_number()) as successor:
        fd.close()
        assert is_open(successor.fileno())


def test_block_closes_when_it_raises() -> None:
    number = new_number()
    with pytest.raises(LookupError), OwnedFd(number):
        raise LookupError
    assert not is_open(number)


def test_detach_gives_the_descriptor_away() -> None:
    number = new_number()
    fd = OwnedFd(number)
    assert fd.detach() == number
    assert fd.closed
    fd.close()
    assert is_open(number)
    os.close(number)


def test_closed_one_has_no_number() -> None:
    fd = OwnedFd(new_number())
    fd.close()
    for method in (fd.fileno, fd.detach, fd.dup):
        with pytest.raises(ValueError, match="closed or was detached"):
            method()


def test_dup_is_a_second_owner_that_no_child_inherits() -> None:
    with OwnedFd(new_number()) as first, first.dup() as second:
        assert first.fileno() != second.fileno()
        assert not os.get_inheritable(second.fileno())
        first.close()
        assert is_open(second.fileno())


def test_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 is not a file descriptor"):
        OwnedFd(-1)


def test_lost_owner_warns_and_closes() -> None:
    number = new_number()
    fd = OwnedFd(number)
    with pytest.warns(ResourceWarning, match=f"descriptor {number} was never closed"):
        del fd
    assert not is_open(number)


def test_lost_owner_closes_where_warnings_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    unraisable: list[UnraisableHookArgs] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    number = new_number()
    fd = OwnedFd(number)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del fd
    assert [type(each.exc_value) for each in unraisable] == [ResourceWarning]
    assert not is_open(number)
    unraisable.clear()  # it holds the object


def test_text_shows_number_and_state() -> None:
    number = new_number()
    fd = OwnedFd(number)
    assert repr(fd) == f"OwnedFd({number})"
    fd.close()
    assert repr(fd) == "OwnedFd(closed)"


def test_rights_pass_every_descriptor_in_order() -> None:
    left, right = socket.socketpair()
    reader, writer = os.pipe()
    with left, right, OwnedFd(reader), OwnedFd(writer):
        left.sendmsg([b"x"], rights(reader, writer))
        _, ancillary, _, _ = right.recvmsg(1, socket.CMSG_SPACE(8), socket.MSG_CMSG_CLOEXEC)
        received = array.array("i", ancillary[0][2])
        with OwnedFd(received[0]), OwnedFd(received[1]):
            os.write(received[1], b"through")
            assert os.read(received[0], 7) == b"through"


def test_no_rights_without_descriptors() -> None:
    assert rights() == []
