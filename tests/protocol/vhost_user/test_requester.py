"""A front-end's session: the requests that it sends, and the replies that it accepts."""

from __future__ import annotations

import pytest

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.vhost_user import (
    Ack,
    Config,
    Empty,
    FrontendSession,
    GetConfig,
    GetFeatures,
    GetProtocolFeatures,
    GetQueueNum,
    GetSharedObject,
    GetVringBase,
    MemoryRegion,
    Number,
    PostcopyAdvise,
    ProtocolFeature,
    Reply,
    Request,
    SetDeviceStateFd,
    SetFeatures,
    SetMemTable,
    SetProtocolFeatures,
    SetVringCall,
    SetVringNum,
    SharedObject,
    TransferDirection,
    UserFault,
    VringBase,
    pack,
)
from protocol.virtio.features import Feature
from tests.protocol.vhost_user.wire import (
    NEED_REPLY,
    REPLY,
    VERSION,
    agreed,
    closing,
    feed,
    frontend,
    new_fds,
)

REPLY_FLAGS = VERSION | REPLY


def get(session: FrontendSession, number: int, payload: bytes, flags: int = REPLY_FLAGS) -> Reply:
    [reply] = feed(session, pack(number, flags, payload))
    return reply


def test_request_is_encoded() -> None:
    session = frontend()
    packet = session.request(SetVringNum(1, 256))
    assert packet == (pack(8, VERSION, b"\x01\0\0\0\0\x01\0\0"), ())


def test_request_may_ask_for_a_reply() -> None:
    session = frontend()
    request = SetVringNum(1, 256)
    packet = session.request(request, need_reply=True)
    assert packet.data == pack(8, VERSION | NEED_REPLY, b"\x01\0\0\0\0\x01\0\0")
    assert session.waiting == (request,)
    reply = get(session, 8, bytes(8))
    assert reply == Ack(0)
    assert reply.answers is request
    assert not session.waiting


def test_descriptors_of_a_request_stay_its_own() -> None:
    request = SetMemTable((MemoryRegion(0, 1, 2),) * 2, fds=new_fds(2))
    with closing(request):
        packet = frontend().request(request)
        assert packet.fds == tuple(fd.fileno() for fd in request.fds)


def test_asking_for_a_reply_needs_reply_ack() -> None:
    session = FrontendSession()
    with pytest.raises(LocalProtocolError, match="SET_VRING_NUM can ask for a reply only where REPLY_ACK"):
        session.request(SetVringNum(0, 1), need_reply=True)


def test_request_that_was_not_negotiated_is_our_error() -> None:
    with pytest.raises(LocalProtocolError, match="GET_QUEUE_NUM: it needs MQ, which was not negotiated"):
        FrontendSession().request(GetQueueNum())


def test_request_with_missing_descriptors_is_our_error() -> None:
    with pytest.raises(LocalProtocolError, match="SET_VRING_CALL: 0 file descriptors came with it"):
        frontend().request(SetVringCall(0))


def test_request_that_does_not_fit_leaves_nothing_behind() -> None:
    session = frontend()
    with pytest.raises(LocalProtocolError, match="GET_CONFIG"):
        session.request(GetConfig(2**32, 1))
    assert not session.waiting


def test_offers_are_learnt_from_replies() -> None:
    session = FrontendSession()
    session.request(GetFeatures())
    get(session, 1, int(Feature.PROTOCOL_FEATURES | Feature.VERSION_1).to_bytes(8, "little"))
    session.request(GetProtocolFeatures())
    get(session, 15, int(ProtocolFeature.MQ).to_bytes(8, "little"))
    session.request(SetFeatures(Feature.VERSION_1))
    session.request(SetProtocolFeatures(ProtocolFeature.MQ))
    assert (session.features, session.protocol_features) == (Feature.VERSION_1, ProtocolFeature.MQ)


def test_turning_on_what_was_not_offered_is_our_error() -> None:
    session = frontend(agreed(Feature.PROTOCOL_FEATURES, ProtocolFeature.MQ))
    with pytest.raises(LocalProtocolError, match="SET_FEATURES: features VERSION_1 were not offered"):
        session.request(SetFeatures(Feature.VERSION_1))
    with pytest.raises(LocalProtocolError, match="protocol features CONFIG were not offered"):
        session.request(SetProtocolFeatures(ProtocolFeature.CONFIG))


def test_inband_notifications_without_what_they_need_are_our_error() -> None:
    inband = ProtocolFeature.INBAND_NOTIFICATIONS
    session = frontend(agreed(Feature.PROTOCOL_FEATURES, inband))
    with pytest.raises(LocalProtocolError, match=r"turned on without REPLY_ACK\|BACKEND_REQ"):
        session.request(SetProtocolFeatures(inband))


def test_several_requests_are_answered_in_order() -> None:
    session = frontend()
    session.request(GetQueueNum())
    session.request(GetVringBase(3))
    assert get(session, 17, (2).to_bytes(8, "little")) == Number(2)
    assert get(session, 11, bytes([3, 0, 0, 0, 7, 0, 0, 0])) == VringBase(3, 7)


