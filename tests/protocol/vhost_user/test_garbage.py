"""Any bytes: events or RemoteProtocolError, and no descriptor left open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import RemoteProtocolError
from protocol.vhost_user import (
    BACKEND_REQUESTS,
    FRONTEND_REQUESTS,
    FrontendSession,
    GetConfig,
    GetFeatures,
    GetInflightFd,
    GetVringBase,
    Message,
    PostcopyAdvise,
    Refused,
    SetFeatures,
    SetProtocolFeatures,
    SetVringNum,
    describe,
    pack,
)
from tests.protocol.vhost_user.samples import FIELDS, messages
from tests.protocol.vhost_user.wire import VERSION, backend, channel, frontend, new_fds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol.fds import OwnedFd
    from protocol.vhost_user import Reply, Request, Requester, Responder

SIZES = sorted({size for kind in FIELDS for size in list(kind.payload.sizes)[:4]})

PAYLOADS = st.one_of(
    st.binary(max_size=48),
    st.sampled_from(SIZES).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
    st.sampled_from(list(FIELDS)).flatmap(messages).map(Message.encode),
)
FLAGS = st.one_of(st.just(VERSION), st.sampled_from([5, 9, 13]), st.integers(0, 2**32 - 1))
NUMBERS = st.one_of(st.integers(0, 47), st.integers(0, 2**32 - 1))

STREAMS = st.lists(
    st.tuples(
        st.one_of(st.builds(pack, NUMBERS, FLAGS, PAYLOADS), st.binary(max_size=30)), st.integers(0, 9)
    ),
    max_size=6,
)
"""What comes: messages, true or false, and other bytes, each with so many descriptors on its first byte."""


def genuine(kind: type[Request]) -> st.SearchStrategy[tuple[bytes, int]]:
    """Return messages that a session takes, with their descriptors."""
    return messages(kind).map(
        lambda each: (pack(kind.number, VERSION, each.encode()), max(each.allowed_fds()))
    )


KEEPING = [kind for kind in FRONTEND_REQUESTS.values() if kind not in (SetFeatures, SetProtocolFeatures)]
"""The requests that turn nothing off."""

GENUINE = st.lists(st.sampled_from(KEEPING).flatmap(genuine), max_size=8)


class Feeder:
    """Gives a session a stream, in reads of sizes that a test chooses, until it is done or broken."""

    def __init__(self, session: Responder | Requester) -> None:
        self.session = session
        self.events: list[Request | Refused | Reply] = []
        self.error = ""
        self.fds: list[OwnedFd] = []

    def feed(self, stream: Sequence[tuple[bytes, int]], sizes: st.DataObject | None) -> None:
        try:
            for data, count in stream:
                self._feed(data, count, sizes)
            self.events += self.session.receive(b"")
        except RemoteProtocolError as error:
            self.error = str(error)

    def _feed(self, data: bytes, count: int, sizes: st.DataObject | None) -> None:
        while data:
            size = self.session.bytes_wanted
            if sizes is not None:
                size = sizes.draw(st.integers(1, size))
            fds = new_fds(count)  # after the draw, which may end the test
            self.fds += fds
            self.events += self.session.receive(data[:size], fds)
            data, count = data[size:], 0

    def close(self) -> None:
        """Close what the events own: nothing else may be open then."""
        self.session.close()
        for event in self.events:
            if isinstance(event, Message):
                event.close()

    def texts(self) -> list[str]:
        return [describe(each) if isinstance(each, Message) else str(each) for each in self.events]


def asking() -> FrontendSession:
    """Return a front-end that waits for replies of many kinds."""
    session = frontend()
    for request in (
        GetFeatures(),
        GetConfig(0, 8),
        GetVringBase(0),
        GetInflightFd(0, 0, 1, 1),
        PostcopyAdvise(),
    ):
        session.request(request)
    session.request(SetVringNum(0, 1), need_reply=True)
    return session


def check(
    session: Responder | Requester,
    again: Responder | Requester,
    stream: Sequence[tuple[bytes, int]],
    sizes: st.DataObject,
) -> Feeder:
    """Feed both sessions the stream, one of them in other reads; they must say the same and lose nothing."""
    whole, split = Feeder(session), Feeder(again)
    try:
        whole.feed(stream, None)
        split.feed(stream, sizes)
        assert whole.texts() == split.texts()
        assert whole.error == split.error
        assert len(whole.error.splitlines()) <= 1
        assert all(len(text.splitlines()) == 1 for text in whole.texts())
    finally:
        whole.close()
        split.close()
    assert all(fd.closed for fd in whole.fds + split.fds)
    return whole


@given(STREAMS, st.data())
def test_back_end_survives_garbage(stream: list[tuple[bytes, int]], sizes: st.DataObject) -> None:
    check(backend(), backend(), stream, sizes)


@given(STREAMS, st.data())
def test_front_end_survives_garbage(stream: list[tuple[bytes, int]], sizes: st.DataObject) -> None:
    check(asking(), asking(), stream, sizes)


@given(STREAMS, st.data())
def test_front_ends_channel_survives_garbage(stream: list[tuple[bytes, int]], sizes: st.DataObject) -> None:
    check(channel()[1], channel()[1], stream, sizes)


@given(GENUINE, st.data())
def test_genuine_requests_are_the_same_for_any_split(
    stream: list[tuple[bytes, int]], sizes: st.DataObject
) -> None:
    feeder = check(backend(), backend(), stream, sizes)
    assert not feeder.error
    assert len(feeder.events) == len(stream)
    assert not any(isinstance(event, Refused) for event in feeder.events)


@given(GENUINE)
def test_every_debt_can_be_paid_in_order(stream: list[tuple[bytes, int]]) -> None:
    """Whatever was asked: a user who fails everything leaves no front-end waiting."""
    session = backend()
    feeder = Feeder(session)
    feeder.feed(stream, None)
    try:
        owed = session.owed
        packets = [session.acknowledge(each, ok=False) for each in owed]
        assert all(packet is not None and packet.data[4:8] == b"\x05\0\0\0" for packet in packets)
        assert not session.owed
    finally:
        feeder.close()


def test_strategies_reach_every_request() -> None:
    assert {kind.number for kind in FIELDS if kind in FRONTEND_REQUESTS.values()} == set(FRONTEND_REQUESTS)  # type: ignore[attr-defined]
    assert {kind.number for kind in FIELDS if kind in BACKEND_REQUESTS.values()} == set(BACKEND_REQUESTS)  # type: ignore[attr-defined]
