"""Layouts of network devices, against the specification and the kernel's own numbers."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivshmem_server.elf import Enum, load_types
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.virtio import net
from protocol.virtio.features import Feature
from protocol.virtio.net import (
    CONFIG_SIZE,
    GUEST_OFFLOADS,
    HEADER,
    HOST_OFFLOADS,
    ControlClass,
    ControlStatus,
    GsoType,
    HeaderFlag,
    MacCommand,
    NetConfig,
    NetFeature,
    NetStatus,
    RxCommand,
    VlanCommand,
    build_mac_tables,
    control_queue,
    header_size,
    mac_tables,
    without_lacking,
)

if TYPE_CHECKING:
    from pathlib import Path

# struct virtio_net_config, field by field: where it is and how long it is.
PLACES = {
    "mac": (0, 6),
    "status": (6, 2),
    "max_virtqueue_pairs": (8, 2),
    "mtu": (10, 2),
    "speed": (12, 4),
    "duplex": (16, 1),
    "rss_max_key_size": (17, 1),
    "rss_max_indirection_table_length": (18, 2),
    "supported_hash_types": (20, 4),
}

ZEROS = dict.fromkeys(PLACES, 0) | {"mac": bytes(6)}

NUMBERS = {
    **{
        f"VIRTIO_NET_F_{feature.name}": feature.value.bit_length() - 1
        for feature in NetFeature
        # What the headers of Linux 6.1 do not have yet.
        if feature.value and feature.name not in {"HASH_TUNNEL", "VQ_NOTF_COAL", "GUEST_HDRLEN"}
        if "USO" not in str(feature.name)
    },
    "VIRTIO_NET_S_LINK_UP": NetStatus.LINK_UP,
    "VIRTIO_NET_S_ANNOUNCE": NetStatus.ANNOUNCE,
    "VIRTIO_NET_HDR_F_NEEDS_CSUM": HeaderFlag.NEEDS_CSUM,
    "VIRTIO_NET_HDR_F_DATA_VALID": HeaderFlag.DATA_VALID,
    "VIRTIO_NET_HDR_F_RSC_INFO": HeaderFlag.RSC_INFO,
    "VIRTIO_NET_HDR_GSO_NONE": GsoType.NONE,
    "VIRTIO_NET_HDR_GSO_TCPV4": GsoType.TCPV4,
    "VIRTIO_NET_HDR_GSO_UDP": GsoType.UDP,
    "VIRTIO_NET_HDR_GSO_TCPV6": GsoType.TCPV6,
    "VIRTIO_NET_HDR_GSO_ECN": net.GSO_ECN,
    "VIRTIO_NET_OK": ControlStatus.OK,
    "VIRTIO_NET_ERR": ControlStatus.ERR,
    "VIRTIO_NET_CTRL_RX": ControlClass.RX,
    **{f"VIRTIO_NET_CTRL_RX_{command.name}": command for command in RxCommand},
    "VIRTIO_NET_CTRL_MAC": ControlClass.MAC,
    **{f"VIRTIO_NET_CTRL_MAC_{command.name}": command for command in MacCommand},
    "VIRTIO_NET_CTRL_VLAN": ControlClass.VLAN,
    **{f"VIRTIO_NET_CTRL_VLAN_{command.name}": command for command in VlanCommand},
    "VIRTIO_NET_CTRL_ANNOUNCE": ControlClass.ANNOUNCE,
    "VIRTIO_NET_CTRL_ANNOUNCE_ACK": net.ANNOUNCE_ACK,
    "VIRTIO_NET_CTRL_MQ": ControlClass.MQ,
    "VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET": net.MQ_VQ_PAIRS_SET,
    "VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MAX": net.MAX_QUEUE_PAIRS,
    "VIRTIO_NET_CTRL_GUEST_OFFLOADS": ControlClass.GUEST_OFFLOADS,
    "VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET": net.GUEST_OFFLOADS_SET,
    "VIRTIO_NET_CTRL_NOTF_COAL": ControlClass.NOTF_COAL,
    "sizeof(struct virtio_net_hdr)": net.LEGACY_HEADER_SIZE,
    "sizeof(struct virtio_net_hdr_v1)": HEADER.size,
    "offsetof(struct virtio_net_hdr_v1, num_buffers)": net.NUM_BUFFERS_OFFSET,
    "sizeof(struct virtio_net_config)": CONFIG_SIZE,
}
"""What the kernel's header has to make of each name."""


