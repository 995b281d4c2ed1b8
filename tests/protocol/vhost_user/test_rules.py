"""Rules of vhost-user that implementers get wrong, as far as they concern messages."""

from __future__ import annotations

import struct

import pytest

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.vhost_user import (
    FRONTEND_REQUESTS,
    Ack,
    BackendChannel,
    Config,
    ConfigChange,
    GetConfig,
    GetFeatures,
    GetInflightFd,
    GetVringBase,
    Inflight,
    IotlbMsg,
    IotlbType,
    MemoryRegion,
    Permission,
    ProtocolFeature,
    RemMemReg,
    Request,
    ResetOwner,
    SetFeatures,
    SetMemTable,
    SetStatus,
    SetVringCall,
    SetVringEnable,
    SetVringKick,
    VringBase,
    pack,
)
from protocol.virtio.features import DeviceStatus, Feature
from tests.protocol.vhost_user.wire import (
    ALL_FEATURES,
    ALL_PROTOCOL,
    NEED_REPLY,
    REPLY,
    VERSION,
    agreed,
    ask,
    backend,
    closing,
    deliver,
    feed,
    frontend,
    new_fd,
    new_fds,
    refused,
    send,
)


def test_rule_02_turning_logging_on_is_features_with_bit_30_and_keeps_it_apart() -> None:
    """A session hands out what was turned on, so that its user can tell bit 30 from its absence."""
    session = backend()
    for features in (ALL_FEATURES, ALL_FEATURES.without(Feature.LOG_ALL), Feature.VERSION_1):
        request = ask(session, SetFeatures, SetFeatures(features).encode())
        assert isinstance(request, SetFeatures)
        assert request.features == session.features == features


def test_rule_03_ring_base_holds_both_indices_of_a_packed_ring() -> None:
    session = backend()
    base = 5 | 1 << 15 | 3 << 16 | 1 << 31
    packet = session.reply(ask(session, GetVringBase, bytes(8)), VringBase(0, base))
    assert struct.unpack("=II", packet.data[12:]) == (0, base)


def test_rule_06_call_may_come_again_without_a_descriptor() -> None:
    session, fd = backend(), new_fd()
    first = send(session, SetVringCall, SetVringCall(0).encode(), fds=[fd])
    second = send(session, SetVringCall, SetVringCall(0, no_fd=True).encode())
    assert isinstance(first, SetVringCall)
    assert isinstance(second, SetVringCall)
    assert (first.take_fd(), second.take_fd()) == (fd, None)
    fd.close()


def test_rule_07_status_0_may_come_before_the_ring_base() -> None:
    session = backend()
    assert ask(session, SetStatus, bytes(8)) == SetStatus(DeviceStatus.RESET)
    assert ask(session, GetVringBase, bytes(8)) == GetVringBase(0)
    assert session.features == ALL_FEATURES


def test_rule_08_reset_owner_keeps_protocol_state() -> None:
    session = backend()
    ask(session, ResetOwner)
    assert (session.features, session.protocol_features) == (ALL_FEATURES, ALL_PROTOCOL)
    assert ask(session, GetVringBase, bytes(8), VERSION | NEED_REPLY).reply_owed


def test_rule_08_features_may_be_set_twice() -> None:
    session = backend()
    for features in (Feature.VERSION_1, ALL_FEATURES):
        ask(session, SetFeatures, SetFeatures(features).encode())
    assert session.features == ALL_FEATURES


def test_rule_09_reply_flags_are_exactly_5_whatever_the_request_had() -> None:
    session = backend()
    requests = [
        ask(session, GetFeatures, flags=VERSION),
        ask(session, GetFeatures, flags=VERSION | NEED_REPLY),
        ask(session, GetFeatures, flags=VERSION | NEED_REPLY | 0x50),
    ]
    flags = [session.reply(request, 0).data[4:8] for request in requests]
    assert flags == [struct.pack("=I", 5)] * 3


def test_rule_09_descriptors_come_with_the_first_byte_of_the_header() -> None:
    session, fds = backend(), new_fds(1)
    message = pack(SetVringKick.number, VERSION, SetVringKick(0).encode())
    assert session.bytes_wanted == 12
    assert session.receive(message[:1], fds) == []
    [event] = feed(session, message[1:])
    assert isinstance(event, SetVringKick)
    assert event.fds == fds
    event.close()


@pytest.mark.parametrize("number", [*FRONTEND_REQUESTS, 0, 999, 2**32 - 1])
def test_rule_09_surplus_descriptors_are_closed_on_every_error_path(number: int) -> None:
    for payload in (b"", bytes(3), bytes(8), bytes(40), b"\xff" * 16):
        fds = new_fds(9)
        refused(send(backend(), number, payload, fds=fds))
        assert all(fd.closed for fd in fds)


@pytest.mark.parametrize("size", [0, 1, 8, 256])
def test_rule_10_config_reply_is_exactly_as_long_as_was_asked_for(size: int) -> None:
    session = backend()
    for wrong in (size - 1, size + 1):
        if 0 <= wrong <= 256:
            request = ask(session, GetConfig, GetConfig(0, size).encode())
            with pytest.raises(LocalProtocolError, match="is not answered by"):
                session.reply(request, Config(0, bytes(wrong)))
            session.acknowledge(request, ok=False)
    packet = session.reply(ask(session, GetConfig, GetConfig(0, size).encode()), Config(0, bytes(size)))
    assert len(packet.data) == 12 + 12 + size


