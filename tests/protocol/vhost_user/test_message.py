"""All messages: they survive the wire, agree with the specification, and print well."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError
from protocol.vhost_user import (
    BACKEND_REQUESTS,
    FRONTEND_REQUESTS,
    Ack,
    BackendMessage,
    BackendRequest,
    ConfigFlag,
    FrontendMessage,
    FrontendRequest,
    GetConfig,
    GetFeatures,
    GetSharedObject,
    IotlbMsg,
    IotlbType,
    MemoryRegion,
    Message,
    NetSetMtu,
    Permission,
    ProtocolFeature,
    Reply,
    Request,
    SendRarp,
    SetConfig,
    SetFeatures,
    SetMemTable,
    SetProtocolFeatures,
    SetStatus,
    SetVringAddr,
    SetVringKick,
    SetVringNum,
    SharedMemory,
    VringAddressFlag,
    VringBase,
    XenMapFlag,
    XenMapping,
    describe,
)
from protocol.virtio.features import DeviceStatus, Feature
from tests.protocol.vhost_user.samples import FIELDS, messages
from tests.protocol.vhost_user.wire import closing, fewer_examples, new_fd, new_fds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ALL_REQUESTS = [*FRONTEND_REQUESTS.values(), *BACKEND_REQUESTS.values()]
REPLY_KINDS = [kind for kind in FIELDS if issubclass(kind, Reply)]


def numbered(base: type[Request]) -> Iterator[type[Request]]:
    """Yield the product's classes below `base` that have a number of their own."""
    for kind in base.__subclasses__():
        if "number" in vars(kind) and kind.__module__.startswith("protocol."):
            yield kind
        yield from numbered(kind)


@pytest.mark.parametrize(
    ("base", "table"), [(FrontendMessage, FRONTEND_REQUESTS), (BackendMessage, BACKEND_REQUESTS)]
)
def test_each_class_with_a_number_is_in_its_table(
    base: type[Request], table: Mapping[int, type[Request]]
) -> None:
    kinds = sorted(numbered(base), key=lambda kind: kind.number)
    assert list(table.items()) == [(kind.number, kind) for kind in kinds]


def test_there_is_a_class_for_every_front_end_request() -> None:
    assert sorted(FRONTEND_REQUESTS) == list(range(1, len(FrontendRequest) + 1)) == sorted(FrontendRequest)


def test_there_is_a_class_for_every_back_end_request() -> None:
    assert sorted(BACKEND_REQUESTS) == list(range(1, len(BackendRequest) + 1)) == sorted(BackendRequest)


def test_every_class_of_a_reply_is_tried_here() -> None:
    in_use = {kind.reply for kind in ALL_REQUESTS} | {
        kind.postcopy_reply for kind in ALL_REQUESTS if kind.postcopy_reply
    }
    assert in_use == set(REPLY_KINDS)