def test_numbers_are_the_kernels(tmp_path: Path) -> None:
    enumerators = ", ".join(f"number_{place} = {name}" for place, name in enumerate(NUMBERS))
    source = f"#include <stddef.h>\n#include <linux/virtio_net.h>\nenum numbers {{ {enumerators} }} numbers;"
    path = tmp_path / "numbers.o"
    command = ["gcc", "-g", "-c", "-x", "c", "-o", str(path), "-"]
    subprocess.run(command, input=source, text=True, check=True, timeout=60)
    compiled = load_types(path).find("enum numbers")
    assert isinstance(compiled, Enum)
    assert dict(zip(NUMBERS, (number for _, number in compiled.names), strict=True)) == NUMBERS


def test_config_has_every_field_and_ends_after_the_last() -> None:
    assert set(PLACES) == set(NetConfig.__dataclass_fields__)
    assert len(NetConfig().encode()) == CONFIG_SIZE == 24


EVERYTHING = (
    HOST_OFFLOADS | GUEST_OFFLOADS | NetFeature.MAC | NetFeature.CTRL_VQ | NetFeature.MQ | NetFeature.CTRL_RX
)


@pytest.mark.parametrize("name", PLACES)
def test_config_field_is_where_the_specification_has_it(name: str) -> None:
    offset, size = PLACES[name]
    shown = bytes(range(1, size + 1))
    value = shown if name == "mac" else int.from_bytes(shown, "little")
    data = NetConfig(**{**ZEROS, name: value}).encode()  # type: ignore[arg-type]
    assert data == (bytes(offset) + shown).ljust(CONFIG_SIZE, b"\0")
    assert NetConfig.decode(data) == NetConfig(**{**ZEROS, name: value})  # type: ignore[arg-type]


def test_config_that_does_not_fit_is_our_mistake() -> None:
    with pytest.raises(LocalProtocolError, match="does not fit"):
        NetConfig(mtu=1 << 16).encode()


def test_config_that_is_too_short_is_theirs() -> None:
    with pytest.raises(RemoteProtocolError, match="not a configuration space of a network device"):
        NetConfig.decode(bytes(CONFIG_SIZE - 1))


def test_header_is_shorter_for_a_legacy_driver() -> None:
    assert header_size(Feature.VERSION_1) == header_size(NetFeature.MRG_RXBUF) == 12
    assert header_size(NetFeature.GUEST_TSO4) == 10


def test_control_queue_comes_after_all_pairs_with_mq_only() -> None:
    assert [control_queue(NetFeature.MQ, pairs) for pairs in (1, 2, 8)] == [2, 4, 16]
    assert control_queue(NetFeature.CTRL_VQ, 8) == 2


def test_what_is_left_to_the_other_side() -> None:
    assert {str(feature.name).partition("_")[0] for feature in GUEST_OFFLOADS} == {"GUEST"}
    assert {str(feature.name).partition("_")[0] for feature in HOST_OFFLOADS} == {"CSUM", "HOST"}


ADDRESSES = st.lists(st.binary(min_size=6, max_size=6), max_size=20)


@given(unicast=ADDRESSES, multicast=ADDRESSES)
def test_tables_of_addresses(unicast: list[bytes], multicast: list[bytes]) -> None:
    assert mac_tables(build_mac_tables(unicast, multicast)) == (unicast, multicast)


@given(data=st.binary(max_size=64))
def test_any_bytes_are_tables_or_refused(data: bytes) -> None:
    try:
        tables = mac_tables(data)
    except RemoteProtocolError:
        return
    assert build_mac_tables(*tables) == data


@pytest.mark.parametrize("cut", [1, 4, 5, 9])
def test_tables_that_are_cut_off_are_refused(cut: int) -> None:
    data = build_mac_tables([b"unicas"], [b"multic"])
    with pytest.raises(RemoteProtocolError, match="table"):
        mac_tables(data[:-cut])


@pytest.mark.parametrize(
    ("missing", "left"),
    [
        (NetFeature.NONE, EVERYTHING),
        (NetFeature.CTRL_VQ, NetFeature.MAC | HOST_OFFLOADS | GUEST_OFFLOADS),
        (NetFeature.CSUM, EVERYTHING.without(HOST_OFFLOADS)),
        (NetFeature.GUEST_CSUM, EVERYTHING.without(GUEST_OFFLOADS)),
        (NetFeature.HOST_TSO4, EVERYTHING.without(NetFeature.HOST_TSO4)),
        (
            NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6,
            EVERYTHING.without(NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6 | NetFeature.HOST_ECN),
        ),
    ],
)
def test_feature_is_not_offered_without_what_it_needs(missing: NetFeature, left: NetFeature) -> None:
    assert without_lacking(EVERYTHING.without(missing)) == left
