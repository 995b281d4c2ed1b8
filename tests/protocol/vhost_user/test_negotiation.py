"""The negotiation, and the checks that depend on it."""

from __future__ import annotations

import pytest

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.vhost_user import (
    AddMemReg,
    BackendSession,
    GetProtocolFeatures,
    MappedTable,
    MemoryRegion,
    PostcopyEnd,
    PostcopyListen,
    ProtocolFeature,
    SetFeatures,
    SetMemTable,
    SetProtocolFeatures,
)
from protocol.virtio.features import Feature
from tests.protocol.vhost_user.wire import (
    ALL_FEATURES,
    ALL_PROTOCOL,
    ask,
    backend,
    closing,
    deliver,
    frontend,
    new_fds,
    refused,
    send,
)


def test_negotiation_is_remembered() -> None:
    session = BackendSession(ALL_FEATURES, ALL_PROTOCOL)
    assert (session.features, session.protocol_features) == (Feature.NONE, ProtocolFeature.NONE)
    features = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES
    ask(session, SetFeatures, SetFeatures(features).encode())
    ask(session, SetProtocolFeatures, SetProtocolFeatures(ProtocolFeature.MQ).encode())
    assert (session.features, session.protocol_features) == (features, ProtocolFeature.MQ)


def test_features_that_were_not_offered_are_refused() -> None:
    session = BackendSession(Feature.PROTOCOL_FEATURES, ProtocolFeature.MQ)
    event = refused(send(session, SetFeatures, SetFeatures(Feature.VERSION_1 | Feature(1)).encode()))
    assert event.reason == "features bit 0|VERSION_1 were not offered"
    payload = SetProtocolFeatures(ProtocolFeature.CONFIG).encode()
    event = refused(send(session, SetProtocolFeatures, payload))
    assert event.reason == "protocol features CONFIG were not offered"
    assert (session.features, session.protocol_features) == (Feature.NONE, ProtocolFeature.NONE)


def test_rule_23_features_that_qemu_passes_on_unasked_are_accepted() -> None:
    session = BackendSession(Feature.PROTOCOL_FEATURES, ProtocolFeature.NONE)
    passed = Feature.INDIRECT_DESC | Feature.EVENT_IDX | Feature.RING_RESET
    ask(session, SetFeatures, SetFeatures(passed).encode())
    assert session.features == passed


def test_protocol_features_need_the_feature() -> None:
    with pytest.raises(LocalProtocolError, match="only with the feature PROTOCOL_FEATURES"):
        BackendSession(Feature.VERSION_1, ProtocolFeature.MQ)
    session = BackendSession(Feature.VERSION_1, ProtocolFeature.NONE)
    refused(send(session, GetProtocolFeatures))


@pytest.mark.parametrize("without", [ProtocolFeature.BACKEND_REQ, ProtocolFeature.REPLY_ACK])
def test_inband_notifications_without_what_they_need_end_the_connection(without: ProtocolFeature) -> None:
    session = BackendSession(ALL_FEATURES, ALL_PROTOCOL)
    with pytest.raises(RemoteProtocolError, match=rf"INBAND_NOTIFICATIONS was turned on without {without}$"):
        send(session, SetProtocolFeatures, SetProtocolFeatures(ALL_PROTOCOL.without(without)).encode())
    with pytest.raises(RemoteProtocolError, match="given up after an earlier error"):
        session.receive(b"")


def test_inband_notifications_with_what_they_need_are_accepted() -> None:
    session = BackendSession(ALL_FEATURES, ALL_PROTOCOL)
    inband = ProtocolFeature.INBAND_NOTIFICATIONS | ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK
    ask(session, SetProtocolFeatures, SetProtocolFeatures(inband).encode())
    assert session.protocol_features == inband


def test_memory_regions_have_the_fields_of_xen_once_negotiated() -> None:
    session = BackendSession(ALL_FEATURES, ALL_PROTOCOL | ProtocolFeature.XEN_MMAP)
    plain = bytes(8) + bytes(32)
    payload = SetProtocolFeatures(ALL_PROTOCOL | ProtocolFeature.XEN_MMAP).encode()
    ask(session, SetProtocolFeatures, payload)
    assert refused(send(session, AddMemReg, plain, fds=new_fds(1))).reason.startswith("40 bytes")
    event = send(session, AddMemReg, plain + bytes(8), fds=new_fds(1))
    assert isinstance(event, AddMemReg)
    assert event.region.xen is not None
    event.close()


def test_memory_table_is_answered_with_addresses_in_postcopy() -> None:
    ours, theirs = frontend(), backend()
    region = MemoryRegion(0, 4096, 0x1000)
    with closing(table := SetMemTable((region,), fds=new_fds(1))):
        deliver(theirs, ours.request(PostcopyListen()))
        received = deliver(theirs, ours.request(table))
        assert isinstance(received, SetMemTable)
        assert received.reply_owed
        mapped = MappedTable((MemoryRegion(0, 4096, 0x7F0000000000),))
        assert deliver(ours, theirs.reply(received, mapped)) == mapped
        received.close()
        acknowledgement = deliver(theirs, ours.request(SetMemTable(())))
        assert theirs.acknowledge(acknowledgement) is None
        end = deliver(theirs, ours.request(PostcopyEnd()))
        deliver(ours, theirs.acknowledge(end))
        after = deliver(theirs, ours.request(table))
        assert isinstance(after, SetMemTable)
        assert theirs.acknowledge(after) is None
        after.close()
