"""The observer: its texts for a conversation, also one that breaks the rules."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.vhost_user import (
    BACKEND_REQUESTS,
    FRONTEND_REQUESTS,
    ConfigChange,
    Frame,
    FrontendMessage,
    GetConfig,
    MemoryRegion,
    ObservedNegotiation,
    Observer,
    ProtocolFeature,
    SetFeatures,
    SetMemTable,
    SetProtocolFeatures,
    SetVringNum,
    describe,
)
from protocol.virtio.features import Feature
from tests.protocol.vhost_user.samples import draw
from tests.protocol.vhost_user.wire import (
    ALL_FEATURES,
    ALL_PROTOCOL,
    NEED_REPLY,
    REPLY,
    VERSION,
    by_name,
    closing,
    fewer_examples,
    new_fds,
)

REPLY_FLAGS = VERSION | REPLY


def watching(negotiation: ObservedNegotiation | None = None) -> Observer:
    """Return an observer of two sides that have negotiated everything."""
    known = negotiation or ObservedNegotiation(ALL_FEATURES, ALL_PROTOCOL, ALL_FEATURES, ALL_PROTOCOL)
    return Observer(FRONTEND_REQUESTS, known)


def frame(message: FrontendMessage, flags: int = VERSION) -> Frame:
    return Frame(message.number, flags, message.encode(), list(message.take_fds()))


@pytest.mark.parametrize("kind", FRONTEND_REQUESTS.values(), ids=by_name)
@fewer_examples
@given(st.data())
def test_request_is_described_and_keeps_its_descriptors(
    kind: type[FrontendMessage], data: st.DataObject
) -> None:
    message = draw(kind, data)
    assert isinstance(message, FrontendMessage)
    text = describe(message)
    with closing(message):
        fds = message.fds
        seen = frame(message)
        observed = watching().request(seen)
        assert str(observed) == text
        assert observed.message == message
        assert tuple(seen.fds) == fds
        seen.close()


def test_reply_is_described_with_its_request() -> None:
    observer = watching()
    request = observer.request(frame(GetConfig(0, 2)))
    reply = observer.reply(Frame(24, REPLY_FLAGS, struct.pack("=III2s", 0, 2, 0, b"\1\2")))
    assert str(reply) == "reply to GET_CONFIG offset=0 data=01 02 flags=DRIVER"
    assert reply.request is request.message


def test_what_was_negotiated_is_followed() -> None:
    negotiation = ObservedNegotiation()
    observer = watching(negotiation)
    observer.request(Frame(1, VERSION, b""))
    observer.reply(Frame(1, REPLY_FLAGS, struct.pack("=Q", 1 << 30)))
    observer.request(Frame(15, VERSION, b""))
    observer.reply(Frame(15, REPLY_FLAGS, struct.pack("=Q", ProtocolFeature.REPLY_ACK)))
    accepted = observer.request(frame(SetProtocolFeatures(ProtocolFeature.REPLY_ACK)))
    assert str(accepted) == "SET_PROTOCOL_FEATURES features=REPLY_ACK"
    assert negotiation.protocol_features == ProtocolFeature.REPLY_ACK
    observer.request(frame(SetVringNum(0, 1), VERSION | NEED_REPLY))
    assert str(observer.reply(Frame(8, REPLY_FLAGS, bytes(8)))) == "reply to SET_VRING_NUM value=0"


def test_both_sockets_share_what_was_negotiated() -> None:
    negotiation = ObservedNegotiation(ALL_FEATURES, ALL_PROTOCOL, ALL_FEATURES, ALL_PROTOCOL)
    watching(negotiation).request(frame(SetProtocolFeatures(ProtocolFeature.BACKEND_REQ)))
    channel = Observer(BACKEND_REQUESTS, negotiation)
    observed = channel.request(Frame(ConfigChange.number, VERSION, b""))
    assert str(observed) == "CONFIG_CHANGE_MSG (wrong: it needs CONFIG, which was not negotiated)"


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (
            Frame(99, VERSION, b"abc"),
            "request 99 flags=0x1 size=3 fds=0 (wrong: its number is not known)",
        ),
        (
            Frame(8, VERSION, b"abc"),
            "SET_VRING_NUM flags=0x1 size=3 fds=0 (wrong: 3 bytes of payload do not fit (vring state))",
        ),
        (
            Frame(12, VERSION, bytes(8)),
            "SET_VRING_KICK index=0 no_fd=False (wrong: 0 file descriptors came with it; 1 belong to it)",
        ),
        (
            Frame(3, REPLY_FLAGS, b""),
            "SET_OWNER flags=0x5 size=0 fds=0 (wrong: it is a reply where a request is due)",
        ),
        (
            frame(SetFeatures(Feature(1 << 60))),
            "SET_FEATURES features=bit 60 (wrong: features bit 60 were not offered)",
        ),
        (
            frame(SetProtocolFeatures(ProtocolFeature.INBAND_NOTIFICATIONS)),
            "SET_PROTOCOL_FEATURES features=INBAND_NOTIFICATIONS"
            " (wrong: INBAND_NOTIFICATIONS was turned on without REPLY_ACK|BACKEND_REQ)",
        ),
    ],
    ids=lambda value: "" if isinstance(value, Frame) else value[:20],
)
def test_wrong_request_is_shown_with_what_is_wrong(seen: Frame, text: str) -> None:
    assert str(watching().request(seen)) == text


def test_what_was_wrongly_turned_on_is_followed_all_the_same() -> None:
    """The two sides act on it, whatever an onlooker thinks."""
    negotiation = ObservedNegotiation()
    watching(negotiation).request(frame(SetProtocolFeatures(ProtocolFeature.CONFIG)))
    watching(negotiation).request(frame(SetFeatures(Feature.VERSION_1)))
    assert (negotiation.features, negotiation.protocol_features) == (
        Feature.VERSION_1,
        ProtocolFeature.CONFIG,
    )


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (
            Frame(17, VERSION, bytes(8)),
            "reply to GET_QUEUE_NUM value=0 (wrong: its flags are 0x1, not 0x5)",
        ),
        (
            Frame(17, REPLY_FLAGS, bytes(4)),
            "reply to GET_QUEUE_NUM flags=0x5 size=4 fds=0 (wrong: reply to GET_QUEUE_NUM: 4 bytes of"
            " payload do not fit (u64))",
        ),
        (
            Frame(1, REPLY_FLAGS, bytes(8)),
            "reply to GET_FEATURES flags=0x5 size=8 fds=0 (wrong: no such reply is due)",
        ),
        (Frame(17, REPLY_FLAGS, b""), "reply to GET_QUEUE_NUM"),
    ],
    ids=lambda value: "" if isinstance(value, Frame) else value[-20:],
)
def test_wrong_reply_is_shown_with_what_is_wrong(seen: Frame, text: str) -> None:
    observer = watching()
    observer.request(Frame(17, VERSION, b""))
    assert str(observer.reply(seen)) == text


def test_request_that_was_never_answered_does_not_confuse_the_next() -> None:
    observer = watching()
    observer.request(Frame(17, VERSION, b""))
    observer.request(Frame(40, VERSION, b""))
    assert str(observer.reply(Frame(40, REPLY_FLAGS, bytes(8)))) == "reply to GET_STATUS status=RESET"


def test_undecoded_request_keeps_its_descriptors() -> None:
    fds = new_fds(2)
    seen = Frame(99, VERSION, b"", list(fds))
    watching().request(seen)
    assert tuple(seen.take_fds()) == fds
    for fd in fds:
        fd.close()


def test_regions_are_shown_in_hexadecimal() -> None:
    table = SetMemTable((MemoryRegion(0, 0x1000, 0x7F00),), fds=new_fds(1))
    seen = frame(table)
    observed = watching().request(seen)
    seen.close()
    assert str(observed) == "SET_MEM_TABLE regions=[guest 0x0 size 0x1000 user 0x7f00 offset 0x0] fds=1"