@pytest.mark.parametrize("flags", [VERSION, VERSION | NEED_REPLY, REPLY_FLAGS | NEED_REPLY, REPLY_FLAGS | 16])
def test_other_flags_than_a_replys_are_refused(flags: int) -> None:
    session = frontend()
    session.request(GetQueueNum())
    with pytest.raises(RemoteProtocolError, match=r"the reply to GET_QUEUE_NUM was due .*flags 0x5"):
        get(session, 17, bytes(8), flags)


def test_reply_to_something_else_is_refused() -> None:
    session = frontend()
    session.request(GetQueueNum())
    with pytest.raises(
        RemoteProtocolError, match=r"the reply to GET_QUEUE_NUM was due .*number 1, flags 0x5 came"
    ):
        get(session, 1, bytes(8))


def test_reply_that_nobody_waits_for_is_refused() -> None:
    session = frontend()
    session.request(SetVringNum(0, 1))
    with pytest.raises(RemoteProtocolError, match="message 8 came while no reply was due"):
        get(session, 8, bytes(8))


@pytest.mark.parametrize(
    ("request_", "payload", "text"),
    [
        (GetQueueNum(), bytes(7), "reply to GET_QUEUE_NUM: 7 bytes of payload do not fit"),
        (GetConfig(0, 8), Config(0, bytes(9)).encode(), "is not answered by"),
        (GetConfig(0, 8), Config(1, bytes(8)).encode(), "is not answered by"),
        (GetVringBase(1), VringBase(2, 0).encode(), "is not answered by"),
    ],
    ids=repr,
)
def test_reply_that_does_not_fit_is_refused(request_: Request, payload: bytes, text: str) -> None:
    session = frontend()
    session.request(request_)
    with pytest.raises(RemoteProtocolError, match=text):
        get(session, request_.number, payload)


@pytest.mark.parametrize("request_", [GetConfig(0, 8), PostcopyAdvise()], ids=repr)
def test_empty_reply_says_that_the_request_failed(request_: Request) -> None:
    """Also where the reply that was due has no payload, but a descriptor."""
    session = frontend()
    request = request_
    session.request(request)
    reply = get(session, request.number, b"")
    assert reply == Empty()
    assert reply.failed
    assert reply.answers is request


def test_empty_reply_is_the_reply_where_nothing_else_is_due() -> None:
    session = frontend()
    session.request(GetSharedObject.decode(bytes(16)))
    reply = get(session, 41, b"")
    assert reply == SharedObject()
    assert reply.failed


def test_reply_owns_its_descriptors() -> None:
    session, fds = frontend(), new_fds(1)
    session.request(PostcopyAdvise())
    [reply] = feed(session, pack(28, REPLY_FLAGS, b""), fds)
    assert isinstance(reply, UserFault)
    assert reply.take_fd() is fds[0]
    fds[0].close()


@pytest.mark.parametrize(
    ("number", "payload", "count"),
    [(17, bytes(8), 1), (17, b"", 1), (17, bytes(3), 2), (28, b"", 2), (1, b"", 1)],
)
def test_descriptors_of_a_refused_reply_are_closed(number: int, payload: bytes, count: int) -> None:
    session, fds = frontend(), new_fds(count)
    session.request(PostcopyAdvise() if number == 28 else GetQueueNum())
    with pytest.raises(RemoteProtocolError):
        feed(session, pack(number, REPLY_FLAGS, payload), fds)
    assert all(fd.closed for fd in fds)


def test_late_descriptors_of_a_reply_are_refused_and_closed() -> None:
    session, fds = frontend(), new_fds(1)
    session.request(PostcopyAdvise())
    session.request(GetQueueNum())
    feed(session, pack(28, REPLY_FLAGS, b"")[:4])
    with pytest.raises(RemoteProtocolError, match="file descriptors came after the first byte"):
        session.receive(pack(28, REPLY_FLAGS, b"")[4:], fds)
    assert fds[0].closed


@pytest.mark.parametrize("word", [0x001, 0x101])
def test_failed_transfer_of_device_state_brings_no_channel(word: int) -> None:
    """Back-ends differ in whether they set the bit for no descriptor then."""
    for count in (0, 1):
        session = frontend()
        with closing(request := SetDeviceStateFd(TransferDirection.SAVE, fds=new_fds(1))):
            session.request(request)
        data, fds = pack(42, REPLY_FLAGS, word.to_bytes(8, "little")), new_fds(count)
        if count:
            with pytest.raises(RemoteProtocolError, match="1 file descriptors came with it"):
                feed(session, data, fds)
            assert fds[0].closed
        else:
            [reply] = feed(session, data, fds)
            assert reply.failed


def test_broken_session_closes_what_still_comes() -> None:
    session = frontend()
    with pytest.raises(RemoteProtocolError, match="no reply was due"):
        get(session, 1, b"")
    fds = new_fds(1)
    with pytest.raises(RemoteProtocolError, match="given up after an earlier error"):
        session.receive(bytes(12), fds)
    assert fds[0].closed


def test_end_inside_a_reply_is_an_error() -> None:
    session = frontend()
    session.request(GetQueueNum())
    session.receive(pack(17, REPLY_FLAGS, bytes(8))[:12])
    with pytest.raises(RemoteProtocolError, match="the connection ended after 12 bytes of a message"):
        session.receive(b"")
