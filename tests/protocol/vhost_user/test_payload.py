"""Payload layouts, byte for byte."""

from __future__ import annotations

import struct
from uuid import UUID

import pytest

from protocol.vhost_user import (
    Ack,
    AddMemReg,
    Config,
    ConfigFlag,
    GetConfig,
    GetSharedObject,
    Inflight,
    IotlbMsg,
    IotlbType,
    MapFlag,
    MappedTable,
    MemoryRegion,
    Message,
    MigrationPhase,
    NetSetMtu,
    Permission,
    SendRarp,
    SetConfig,
    SetDeviceStateFd,
    SetInflightFd,
    SetLogBase,
    SetMemTable,
    SetVringAddr,
    SetVringBase,
    SetVringCall,
    SetVringEnable,
    SetVringEndian,
    SetVringKick,
    SetVringNum,
    SharedMemory,
    ShmemMap,
    TransferChannel,
    TransferDirection,
    VringAddressFlag,
    VringBase,
    VringHostNotifier,
    VringKick,
    XenMapFlag,
    XenMapping,
)

REGION = MemoryRegion(0x100000000, 0x80000000, 0x7F0000000000, 0x1000)
REGION_BYTES = struct.pack("=4Q", 0x100000000, 0x80000000, 0x7F0000000000, 0x1000)
XEN_REGION = MemoryRegion(1, 2, 3, 4, XenMapping(XenMapFlag.FOREIGN | XenMapFlag.NO_ADVANCE_MAP, 5))

LAYOUTS = [
    (Ack(0x1122334455667788), struct.pack("=Q", 0x1122334455667788)),
    (NetSetMtu(1500), struct.pack("=Q", 1500)),
    (SendRarp(b"\x52\x54\0\x12\x34\x56"), b"\x52\x54\0\x12\x34\x56\0\0"),
    (SetVringNum(1, 256), struct.pack("=II", 1, 256)),
    (SetVringBase(1, 0x80050003), struct.pack("=II", 1, 0x80050003)),
    (VringBase(1, 0x80050003), struct.pack("=II", 1, 0x80050003)),
    (VringKick(2), struct.pack("=II", 2, 0)),
    (SetVringEnable(3, True), struct.pack("=II", 3, 1)),
    (SetVringEndian(3, True), struct.pack("=II", 3, 1)),
    (SetVringKick(0xFF), struct.pack("=Q", 0xFF)),
    (SetVringCall(2, no_fd=True), struct.pack("=Q", 0x102)),
    (TransferChannel(error=3, no_fd=True), struct.pack("=Q", 0x103)),
    (SetVringAddr(1, VringAddressFlag.LOG, 2, 3, 4, 5), struct.pack("=II4Q", 1, 1, 2, 3, 4, 5)),
    (SetMemTable(()), struct.pack("=II", 0, 0)),
    (SetMemTable((REGION, REGION)), struct.pack("=II", 2, 0) + REGION_BYTES * 2),
    (MappedTable((REGION,)), struct.pack("=II", 1, 0) + REGION_BYTES),
    (AddMemReg(REGION), bytes(8) + REGION_BYTES),
    (SetLogBase(4096, 8192), struct.pack("=QQ", 4096, 8192)),
    (
        IotlbMsg(1, 2, 3, Permission.WRITE, IotlbType.INVALIDATE),
        struct.pack("=QQQBB6x", 1, 2, 3, 2, 3),
    ),
    (GetConfig(8, 4, ConfigFlag.MIGRATION), struct.pack("=III", 8, 4, 1) + bytes(4)),
    (SetConfig(8, b"abcd"), struct.pack("=III", 8, 4, 0) + b"abcd"),
    (Config(8, b"abcd"), struct.pack("=III", 8, 4, 0) + b"abcd"),
    (SetInflightFd(0x10000, 0x1000, 2, 256), struct.pack("=QQHH4x", 0x10000, 0x1000, 2, 256)),
    (Inflight(0x10000, 0x1000, 2, 256), struct.pack("=QQHH4x", 0x10000, 0x1000, 2, 256)),
    (VringHostNotifier(2, True, 4096, 8192), struct.pack("=QQQ", 0x102, 4096, 8192)),
    (
        GetSharedObject(UUID("00112233-4455-6677-8899-aabbccddeeff")),
        bytes.fromhex("00112233445566778899aabbccddeeff"),
    ),
    (SetDeviceStateFd(TransferDirection.LOAD, MigrationPhase.STOPPED), struct.pack("=II", 1, 0)),
    (ShmemMap(7, 1, 2, 3, MapFlag.READ_WRITE), struct.pack("=B7x4Q", 7, 1, 2, 3, 1)),
    (SharedMemory((0x1000, 0, 0x2000)), struct.pack("=II256Q", 2, 0, 0x1000, 0, 0x2000, *[0] * 253)),
]