def test_rule_10_inflight_and_iotlb_are_padded_on_the_wire() -> None:
    session = backend()
    request = ask(session, GetInflightFd, GetInflightFd(0, 0, 2, 256).encode())
    with new_fd() as fd:
        packet = session.reply(request, Inflight(4096, 0, 2, 256), [fd.fileno()])
    assert len(packet.data) == 12 + 24
    iotlb = IotlbMsg(0, 4096, 0, Permission.READ, IotlbType.UPDATE)
    assert len(frontend().request(iotlb).data) == 12 + 32


def test_rule_11_failure_is_a_non_zero_acknowledgement_and_not_death() -> None:
    session = backend()
    table = SetMemTable(()).encode()
    request = ask(session, SetMemTable, table, VERSION | NEED_REPLY)
    packet = session.acknowledge(request, ok=False)
    assert packet is not None
    assert packet.data == pack(SetMemTable.number, VERSION | REPLY, struct.pack("=Q", 1))
    assert ask(session, SetMemTable, table) == SetMemTable(())


def test_rule_11_refusal_is_a_non_zero_acknowledgement_and_not_death() -> None:
    ours, theirs = frontend(), backend(agreed(protocol=ProtocolFeature.REPLY_ACK))
    request = SetMemTable((MemoryRegion(0, 1, 2),), fds=new_fds(1))
    with closing(request):
        packet = ours.request(request, need_reply=True)
    event = refused(send(theirs, SetMemTable, packet.data[12:], VERSION | NEED_REPLY))
    reply = deliver(ours, theirs.acknowledge(event, ok=False))
    assert reply == Ack(1)
    assert reply.failed
    assert ask(theirs, GetFeatures).reply_owed


def test_rule_12_features_are_asked_for_at_any_time_as_a_barrier() -> None:
    session = backend(agreed(Feature.PROTOCOL_FEATURES, ProtocolFeature.NONE))
    enable = SetVringEnable(0, True).encode()
    for _ in range(3):
        assert session.acknowledge(ask(session, SetVringEnable, enable)) is None
        packet = session.reply(ask(session, GetFeatures), Feature.PROTOCOL_FEATURES)
        assert packet.data[:4] == struct.pack("=I", 1)


def test_rule_12_enable_is_acknowledged_where_asked_for() -> None:
    session = backend()
    request = ask(session, SetVringEnable, bytes(8), VERSION | NEED_REPLY)
    assert session.acknowledge(request) is not None


def test_rule_13_no_waiting_on_the_channel_while_the_front_end_waits() -> None:
    session = backend()
    channel = BackendChannel(session)
    states = [channel.may_wait]
    request = ask(session, GetVringBase, bytes(8))
    states.append(channel.may_wait)
    assert channel.request(ConfigChange(), need_reply=True).data  # sending is no waiting
    session.reply(request, VringBase(0, 0))
    states.append(channel.may_wait)
    assert states == [True, False, True]


def test_rule_14_unknown_request_is_answered_with_an_error_if_asked_for() -> None:
    session = backend()
    event = refused(send(session, 999, bytes(100), VERSION | NEED_REPLY))
    assert str(event) == "request 999 is refused: its number is not known"
    packet = session.acknowledge(event, ok=False)
    assert packet is not None
    assert packet.data == pack(999, VERSION | REPLY, struct.pack("=Q", 1))


def test_rule_14_unknown_request_is_otherwise_ignored() -> None:
    session = backend()
    assert session.acknowledge(refused(send(session, 999, bytes(100))), ok=False) is None
    without = backend(agreed(protocol=ALL_PROTOCOL.without(ProtocolFeature.REPLY_ACK)))
    event = refused(send(without, 999, bytes(100), VERSION | NEED_REPLY))
    assert without.acknowledge(event, ok=False) is None


def test_rule_16_region_is_removed_by_guest_address_user_address_and_size() -> None:
    region = MemoryRegion(0x1000, 0x2000, 0x3000, 0x4000)
    assert region.is_same_range(MemoryRegion(0x1000, 0x2000, 0x3000, 0))
    for other in (
        MemoryRegion(0, 0x2000, 0x3000, 0x4000),
        MemoryRegion(0x1000, 0, 0x3000, 0x4000),
        MemoryRegion(0x1000, 0x2000, 0, 0x4000),
    ):
        assert not region.is_same_range(other)


def test_rule_16_descriptor_that_comes_with_rem_mem_reg_is_closed_unused() -> None:
    payload = RemMemReg(MemoryRegion(0x1000, 0x2000, 0x3000)).encode()
    fd = new_fd()
    request = send(backend(), RemMemReg, payload, fds=[fd])
    assert isinstance(request, Request)
    assert request.fds == ()
    assert fd.closed
    fds = new_fds(2)
    refused(send(backend(), RemMemReg, payload, fds=fds))
    assert all(each.closed for each in fds)
    with closing(ours := RemMemReg(MemoryRegion(0, 1, 2), fds=new_fds(1))), pytest.raises(LocalProtocolError):
        frontend().request(ours)


def test_lost_framing_ends_the_connection() -> None:
    with pytest.raises(RemoteProtocolError):
        backend().receive(b"GET / HTTP/1")
