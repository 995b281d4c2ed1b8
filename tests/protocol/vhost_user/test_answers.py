"""A back-end's session: the replies that it owes, and the answers that it accepts."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError
from protocol.vhost_user import (
    FRONTEND_REQUESTS,
    Ack,
    BackendSession,
    CheckDeviceState,
    Config,
    Empty,
    FrontendMessage,
    GetConfig,
    GetFeatures,
    GetQueueNum,
    GetSharedObject,
    GetShmemConfig,
    GetVringBase,
    PostcopyEnd,
    ProtocolFeature,
    Request,
    SetDeviceStateFd,
    SetLogBase,
    SetOwner,
    SetProtocolFeatures,
    SharedObject,
    TransferChannel,
    TransferDirection,
    UserFault,
    VringBase,
    pack,
)
from tests.protocol.vhost_user.samples import draw
from tests.protocol.vhost_user.wire import (
    ALL_FEATURES,
    ALL_PROTOCOL,
    NEED_REPLY,
    REPLY,
    VERSION,
    agreed,
    ask,
    backend,
    by_name,
    closing,
    deliver,
    fewer_examples,
    frontend,
    new_fd,
    new_fds,
)

if TYPE_CHECKING:
    from protocol.vhost_user import Reply


KINDS = list(FRONTEND_REQUESTS.values())
ACK_OK = bytes(8)
ACK_FAILED = (1).to_bytes(8, "little")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.is_always_replied()], ids=by_name)
@fewer_examples
@given(st.data())
def test_acknowledgement_is_sent_only_if_asked_for(kind: type[FrontendMessage], data: st.DataObject) -> None:
    for ok in (True, False):
        request = draw(kind, data)
        with closing(request):
            theirs = backend()
            received = deliver(theirs, frontend().request(request))
            assert isinstance(received, Request)
            assert theirs.acknowledge(received, ok) is None
            received.close()
            received = deliver(theirs, frontend().request(request, need_reply=True))
            assert isinstance(received, Request)
            assert received.need_reply
            packet = theirs.acknowledge(received, ok)
            assert packet == (pack(kind.number, VERSION | REPLY, ACK_OK if ok else ACK_FAILED), ())
            received.close()


def test_request_for_a_reply_counts_only_with_reply_ack() -> None:
    session = backend(agreed(protocol=ALL_PROTOCOL.without(ProtocolFeature.REPLY_ACK)))
    request = ask(session, SetOwner, flags=VERSION | NEED_REPLY)
    assert not request.reply_owed
    assert session.acknowledge(request) is None


def test_turning_reply_ack_on_is_acknowledged_already() -> None:
    session = BackendSession(ALL_FEATURES, ALL_PROTOCOL)
    payload = SetProtocolFeatures(ProtocolFeature.REPLY_ACK).encode()
    request = ask(session, SetProtocolFeatures, payload, VERSION | NEED_REPLY)
    assert session.acknowledge(request) is not None


STATUS_REPLIES: list[tuple[FrontendMessage, int, Reply]] = [
    (SetLogBase(4096, 0), 1, Ack(1)),
    (CheckDeviceState(), 0, Ack(1)),
    (PostcopyEnd(), 0, Ack(1)),
    (SetDeviceStateFd(TransferDirection.SAVE), 1, TransferChannel(1, no_fd=True)),
    (GetSharedObject(UUID(int=1)), 0, SharedObject()),
    (GetConfig(0, 8), 0, Empty()),
    (GetQueueNum(), 0, Empty()),
    (GetVringBase(0), 0, Empty()),
    (GetShmemConfig(), 0, Empty()),
]


@pytest.mark.parametrize(("request_", "fds", "reply"), STATUS_REPLIES, ids=repr)
def test_failure_of_a_request_that_waits_for_its_reply(
    request_: FrontendMessage, fds: int, reply: Reply
) -> None:
    """Nobody waits for ever: every failure has a reply, if only an empty one."""
    ours, theirs = frontend(), backend()
    request_.fds = new_fds(fds)
    with closing(request_):
        received = deliver(theirs, ours.request(request_))
        came = deliver(ours, theirs.acknowledge(received, ok=False))
        assert came == reply
        assert came.failed
        assert isinstance(received, Request)
        received.close()


@pytest.mark.parametrize(
    ("request_", "success"),
    [(CheckDeviceState(), Ack(0)), (PostcopyEnd(), Ack(0))],
    ids=repr,
)
def test_success_of_a_request_that_waits_for_a_result(request_: FrontendMessage, success: Reply) -> None:
    ours, theirs = frontend(), backend()
    received = deliver(theirs, ours.request(request_))
    came = deliver(ours, theirs.acknowledge(received))
    assert came == success
    assert not came.failed


def test_channel_of_the_front_end_is_taken_with_a_plain_acknowledgement() -> None:
    ours, theirs = frontend(), backend()
    request = SetDeviceStateFd(TransferDirection.LOAD, fds=new_fds(1))
    received = deliver(theirs, ours.request(request))
    assert isinstance(received, SetDeviceStateFd)
    with closing(request, received):
        assert deliver(ours, theirs.acknowledge(received)) == TransferChannel(0, no_fd=True)


def test_number_is_enough_for_a_reply_with_one_field() -> None:
    session = backend()
    packet = session.reply(ask(session, GetQueueNum), 4)
    assert packet.data == pack(17, VERSION | REPLY, (4).to_bytes(8, "little"))
    packet = session.reply(ask(session, GetFeatures), ALL_FEATURES)
    assert packet.data == pack(1, VERSION | REPLY, int(ALL_FEATURES).to_bytes(8, "little"))


def test_number_is_not_enough_for_others() -> None:
    session = backend()
    with pytest.raises(LocalProtocolError, match="a VringBase is not a single number"):
        session.reply(ask(session, GetVringBase, GetVringBase(0).encode()), 4)


def test_descriptors_of_a_reply_may_stay_with_their_owner() -> None:
    session = backend()
    uuid = GetSharedObject.decode(bytes(16))
    with new_fd() as fd:
        packet = session.reply(ask(session, GetSharedObject, uuid.encode()), SharedObject(), [fd.fileno()])
        assert packet == (pack(41, VERSION | REPLY, b""), (fd.fileno(),))


def test_reply_of_another_class_is_our_error() -> None:
    session = backend()
    with pytest.raises(LocalProtocolError, match=r"GetFeatures\(\) is not answered by Ack\(value=0\)"):
        session.reply(ask(session, GetFeatures), Ack())


@pytest.mark.parametrize("reply", [Config(0, bytes(7)), Config(0, bytes(9)), Config(1, bytes(8))], ids=repr)
def test_reply_with_other_bytes_than_were_asked_for_is_our_error(reply: Reply) -> None:
    session = backend()
    with pytest.raises(LocalProtocolError, match="is not answered by"):
        session.reply(ask(session, GetConfig, GetConfig(0, 8).encode()), reply)


def test_reply_of_another_ring_is_our_error() -> None:
    session = backend()
    with pytest.raises(LocalProtocolError, match="is not answered by"):
        session.reply(ask(session, GetVringBase, GetVringBase(0).encode()), VringBase(1, 0))


def test_reply_with_too_few_descriptors_is_our_error() -> None:
    session = backend()
    request = ask(session, 28)
    with pytest.raises(LocalProtocolError, match="0 file descriptors do not belong"):
        session.reply(request, UserFault())
    with new_fd() as fd:
        assert session.reply(request, UserFault(), [fd.fileno()]).fds == (fd.fileno(),)


def test_success_without_the_values_asked_for_is_our_error() -> None:
    session = backend()
    with pytest.raises(LocalProtocolError, match="answered with a Number: use reply"):
        session.acknowledge(ask(session, GetQueueNum))


def test_replies_keep_the_order_of_requests() -> None:
    session = backend()
    first, second = ask(session, GetQueueNum), ask(session, GetFeatures)
    assert session.owed == (first, second)
    with pytest.raises(LocalProtocolError, match="GET_QUEUE_NUM is to be answered before GET_FEATURES"):
        session.reply(second, 0)
    with pytest.raises(LocalProtocolError, match="GET_QUEUE_NUM is to be answered before GET_FEATURES"):
        session.acknowledge(second, ok=False)
    session.reply(first, 1)
    session.reply(second, 0)
    assert not session.owed


def test_second_reply_is_our_error() -> None:
    session = backend()
    request = ask(session, GetQueueNum)
    session.reply(request, 1)
    with pytest.raises(LocalProtocolError, match="GET_QUEUE_NUM waits for no reply"):
        session.reply(request, 1)
    assert session.acknowledge(request, ok=False) is None


def test_reply_to_a_request_that_wants_none_is_our_error() -> None:
    session = backend()
    with pytest.raises(LocalProtocolError, match="SET_OWNER waits for no reply"):
        session.reply(ask(session, SetOwner), Ack())


def test_request_survives_a_reply_that_was_wrong() -> None:
    session = backend()
    request = ask(session, GetQueueNum)
    with pytest.raises(LocalProtocolError):
        session.reply(request, 2**64)
    assert session.reply(request, 2).data
