"""Words of flags: unknown bits stay, known bits have names; the numbers are virtio's."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.vhost_user import ProtocolFeature
from protocol.virtio.features import DeviceStatus, Feature
from protocol.virtio.ids import DeviceId

WORDS = st.integers(0, 2**64 - 1)


@given(WORDS)
def test_every_bit_is_kept(word: int) -> None:
    assert int(Feature(word)) == word
    assert isinstance(Feature(word) | Feature.VERSION_1, Feature)


@given(WORDS, WORDS)
def test_without_leaves_the_others(word: int, others: int) -> None:
    left = Feature(word).without(others)
    assert isinstance(left, Feature)
    assert int(left) == word & ~others


@given(WORDS)
def test_text_names_every_bit(word: int) -> None:
    names = str(Feature(word)).split("|")
    assert sum(1 << int(n[4:]) if n.startswith("bit ") else Feature[n] for n in names) == word


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        (Feature.NONE, "NONE"),
        (Feature.VERSION_1, "VERSION_1"),
        (Feature(0x100000021), "bit 0|bit 5|VERSION_1"),
        (DeviceStatus(0), "RESET"),
        (DeviceStatus(0xF), "ACKNOWLEDGE|DRIVER|DRIVER_OK|FEATURES_OK"),
        (ProtocolFeature(1 << 40 | 1), "MQ|bit 40"),
    ],
)
def test_text(bits: Feature | DeviceStatus | ProtocolFeature, text: str) -> None:
    assert str(bits) == text


def test_features_have_virtios_numbers() -> None:
    assert {bit.name: bit.bit_length() - 1 for bit in Feature} == {
        "NOTIFY_ON_EMPTY": 24,
        "LOG_ALL": 26,
        "ANY_LAYOUT": 27,
        "INDIRECT_DESC": 28,
        "EVENT_IDX": 29,
        "PROTOCOL_FEATURES": 30,
        "VERSION_1": 32,
        "ACCESS_PLATFORM": 33,
        "RING_PACKED": 34,
        "IN_ORDER": 35,
        "ORDER_PLATFORM": 36,
        "SR_IOV": 37,
        "NOTIFICATION_DATA": 38,
        "NOTIF_CONFIG_DATA": 39,
        "RING_RESET": 40,
        "ADMIN_VQ": 41,
    }


def test_protocol_features_are_bits_0_to_23_in_order() -> None:
    names = (
        "MQ LOG_SHMFD RARP REPLY_ACK MTU BACKEND_REQ CROSS_ENDIAN CRYPTO_SESSION PAGEFAULT CONFIG"
        " BACKEND_SEND_FD HOST_NOTIFIER INFLIGHT_SHMFD RESET_DEVICE INBAND_NOTIFICATIONS"
        " CONFIGURE_MEM_SLOTS STATUS XEN_MMAP SHARED_OBJECT DEVICE_STATE GET_VRING_BASE_INFLIGHT"
        " GPA_ADDRESSES SHMEM GET_VRING_BASE_SKIP_DRAIN"
    )
    assert [(bit.name, bit.bit_length() - 1) for bit in ProtocolFeature] == [
        (name, number) for number, name in enumerate(names.split())
    ]


@pytest.mark.parametrize(
    ("device", "pci", "transitional"),
    [
        (DeviceId.NET, 0x1041, 0x1000),
        (DeviceId.BLOCK, 0x1042, 0x1001),
        (DeviceId.RNG, 0x1044, 0x1005),
        (DeviceId.VSOCK, 0x1053, None),
        (DeviceId.I2C_ADAPTER, 0x1062, None),
        (DeviceId.GPIO, 0x1069, None),
        (DeviceId.SPI, 0x106D, None),
    ],
)
def test_pci_numbers_of_device_types(device: DeviceId, pci: int, transitional: int | None) -> None:
    assert device.pci_device_id == pci
    assert device.transitional_pci_device_id == transitional


def test_type_without_a_name_is_one_nevertheless() -> None:
    own = DeviceId(63)
    assert own is DeviceId(63)
    assert (own, own.name, repr(own)) == (63, "TYPE_63", "<DeviceId.TYPE_63: 63>")
    assert (own.pci_device_id, own.transitional_pci_device_id) == (0x107F, None)
    assert pickle.loads(pickle.dumps(own)) is own
    assert own not in list(DeviceId)


@pytest.mark.parametrize("wrong", [0, -1, 1 << 16, "NET", None, 2.5])
def test_what_is_no_type_of_device(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"is not a device type; give a number from 1 to 65535"):
        DeviceId(wrong)