@pytest.mark.parametrize("kind", FIELDS)
@fewer_examples
@given(st.data())
def test_decode_reverses_encode(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(messages(kind))
    assert kind.decode(message.encode()) == message


@pytest.mark.parametrize("kind", FIELDS)
@fewer_examples
@given(st.data())
def test_any_bytes_of_its_size_decode_or_are_refused_in_one_line(
    kind: type[Message], data: st.DataObject
) -> None:
    size = data.draw(st.sampled_from(list(kind.payload.sizes)))
    payload = data.draw(st.binary(min_size=size, max_size=size))
    message = why = None
    try:
        message = kind.decode(payload)
    except ValueError as error:
        why = str(error).splitlines()
    if message is None:
        assert why is not None
        assert len(why) == 1
    else:
        assert kind.decode(message.encode()) == message


@pytest.mark.parametrize("kind", FIELDS)
@fewer_examples
@given(st.data())
def test_any_other_size_is_refused(kind: type[Message], data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([size for size in range(5000) if size not in kind.payload.sizes]))
    with pytest.raises(ValueError, match=f"^{size} bytes of payload do not fit"):
        kind.decode(bytes(size))


@pytest.mark.parametrize("kind", FIELDS)
@fewer_examples
@given(st.data())
def test_repr_and_description_are_one_line_with_every_field(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(messages(kind))
    for text in (repr(message), describe(message)):
        assert len(text.splitlines()) == 1
        assert all(f"{name}=" in text for name in vars(message) if name in kind.__match_args__)


FACTS = {
    "GET_FEATURES": (0, "-", "U64", ""),
    "SET_FEATURES": (8, "-", "ack", ""),
    "SET_OWNER": (0, "-", "ack", ""),
    "RESET_OWNER": (0, "-", "ack", ""),
    "SET_LOG_BASE": (16, "1", "always", "1"),
    "SET_LOG_FD": (0, "1", "ack", ""),
    "SET_VRING_NUM": (8, "-", "ack", ""),
    "SET_VRING_ADDR": (40, "-", "ack", ""),
    "SET_VRING_BASE": (8, "-", "ack", ""),
    "GET_VRING_BASE": (8, "-", "VS", ""),
    "SET_VRING_KICK": (8, "0/1", "ack", ""),
    "SET_VRING_CALL": (8, "0/1", "ack", ""),
    "SET_VRING_ERR": (8, "0/1", "ack", ""),
    "GET_PROTOCOL_FEATURES": (0, "-", "U64", "feature 30"),
    "SET_PROTOCOL_FEATURES": (8, "-", "ack", "feature 30"),
    "GET_QUEUE_NUM": (0, "-", "U64", "0"),
    "SET_VRING_ENABLE": (8, "-", "ack", "feature 30"),
    "SEND_RARP": (8, "-", "ack", "2"),
    "NET_SET_MTU": (8, "-", "ack", "4"),
    "SET_BACKEND_REQ_FD": (0, "1", "ack", "5"),
    "IOTLB_MSG": (32, "-", "always", "feature 33"),
    "SET_VRING_ENDIAN": (8, "-", "ack", "6"),
    "CLOSE_CRYPTO_SESSION": (8, "-", "ack", "7"),
    "POSTCOPY_ADVISE": (0, "-", "none", "8"),
    "POSTCOPY_LISTEN": (0, "-", "ack", "8"),
    "POSTCOPY_END": (0, "-", "always", "8"),
    "GET_INFLIGHT_FD": (24, "-", "INFL", "12"),
    "SET_INFLIGHT_FD": (24, "1", "ack", "12"),
    "GPU_SET_SOCKET": (0, "1", "ack", ""),
    "RESET_DEVICE": (0, "-", "ack", "13"),
    "VRING_KICK": (8, "-", "ack", "14 5 3"),
    "GET_MAX_MEM_SLOTS": (0, "-", "U64", "15"),
    "ADD_MEM_REG": (40, "1", "ack", "15"),
    "REM_MEM_REG": (40, "-", "ack", "15"),
    "SET_STATUS": (8, "-", "ack", "16"),
    "GET_STATUS": (0, "-", "U64", "16"),
    "GET_SHARED_OBJECT": (16, "-", "none", "18"),
    "SET_DEVICE_STATE_FD": (8, "1", "U64", "19"),
    "CHECK_DEVICE_STATE": (0, "-", "always", "19"),
    "GET_SHMEM_CONFIG": (0, "-", "SHM", "22"),
    "GET_VRING_BASE_SKIP_DRAIN": (8, "-", "VS", "23 20 12"),
}
"""Bytes, descriptors, reply and needed bits of the front-end requests whose size does not vary."""

REPLY_SIZES = {"U64": 8, "always": 8, "ack": 8, "VS": 8, "INFL": 24, "SHM": 2056, "none": 0}


def required_bits(kind: type[Request]) -> set[str]:
    feature = {f"feature {bit}" for bit in range(64) if kind.requirement.feature >> bit & 1}
    return feature | {str(bit) for bit in range(64) if kind.requirement.protocol >> bit & 1}


@pytest.mark.parametrize("name", FACTS)
@fewer_examples
@given(st.data())
def test_front_end_request_is_as_specified(name: str, data: st.DataObject) -> None:
    kind = FRONTEND_REQUESTS[FrontendRequest[name]]
    size, fds, reply, bits = FACTS[name]
    needed = {bits} if bits.startswith("feature") else set(bits.split())
    assert len(data.draw(messages(kind)).encode()) == size
    assert set(kind.fd_counts) == {"-": {0}, "1": {1}, "0/1": {0, 1}}[fds]
    assert len(data.draw(messages(kind.reply)).encode()) == REPLY_SIZES[reply]
    assert kind.is_always_replied() == (reply != "ack")
    assert required_bits(kind) == needed


BACKEND_FACTS = {
    "IOTLB_MSG": (32, "-", "feature 33"),
    "CONFIG_CHANGE_MSG": (0, "-", "9"),
    "VRING_HOST_NOTIFIER_MSG": (24, "0/1", "11"),
    "VRING_CALL": (8, "-", "14 3"),
    "VRING_ERR": (8, "-", "14 3"),
    "SHARED_OBJECT_ADD": (16, "-", "18"),
    "SHARED_OBJECT_REMOVE": (16, "-", "18"),
    "SHARED_OBJECT_LOOKUP": (16, "-", "18"),
    "SHMEM_MAP": (40, "1", "22"),
    "SHMEM_UNMAP": (40, "-", "22"),
}


@pytest.mark.parametrize("name", BACKEND_FACTS)
@fewer_examples
@given(st.data())
def test_back_end_request_is_as_specified(name: str, data: st.DataObject) -> None:
    kind = BACKEND_REQUESTS[BackendRequest[name]]
    size, fds, bits = BACKEND_FACTS[name]
    needed = {bits} if bits.startswith("feature") else set(bits.split())
    assert len(data.draw(messages(kind)).encode()) == size
    assert set(kind.fd_counts) == {"-": {0}, "1": {1}, "0/1": {0, 1}}[fds]
    assert required_bits(kind) == needed | {"5"}


@given(st.data())
def test_sizes_that_vary(data: st.DataObject) -> None:
    table = data.draw(messages(SetMemTable))
    assert isinstance(table, SetMemTable)
    assert len(table.encode()) == 8 + 32 * len(table.regions)
    query = data.draw(messages(GetConfig))
    assert isinstance(query, GetConfig)
    assert len(query.encode()) == 12 + query.size
    write = data.draw(messages(SetConfig))
    assert isinstance(write, SetConfig)
    assert len(write.encode()) == 12 + len(write.data)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (GetFeatures(), "GET_FEATURES"),
        (GetFeatures(need_reply=True), "GET_FEATURES need_reply"),
        (
            SetFeatures(Feature.VERSION_1 | Feature.EVENT_IDX | Feature(0x20)),
            "SET_FEATURES features=bit 5|EVENT_IDX|VERSION_1",
        ),
        (
            SetProtocolFeatures(ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK),
            "SET_PROTOCOL_FEATURES features=MQ|REPLY_ACK",
        ),
        (SetStatus(DeviceStatus.RESET), "SET_STATUS status=RESET"),
        (SetVringNum(1, 256), "SET_VRING_NUM index=1 num=256"),
        (
            SetVringAddr(0, VringAddressFlag.LOG, 0x7F0000001000, 0x7F0000003000, 0x7F0000002000, 0x3000),
            "SET_VRING_ADDR index=0 flags=LOG descriptor=0x7f0000001000 used=0x7f0000003000"
            " available=0x7f0000002000 log=0x3000",
        ),
        (
            SetMemTable((MemoryRegion(0, 0x80000000, 0x7F0000000000, 0x1000),)),
            "SET_MEM_TABLE regions=[guest 0x0 size 0x80000000 user 0x7f0000000000 offset 0x1000]",
        ),
        (
            IotlbMsg(0x1000, 0x2000, 0x3000, Permission.READ | Permission.WRITE, IotlbType.UPDATE),
            "IOTLB_MSG iova=0x1000 size=0x2000 user_address=0x3000 permission=READ|WRITE type=UPDATE",
        ),
        (SetConfig(4, b"\x01\xff", ConfigFlag.MIGRATION), "SET_CONFIG offset=4 data=01 ff flags=MIGRATION"),
        (SendRarp(bytes(6)), "SEND_RARP mac=00 00 00 00 00 00"),
        (
            GetSharedObject(UUID("12345678-1234-5678-1234-567812345678")),
            "GET_SHARED_OBJECT uuid=12345678-1234-5678-1234-567812345678",
        ),
        (VringBase(0, 7, answers=GetFeatures()), "reply to GET_FEATURES index=0 base=7"),
        (Ack(0), "Ack value=0"),
    ],
)
def test_description(message: Message, text: str) -> None:
    assert describe(message) == text


