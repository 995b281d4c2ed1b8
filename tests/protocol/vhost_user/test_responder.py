"""A back-end's session: the requests that it lets through, and those that it refuses."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.vhost_user import (
    FRONTEND_REQUESTS,
    BackendSession,
    Features,
    FrontendMessage,
    GetConfig,
    GetFeatures,
    GetMaxMemSlots,
    GetQueueNum,
    GetShmemConfig,
    GetStatus,
    IotlbMsg,
    MemoryRegion,
    ProtocolFeature,
    Request,
    SetMemTable,
    SetVringCall,
    SetVringKick,
    SetVringNum,
    SharedMemory,
    pack,
)
from protocol.virtio.features import Feature
from tests.protocol.vhost_user.samples import draw, messages, replies
from tests.protocol.vhost_user.wire import (
    ALL_FEATURES,
    ALL_PROTOCOL,
    NEED_REPLY,
    REPLY,
    VERSION,
    agreed,
    answered,
    ask,
    backend,
    by_name,
    closing,
    deliver,
    fewer_examples,
    frontend,
    new_fd,
    new_fds,
    refused,
    send,
)

KINDS = list(FRONTEND_REQUESTS.values())
CONDITIONAL = [kind for kind in KINDS if kind.requirement.feature or kind.requirement.protocol]
ACK_OK = bytes(8)
ACK_FAILED = (1).to_bytes(8, "little")


@pytest.mark.parametrize("kind", KINDS, ids=by_name)
@fewer_examples
@given(st.data())
def test_request_and_reply_cross_the_wire(kind: type[FrontendMessage], data: st.DataObject) -> None:
    """What one session encodes is what the other hands out, both ways, descriptors included."""
    ours, theirs = frontend(), backend()
    request = draw(kind, data)
    with closing(request):
        received = deliver(theirs, ours.request(request))
        assert isinstance(received, Request)
        with closing(received):
            assert received == request
            assert same_files(received.fds, request.fds)
            assert received.reply_owed == kind.is_always_replied()
            if received.reply_owed:
                reply = data.draw(replies(request))
                reply.fds = new_fds(max(reply.allowed_fds()))
                with closing(reply):
                    came = deliver(ours, theirs.reply(received, reply))
                    assert came == reply
                    assert same_files(came.fds, reply.fds)
                    answered(came, request).close()


def same_files(one: tuple[os.PathLike[str] | object, ...], other: tuple[object, ...]) -> bool:
    return len(one) == len(other) and all(
        os.path.sameopenfile(mine.fileno(), yours.fileno())  # type: ignore[attr-defined]
        for mine, yours in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("kind", CONDITIONAL, ids=by_name)
@fewer_examples
@given(st.data())
def test_request_is_refused_where_its_gate_was_not_negotiated(
    kind: type[FrontendMessage], data: st.DataObject
) -> None:
    requirement = kind.requirement
    closed = agreed(ALL_FEATURES.without(requirement.feature), ALL_PROTOCOL.without(requirement.protocol))
    request = draw(kind, data)
    with closing(request):
        event = refused(deliver(backend(closed), frontend().request(request)))
        assert event.label == kind.number.name
        assert str(requirement) in event.reason
        with pytest.raises(LocalProtocolError, match="was not negotiated"):
            frontend(closed).request(request)


@pytest.mark.parametrize("kind", CONDITIONAL, ids=by_name)
@fewer_examples
@given(st.data())
def test_each_bit_of_a_gate_counts(kind: type[FrontendMessage], data: st.DataObject) -> None:
    bit = data.draw(st.sampled_from([*kind.requirement.feature, *kind.requirement.protocol]))
    closed = agreed(
        ALL_FEATURES.without(bit if isinstance(bit, Feature) else 0),
        ALL_PROTOCOL.without(bit if isinstance(bit, ProtocolFeature) else 0),
    )
    request = draw(kind, data)
    with closing(request):
        event = refused(deliver(backend(closed), frontend().request(request)))
        assert event.reason == f"it needs {bit}, which was not negotiated"


@pytest.mark.parametrize("kind", [kind for kind in CONDITIONAL if not kind.requirement.offered], ids=by_name)
@fewer_examples
@given(st.data())
def test_offer_alone_does_not_open_a_gate(kind: type[FrontendMessage], data: st.DataObject) -> None:
    request = draw(kind, data)
    with closing(request):
        refused(deliver(BackendSession(ALL_FEATURES, ALL_PROTOCOL), frontend().request(request)))


@pytest.mark.parametrize("kind", [kind for kind in CONDITIONAL if kind.requirement.offered], ids=by_name)
@fewer_examples
@given(st.data())
def test_offer_is_enough_for_some(kind: type[FrontendMessage], data: st.DataObject) -> None:
    request = draw(kind, data)
    with closing(request):
        event = deliver(BackendSession(ALL_FEATURES, ALL_PROTOCOL), frontend().request(request))
        assert isinstance(event, kind)
        event.close()


@pytest.mark.parametrize("kind", KINDS, ids=by_name)
@fewer_examples
@given(st.data())
def test_wrong_number_of_descriptors_is_refused_and_closed(
    kind: type[FrontendMessage], data: st.DataObject
) -> None:
    message = data.draw(messages(kind))
    assert isinstance(message, Request)
    tolerated = {*message.allowed_fds(), *range(message.discarded_fds + 1)}
    count = data.draw(st.integers(0, 10).filter(lambda count: count not in tolerated))
    fds = new_fds(count)
    event = refused(send(backend(), kind, message.encode(), fds=fds))
    assert event.reason.startswith(f"{count} file descriptors came with it; ")
    assert all(fd.closed for fd in fds)


@pytest.mark.parametrize("kind", [SetVringKick, SetVringCall])
def test_ring_descriptor_and_its_bit_must_agree(kind: type[SetVringKick | SetVringCall]) -> None:
    refused(send(backend(), kind, kind(0).encode()))
    refused(send(backend(), kind, kind(0, no_fd=True).encode(), fds=new_fds(1)))
    without = ask(backend(), kind, kind(0, no_fd=True).encode())
    assert without.fds == ()
    fd = new_fd()
    with_fd = send(backend(), kind, kind(0).encode(), fds=[fd])
    assert isinstance(with_fd, kind)
    assert with_fd.take_fd() is fd
    fd.close()


def test_memory_table_has_a_descriptor_for_each_region() -> None:
    table = SetMemTable((MemoryRegion(0, 4096, 0),) * 3)
    event = refused(send(backend(), SetMemTable, table.encode(), fds=new_fds(2)))
    assert event.reason == "2 file descriptors came with it; 3 belong to it"


def test_refused_payload_closes_descriptors() -> None:
    fds = new_fds(2)
    event = refused(send(backend(), SetMemTable, bytes(7), fds=fds))
    assert str(event) == "SET_MEM_TABLE is refused: 7 bytes of payload do not fit (memory regions)"
    assert all(fd.closed for fd in fds)


def test_late_descriptors_are_refused_and_closed() -> None:
    session, fds = backend(), new_fds(1)
    message = pack(SetVringKick.number, VERSION, SetVringKick(0).encode())
    assert session.receive(message[:12]) == []
    [event] = session.receive(message[12:], fds)
    assert refused(event).reason == "file descriptors came after the first byte"
    assert fds[0].closed


def test_reply_where_requests_are_due_is_refused_and_not_answered() -> None:
    session = backend()
    event = refused(send(session, GetFeatures, flags=VERSION | REPLY | NEED_REPLY))
    assert event.reason == "it is a reply where a request is due"
    assert session.acknowledge(event, ok=False) is None


@pytest.mark.parametrize("kind", [GetMaxMemSlots, GetStatus, GetConfig])
def test_refused_request_that_waits_is_answered(kind: type[FrontendMessage]) -> None:
    session = BackendSession(ALL_FEATURES, ALL_PROTOCOL)
    event = refused(send(session, kind, bytes(12) if kind is GetConfig else b""))
    assert session.acknowledge(event, ok=False) == (pack(kind.number, VERSION | REPLY, b""), ())


def test_refused_iotlb_message_is_answered_with_an_error() -> None:
    session = BackendSession(ALL_FEATURES, ALL_PROTOCOL)
    event = refused(send(session, IotlbMsg, bytes(32)))
    assert session.acknowledge(event, ok=False) == (pack(22, VERSION | REPLY, ACK_FAILED), ())


def test_refusal_waits_for_its_turn() -> None:
    session = backend()
    first = ask(session, GetQueueNum)
    second = refused(send(session, 99, flags=VERSION | NEED_REPLY))
    with pytest.raises(LocalProtocolError, match="GET_QUEUE_NUM is to be answered before request 99"):
        session.acknowledge(second, ok=False)
    session.reply(first, 1)
    assert session.acknowledge(second, ok=False) is not None


def test_connection_goes_on_after_a_refusal() -> None:
    session = backend()
    refused(send(session, SetVringNum, bytes(7)))
    assert ask(session, SetVringNum, bytes(8)) == SetVringNum(0, 0)


def test_end_of_the_connection_between_messages_is_no_event() -> None:
    assert backend().receive(b"") == []


def test_broken_session_closes_what_still_comes() -> None:
    session = backend()
    with pytest.raises(RemoteProtocolError, match="not vhost-user version 1"):
        send(session, 1, flags=0)
    fds = new_fds(1)
    with pytest.raises(RemoteProtocolError, match="given up"):
        session.receive(bytes(12), fds)
    assert fds[0].closed


def test_close_closes_what_came_of_a_message() -> None:
    session, fds = backend(), new_fds(1)
    session.receive(pack(SetVringKick.number, VERSION, bytes(8))[:12], fds)
    session.close()
    assert fds[0].closed


def test_shared_memory_sizes_are_filled_up() -> None:
    ours, theirs = frontend(), backend()
    request = deliver(theirs, ours.request(GetShmemConfig()))
    assert isinstance(request, GetShmemConfig)
    came = deliver(ours, theirs.reply(request, SharedMemory((4096,))))
    assert isinstance(came, SharedMemory)
    assert came.sizes == (4096, *[0] * 255)


def test_features_reply_tells_the_offer() -> None:
    session = BackendSession(Feature.VERSION_1, ProtocolFeature.NONE)
    packet = session.reply(ask(session, GetFeatures), Features(session.negotiation.offered))
    assert packet.data[12:] == int(Feature.VERSION_1).to_bytes(8, "little")
