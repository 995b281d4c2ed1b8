"""The names of features: their list, their forms, their places in texts."""

from __future__ import annotations

import logging
from enum import IntFlag

import pytest

import vhost_user
from protocol.vhost_user import ProtocolFeature, SetFeatures
from protocol.vhost_user.feature_names import DEVICE_FEATURES
from protocol.virtio.blk import BlkFeature
from protocol.virtio.features import Feature
from protocol.virtio.gpio import GpioFeature
from protocol.virtio.net import NetFeature
from tests.vhost_user.program.cli_program import refusal
from tests.vhost_user.raw_frontend import DEFAULT_FEATURES, attached
from vhost_user.device_program import DeviceProgram
from vhost_user.devices import DEVICES
from vhost_user.devices.gpio import Gpio, SimulatedChip, SimulatedLine
from vhost_user.devices.net.device import Net
from vhost_user.devices.net.ports.switch import Link
from vhost_user.program.installed import find
from vhost_user.testing import driving


class OwnFeature(IntFlag):
    """The bits of a type of one's own."""

    DIMS = 1 << 0
    BLINKS = 1 << 1
    ALL = DIMS | BLINKS


class Lamp(vhost_user.VirtioDevice):
    """A device whose type has no name, and whose features have."""

    device_id = vhost_user.DeviceId(63)
    name = "lamp"
    features = OwnFeature.ALL

    async def run_queue(self, queue: vhost_user.Virtqueue) -> None:
        async for chain in queue:
            chain.complete()


@pytest.mark.parametrize(
    ("device", "text", "feature"),
    [
        ("net", "MRG_RXBUF", NetFeature.MRG_RXBUF),
        ("net", "mrg_rxbuf", NetFeature.MRG_RXBUF),
        ("net", "mrg-rxbuf", NetFeature.MRG_RXBUF),
        ("net", "VIRTIO_NET_F_MRG_RXBUF", NetFeature.MRG_RXBUF),
        ("net", "virtio_net_f_csum", NetFeature.CSUM),
        ("net", "GUEST_TSO4", NetFeature.GUEST_TSO4),
        ("net", "VIRTIO_NET_F_MQ", NetFeature.MQ),
        ("net", "VHOST_USER_PROTOCOL_F_MQ", ProtocolFeature.MQ),
        ("gpio", "irq", GpioFeature.IRQ),
        ("blk", "VIRTIO_BLK_F_FLUSH", BlkFeature.FLUSH),
        ("rng", "mq", ProtocolFeature.MQ),
        ("rng", "ring_packed", Feature.RING_PACKED),
        ("rng", "VIRTIO_F_RING_PACKED", Feature.RING_PACKED),
        ("rng", "VIRTIO_RING_F_EVENT_IDX", Feature.EVENT_IDX),
        ("rng", "VHOST_F_LOG_ALL", Feature.LOG_ALL),
        ("rng", "Inband_Notifications", ProtocolFeature.INBAND_NOTIFICATIONS),
    ],
)
def test_names_that_a_feature_may_have(device: str, text: str, feature: int) -> None:
    found = find(device).find_feature(text)
    assert int(found) == int(feature)
    assert isinstance(found, ProtocolFeature) == isinstance(feature, ProtocolFeature)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "text",
    ["SPEED", "", "NONE", "VIRTIO_SCSI_F_CHANGE", "VIRTIO_F_CONFIG", "VHOST_USER_PROTOCOL_F_EVENT_IDX"],
)
def test_name_of_no_feature_tells_those_that_there_are(device: str, text: str) -> None:
    program = find(device)
    kind = program.device
    with pytest.raises(ValueError, match=f"'{text}' is not a feature of {kind.name}; there are ") as raised:
        program.find_feature(text)
    listed = str(raised.value).partition("there are ")[2].split(", ")
    assert {"RING_PACKED", "ACCESS_PLATFORM", "INBAND_NOTIFICATIONS", "CONFIG"} <= set(listed)
    own = DEVICE_FEATURES.get(kind.device_id)
    assert bool(own) == bool(kind.possible_features or kind.features)
    for name in listed:
        assert program.find_feature(name)
    assert len(set(listed)) == len(listed)


def test_name_of_two_features_is_refused() -> None:
    line = refusal("run", "net", "-s", "/tmp/a", "--link", "-c", "2", "--without", "status", code=2)
    assert (
        "'status' is a feature of two kinds; give one of VIRTIO_NET_F_STATUS, VHOST_USER_PROTOCOL_F_STATUS"
        in line
    )


def test_names_of_a_type_of_ones_own() -> None:
    assert DeviceProgram(Lamp).find_feature("blinks") == Feature(OwnFeature.BLINKS)
    with pytest.raises(
        ValueError, match="'ALL' is not a feature of lamp; there are DIMS, BLINKS, NOTIFY_ON_EMPTY"
    ):
        DeviceProgram(Lamp).find_feature("ALL")


async def test_own_feature_is_withheld() -> None:
    device = Gpio(SimulatedChip([SimulatedLine("line")]))
    assert GpioFeature.IRQ in GpioFeature(device.offered_features)
    device.withhold(GpioFeature.IRQ)
    async with driving(device) as front:
        assert not front.offered & GpioFeature.IRQ


def test_what_needs_a_withheld_feature_is_not_offered_either() -> None:
    device = Net(Link().ports[0])
    device.withhold(NetFeature.CTRL_VQ)
    device.withhold(NetFeature.CSUM)
    offered = NetFeature(device.offered_features)
    assert not offered & (NetFeature.CTRL_RX | NetFeature.GUEST_ANNOUNCE | NetFeature.HOST_TSO4)
    assert NetFeature.MRG_RXBUF in offered


async def test_bits_have_their_names_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with driving(Lamp(), plus=Feature(OwnFeature.BLINKS)) as front:
        await front.start_queue()
    log = caplog.text
    assert any("< SET_FEATURES" in line and "BLINKS" in line for line in log.splitlines())
    assert "queue 0 starts at 0, with DIMS|BLINKS|" in log
    assert "bit 1" not in log


async def test_bits_have_their_names_where_they_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    device = Net(Link().ports[0])
    device.withhold(NetFeature.MRG_RXBUF)
    async with attached(device) as front:
        await front.negotiate()
        front.session.negotiation.offered |= Feature(NetFeature.MRG_RXBUF)  # as one that does not look
        reply = await front.try_request(SetFeatures(DEFAULT_FEATURES | Feature(NetFeature.MRG_RXBUF)))
        assert reply is not None
        assert reply.failed
    assert "MRG_RXBUF were not offered" in caplog.text
