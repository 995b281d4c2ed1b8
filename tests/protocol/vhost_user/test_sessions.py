"""Both ends of the socket for the back-end's own requests."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError
from protocol.vhost_user import (
    BACKEND_REQUESTS,
    Ack,
    ConfigChange,
    LookedUpObject,
    ProtocolFeature,
    Request,
    SharedObjectLookup,
    ShmemMap,
    VringCall,
    VringHostNotifier,
    pack,
)
from protocol.virtio.features import Feature
from tests.protocol.vhost_user.samples import draw
from tests.protocol.vhost_user.wire import (
    ALL_FEATURES,
    ALL_PROTOCOL,
    REPLY,
    VERSION,
    agreed,
    by_name,
    channel,
    closing,
    deliver,
    fewer_examples,
    new_fd,
    new_fds,
    refused,
    send,
)

if TYPE_CHECKING:
    from protocol.vhost_user import BackendMessage

KINDS = list(BACKEND_REQUESTS.values())
UUID_ = UUID(int=7)


@pytest.mark.parametrize("kind", KINDS, ids=by_name)
@fewer_examples
@given(st.data())
def test_request_and_acknowledgement_cross_the_wire(kind: type[BackendMessage], data: st.DataObject) -> None:
    ours, theirs = channel()
    request = draw(kind, data)
    with closing(request):
        received = deliver(theirs, ours.request(request, need_reply=True))
        assert isinstance(received, Request)
        with closing(received):
            assert received == request
            assert len(received.fds) == len(request.fds)
            if kind is not SharedObjectLookup:
                reply = deliver(ours, theirs.acknowledge(received))
                assert reply == Ack(0)
                assert reply.answers is request


@pytest.mark.parametrize("kind", KINDS, ids=by_name)
@fewer_examples
@given(st.data())
def test_each_bit_of_a_gate_counts(kind: type[BackendMessage], data: st.DataObject) -> None:
    bit = data.draw(st.sampled_from([*kind.requirement.feature, *kind.requirement.protocol]))
    closed = agreed(
        ALL_FEATURES.without(bit if isinstance(bit, Feature) else 0),
        ALL_PROTOCOL.without(bit if isinstance(bit, ProtocolFeature) else 0),
    )
    request = draw(kind, data)
    with closing(request):
        with pytest.raises(LocalProtocolError, match=f"it needs {bit}, which was not negotiated"):
            channel(closed)[0].request(request)
        event = refused(deliver(channel(closed)[1], channel()[0].request(request)))
        assert event.reason == f"it needs {bit}, which was not negotiated"


@pytest.mark.parametrize(
    "request_", [ShmemMap(0, 0, 0, 4096), VringHostNotifier(0, False, 4096, 0)], ids=repr
)
def test_descriptor_needs_backend_send_fd(request_: BackendMessage) -> None:
    closed = agreed(protocol=ALL_PROTOCOL.without(ProtocolFeature.BACKEND_SEND_FD))
    request_.fds = new_fds(1)
    with closing(request_):
        with pytest.raises(LocalProtocolError, match="its file descriptor needs BACKEND_SEND_FD"):
            channel(closed)[0].request(request_)
        refused(deliver(channel(closed)[1], channel()[0].request(request_)))


def test_request_without_descriptor_needs_no_backend_send_fd() -> None:
    closed = agreed(protocol=ALL_PROTOCOL.without(ProtocolFeature.BACKEND_SEND_FD))
    ours, theirs = channel(closed)
    request = VringHostNotifier(0, True, 0, 0)
    assert deliver(theirs, ours.request(request)) == request


def test_looked_up_object_comes_with_the_reply() -> None:
    ours, theirs = channel()
    request = deliver(theirs, ours.request(SharedObjectLookup(UUID_)))
    assert isinstance(request, SharedObjectLookup)
    with new_fd() as fd:
        reply = deliver(ours, theirs.reply(request, 0, [fd.fileno()]))
        assert reply == LookedUpObject(0)
        assert not reply.failed
        with closing(reply):
            assert os.path.sameopenfile(reply.fds[0].fileno(), fd.fileno())


def test_object_that_is_not_there_is_an_error_without_descriptor() -> None:
    ours, theirs = channel()
    request = deliver(theirs, ours.request(SharedObjectLookup(UUID_)))
    reply = deliver(ours, theirs.acknowledge(request, ok=False))
    assert reply == LookedUpObject(1)
    assert reply.failed


def test_front_ends_requests_are_unknown_here() -> None:
    _, theirs = channel()
    event = refused(send(theirs, 11, bytes(8)))
    assert str(event) == "request 11 is refused: its number is not known"


def test_call_is_a_ring_index() -> None:
    ours, _ = channel()
    assert ours.request(VringCall(3)).data == pack(4, VERSION, bytes([3, 0, 0, 0, 0, 0, 0, 0]))


def test_config_change_is_empty() -> None:
    ours, theirs = channel()
    received = deliver(theirs, ours.request(ConfigChange(), need_reply=True))
    assert theirs.acknowledge(received) == (pack(2, VERSION | REPLY, bytes(8)), ())
