"""The formats of a trace: lines for people, and JSON for programs."""

from __future__ import annotations

import json
import os
from uuid import UUID

import pytest

from protocol.fds import OwnedFd
from protocol.io import EventFd
from protocol.vhost_user import (
    FRONTEND_REQUESTS,
    AddMemReg,
    Features,
    Frame,
    GetConfig,
    GetFeatures,
    GetSharedObject,
    MemoryRegion,
    ObservedNegotiation,
    Observer,
    ProtocolFeature,
    Request,
    SetFeatures,
    SetMemTable,
    SetProtocolFeatures,
    SetVringKick,
)
from protocol.virtio.features import Feature
from vhost_user.trace import Json, Message, Note, Side, Text

START = 1_700_000_000.0


def seen(request: Request, *fds: OwnedFd, negotiation: ObservedNegotiation | None = None) -> Message:
    """Return what a trace tells of `request`."""
    negotiation = negotiation or ObservedNegotiation(
        Feature(-1 & (1 << 64) - 1), ProtocolFeature((1 << 24) - 1), protocol_features=ProtocolFeature.CONFIG
    )
    frame = Frame(request.number, 1, request.encode(), list(fds))
    observed = Observer(FRONTEND_REQUESTS, negotiation).request(frame)
    return Message(1, Side.FRONTEND, False, frame, observed, False, None, START + 1.5)


def answered() -> Message:
    """Return what a trace tells of a reply to GET_FEATURES."""
    observer = Observer(FRONTEND_REQUESTS, ObservedNegotiation())
    observer.request(Frame(1, 1, b""))
    frame = Frame(1, 5, Features(Feature.VERSION_1 | 1 << 9).encode())
    return Message(7, Side.BACKEND, False, frame, observer.reply(frame), True, 0.00025, START + 2)


def text(event: Message | Note, device: str = "") -> str:
    return Text(START, device)(event)


def test_text_of_a_request() -> None:
    assert text(seen(GetFeatures())) == "   1.500000 #1 > GET_FEATURES"


def test_text_of_a_reply_has_its_time() -> None:
    assert text(answered()) == "   2.000000 #7 < reply to GET_FEATURES features=bit 9|VERSION_1 [0.250 ms]"


@pytest.mark.parametrize("form", [Text(START, "blk"), Json("blk")])
def test_bits_of_a_known_device_have_names(form: Text | Json) -> None:
    assert "features=FLUSH|VERSION_1" in form(answered())
    assert "SEG_MAX|MQ|bit 20" in form(seen(SetFeatures(Feature(1 << 2 | 1 << 12 | 1 << 20))))


@pytest.mark.parametrize(
    ("device", "names"),
    [
        ("blk", "SCSI|LIFETIME"),
        ("console", "bit 7|bit 15"),
        ("gpio", "bit 7|bit 15"),
        ("i2c", "bit 7|bit 15"),
        ("net", "GUEST_TSO4|MRG_RXBUF"),
        ("vsock", "bit 7|bit 15"),
    ],
)
def test_bits_have_the_names_of_their_device(device: str, names: str) -> None:
    assert f"features={names}|VERSION_1" in text(
        seen(SetFeatures(Feature(1 << 7 | 1 << 15 | 1 << 32))), device
    )


def test_bits_of_other_words_are_not_taken_for_the_devices() -> None:
    message = seen(SetProtocolFeatures(ProtocolFeature(1 << 30 | 1)))
    assert "features=MQ|bit 30" in text(message, "blk")


def test_text_names_files() -> None:
    with EventFd.create() as kick, OwnedFd(os.memfd_create("guest ram")) as memory:
        line = text(seen(SetVringKick(0), kick))
        assert line.startswith("   1.500000 #1 > SET_VRING_KICK index=0 no_fd=False fds=1 (eventfd ")
        same, other = text(seen(SetVringKick(0), kick)), EventFd.create()
        with other:
            assert line == same != text(seen(SetVringKick(0), other))
        region = MemoryRegion(0, 4096, 0x7F0000000000, 0x1000)
        assert text(seen(SetMemTable((region,)), memory)).endswith(
            "regions=[guest 0x0 size 0x1000 user 0x7f0000000000 offset 0x1000] fds=1 (guest ram)"
        )


def test_text_says_what_is_wrong_and_shows_what_is_not_understood() -> None:
    frame = Frame(8, 1, bytes(range(70)))
    observed = Observer(FRONTEND_REQUESTS, ObservedNegotiation()).request(frame)
    line = text(Message(1, Side.BACKEND, True, frame, observed, False, None, START))
    assert line.startswith("   0.000000 #1 channel < SET_VRING_NUM flags=0x1 size=70 fds=0 00 01 02 03")
    assert "3e 3f... (wrong: 70 bytes of payload do not fit" in line


def test_text_of_a_note() -> None:
    assert text(Note(3, "something happened", time=START)) == "   0.000000 #3 - something happened"
    assert text(Note(3, "2 bytes", b"\x01\xff", START)) == "   0.000000 #3 - 2 bytes 01 ff"


def test_json_of_a_request() -> None:
    with OwnedFd(os.memfd_create("guest ram")) as memory:
        region = MemoryRegion(0x1000, 0x2000, 0x3000, 0x4000)
        entry = json.loads(Json()(seen(AddMemReg(region), memory)))
    payload = entry.pop("payload")
    assert bytes.fromhex(payload) == AddMemReg(region).encode()
    assert entry == {
        "time": "2023-11-14T22:13:21.500000+00:00",
        "connection": 1,
        "from": "front-end",
        "channel": False,
        "kind": "request",
        "message": "ADD_MEM_REG",
        "text": "ADD_MEM_REG region=guest 0x1000 size 0x2000 user 0x3000 offset 0x4000 fds=1",
        "number": 37,
        "flags": 1,
        "fields": {
            "region": {
                "guest_address": 0x1000,
                "size": 0x2000,
                "user_address": 0x3000,
                "mmap_offset": 0x4000,
                "xen": None,
            }
        },
        "fds": ["guest ram"],
        "seconds": None,
        "problem": "it needs CONFIGURE_MEM_SLOTS, which was not negotiated",
    }


def test_json_of_a_reply() -> None:
    entry = json.loads(Json()(answered()))
    assert (entry["kind"], entry["from"], entry["message"]) == ("reply", "back-end", "GET_FEATURES")
    assert (entry["fields"], entry["seconds"]) == ({"features": "bit 9|VERSION_1"}, 0.00025)
    assert (entry["connection"], entry["problem"]) == (7, None)


def test_json_of_values_of_other_kinds() -> None:
    uuid = UUID(int=1)
    assert json.loads(Json()(seen(GetSharedObject(uuid))))["fields"] == {"uuid": str(uuid)}
    fields = json.loads(Json()(seen(GetConfig(0, 4))))["fields"]
    assert fields == {"offset": 0, "size": 4, "flags": "DRIVER"}


def test_json_of_a_note() -> None:
    assert json.loads(Json()(Note(3, "2 bytes", b"\x01\xff", START))) == {
        "time": "2023-11-14T22:13:20.000000+00:00",
        "connection": 3,
        "note": "2 bytes",
        "data": "01ff",
    }