def test_description_counts_descriptors() -> None:
    message = SetVringKick(3, fds=new_fds(1))
    with closing(message):
        assert describe(message) == "SET_VRING_KICK index=3 no_fd=False fds=1"
        assert repr(message) == "SetVringKick(index=3, no_fd=False, fds=1)"


def test_description_of_many_bytes_is_cut() -> None:
    assert describe(SetConfig(0, bytes(100))).endswith("00 00... (100 bytes) flags=DRIVER")


def test_taken_descriptors_are_the_takers() -> None:
    fd = new_fd()
    message = SetVringKick(0, fds=(fd,))
    assert message.take_fd() is fd
    assert message.take_fd() is None
    message.close()
    assert not fd.closed
    fd.close()


def test_closing_a_message_closes_its_descriptors() -> None:
    fds = new_fds(3)
    message = SetMemTable((MemoryRegion(0, 1, 2),) * 3, fds=fds)
    message.close()
    message.close()
    assert all(fd.closed for fd in fds)


def test_value_that_does_not_fit_is_our_error() -> None:
    for message in (
        NetSetMtu(2**64),
        SetVringNum(-1, 0),
        SetVringKick(256),
        GetConfig(0, 257),
        SetConfig(0, bytes(257)),
        SetMemTable((MemoryRegion(0, 0, 0),) * 9),
        SharedMemory((0,) * 257),
        SendRarp(bytes(7)),
    ):
        with pytest.raises(LocalProtocolError):
            message.encode()


def test_region_of_xen_has_two_more_fields() -> None:
    region = MemoryRegion(0x1000, 0x2000, 0x3000, 0, XenMapping(XenMapFlag.GRANT, 7))
    message = SetMemTable((region,))
    payload = message.encode(xen=True)
    assert len(payload) == 8 + 40
    assert SetMemTable.decode(payload, xen=True) == message
    assert str(region).endswith(", xen domain 7 GRANT")
    with pytest.raises(ValueError, match="48 bytes"):
        SetMemTable.decode(payload)


def test_region_without_xen_fields_is_our_error_where_xen_was_negotiated() -> None:
    with pytest.raises(LocalProtocolError, match="is not a XenMapping"):
        SetMemTable((MemoryRegion(0, 1, 2),)).encode(xen=True)
