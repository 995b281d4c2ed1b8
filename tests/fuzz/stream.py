"""Any messages over a real socket: what a session gets from the kernel is what it gets without one.

A message's descriptors go with the byte of it that `option` numbers. Each is another file, so that it
can be told which of them came with what.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from protocol.errors import RemoteProtocolError
from protocol.fds import OwnedFd, rights
from protocol.io.stream import MAX_FDS, FdStream
from protocol.vhost_user import BackendSession, Request
from tests.fuzz.deliveries import Delivery, deliveries, message
from tests.fuzz.harness import DefectError
from tests.fuzz.samples import ALL_FEATURES, ALL_PROTOCOL, FRONTEND

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FILES = [OwnedFd(os.memfd_create(f"fuzz-{number}")) for number in range(16)]
_PLACES = {os.fstat(fd.fileno()).st_ino: place for place, fd in enumerate(_FILES)}
_ROOM = 60000
"""Bytes that a socket surely takes before anybody reads."""


def one_input(data: bytes) -> None:
    """Fail unless the session makes the same of a message, and of its descriptors, both ways."""
    messages = list(deliveries(data[:_ROOM]))
    expected = _without_socket(messages)
    ours, theirs = socket.socketpair()
    with FdStream(ours) as stream, theirs:
        for each in messages:
            _send(theirs, each)
        theirs.shutdown(socket.SHUT_WR)
        found = _with_socket(stream)
    if found != expected:
        raise DefectError(f"over a socket: {found}; without: {expected}")


def _send(sock: socket.socket, delivery: Delivery) -> None:
    place = min(delivery.option, len(delivery.data) - 1)
    if place:
        sock.sendall(delivery.data[:place])
    fds = [fd.fileno() for fd in _FILES[: delivery.fds]]
    rest = delivery.data[place:]
    sent = sock.sendmsg([rest], rights(*fds))
    if sent != len(rest):
        raise AssertionError(f"the socket took {sent} bytes of {len(rest)}")


def _session() -> BackendSession:
    session = BackendSession(ALL_FEATURES, ALL_PROTOCOL)
    session.negotiation.features, session.negotiation.protocol_features = ALL_FEATURES, ALL_PROTOCOL
    return session


def _told(session: BackendSession, data: bytes, fds: Sequence[OwnedFd]) -> list[str]:
    """Give a read to the session; return what it says, with the numbers of the files that came."""
    texts = []
    for event in session.receive(data, fds):
        files = []
        if isinstance(event, Request):
            files = [_PLACES[os.fstat(fd.fileno()).st_ino] for fd in event.fds]
            event.close()
        texts.append(f"{event} {files}")
    return texts


def _with_socket(stream: FdStream) -> list[str]:
    session, texts = _session(), []
    try:
        data = b"."
        while data:
            data, fds = stream.receive_nowait(session.bytes_wanted, MAX_FDS)
            texts += _told(session, data, fds)
    except RemoteProtocolError as error:
        texts.append(str(error))
    finally:
        session.close()
    return texts


def _without_socket(messages: list[Delivery]) -> list[str]:
    """Feed a session as a kernel would: descriptors come with the read that takes their byte."""
    session, texts = _session(), []
    data = b"".join(each.data for each in messages)
    due = []
    start = 0
    for each in messages:
        if each.fds:
            due.append((start + min(each.option, len(each.data) - 1), each.fds))
        start += len(each.data)
    place = 0
    try:
        while place < len(data):
            size = session.bytes_wanted
            fds = []
            if due and due[0][0] < place + size:
                fds = [fd.dup() for fd in _FILES[: due.pop(0)[1]]]
            # Two lots of descriptors never come with one read.
            if due and due[0][0] < place + size:
                size = due[0][0] - place
            texts += _told(session, data[place : place + size], fds)
            place += size
        texts += _told(session, b"", [])
    except RemoteProtocolError as error:
        texts.append(str(error))
    finally:
        session.close()
    return texts


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield a conversation with all its descriptors where they belong, and some where they do not."""
    parts = [
        message(request.number, request.encode(), fds=max(request.allowed_fds())) for request in FRONTEND
    ]
    yield "conversation", b"".join(parts)
    late = [
        message(request.number, request.encode(), fds=max(request.allowed_fds()), option=14)
        for request in FRONTEND
        if max(request.allowed_fds())
    ]
    yield "late_descriptors", b"".join(late)
    yield "many_descriptors", message(5, bytes(8), fds=9) + message(12, bytes(8), fds=1) + message(1)
    yield "cut", b"".join(parts[:6])[:-3]