@pytest.mark.parametrize(("message", "payload"), LAYOUTS, ids=lambda value: type(value).__name__)
def test_layout(message: Message, payload: bytes) -> None:
    assert message.encode() == payload
    assert type(message).decode(payload) == message


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        (SetMemTable((XEN_REGION,)), struct.pack("=II4QII", 1, 0, 1, 2, 3, 4, 0x101, 5)),
        (AddMemReg(XEN_REGION), struct.pack("=Q4QII", 0, 1, 2, 3, 4, 0x101, 5)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layout_with_xen(message: Message, payload: bytes) -> None:
    assert message.encode(xen=True) == payload
    assert type(message).decode(payload, xen=True) == message


@pytest.mark.parametrize(
    ("message", "padding"),
    [(IotlbMsg(1, 2, 3, Permission.READ, IotlbType.UPDATE), 6), (SetInflightFd(1, 2, 3, 4), 4)],
    ids=lambda value: type(value).__name__,
)
def test_padding_may_be_missing_or_dirty(message: Message, padding: int) -> None:
    """A C compiler leaves in it what was on the stack."""
    payload = message.encode()
    assert type(message).decode(payload[:-padding]) == message
    assert type(message).decode(payload[:-padding] + b"\xff" * padding) == message


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (SetMemTable((REGION,)), slice(4, 8)),
        (AddMemReg(REGION), slice(0, 8)),
        (VringKick(2), slice(4, 8)),
        (SendRarp(bytes(6)), slice(6, 8)),
        (ShmemMap(7, 1, 2, 3), slice(1, 8)),
        (SetVringKick(1), slice(2, 8)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_reserved_bytes_are_ignored(message: Message, field: slice) -> None:
    payload = bytearray(message.encode())
    payload[field] = b"\xff" * (field.stop - field.start)
    assert type(message).decode(bytes(payload)) == message


def test_room_for_more_regions_is_ignored() -> None:
    """User Mode Linux sends the whole array of its C structure, whatever the count."""
    message = SetMemTable((REGION,))
    assert SetMemTable.decode(message.encode() + REGION_BYTES) == message


@pytest.mark.parametrize(
    ("kind", "payload", "text"),
    [
        (SetMemTable, struct.pack("=II", 1, 0), "stream read less"),
        (SetMemTable, struct.pack("=II", 2**32 - 1, 0) + REGION_BYTES * 8, "stream read less"),
        (SetMemTable, struct.pack("=II", 9, 0) + REGION_BYTES * 9, "296 bytes"),
        (GetConfig, struct.pack("=III", 0, 5, 0) + bytes(4), "stream read less"),
        (GetConfig, struct.pack("=III", 0, 3, 0) + bytes(4), "expected end of stream"),
        (GetConfig, struct.pack("=III", 0, 2**32 - 1, 0), "4294967295 bytes of configuration space"),
        (SetConfig, struct.pack("=III", 0, 257, 0) + bytes(257), "269 bytes"),
        (IotlbMsg, struct.pack("=QQQBB6x", 0, 0, 0, 0, 5), "5 is not a valid IotlbType"),
        (SetDeviceStateFd, struct.pack("=II", 2, 0), "2 is not a valid TransferDirection"),
        (SetDeviceStateFd, struct.pack("=II", 0, 1), "1 is not a valid MigrationPhase"),
        (SetVringEndian, struct.pack("=II", 0, 2), "2 is not a byte order"),
    ],
)
def test_contradictory_payload_is_refused(kind: type[Message], payload: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        kind.decode(payload)
