"""A guest's driver of a network card: what it negotiates, its queues, and frames for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.vhost_user import Config, GetConfig
from protocol.virtio.features import Feature
from protocol.virtio.net import CONFIG_SIZE, HEADER, NetConfig, NetFeature
from tests.vhost_user.raw_frontend import DEFAULT_FEATURES

if TYPE_CHECKING:
    from tests.vhost_user.raw_frontend import Frontend, Queue
    from vhost_user.devices.net.ports.port import Receiver

MAC = bytes.fromhex("525400aabbcc")
OTHER = bytes.fromhex("525400ddeeff")
BROADCAST = b"\xff" * 6
GROUP = bytes.fromhex("01005e000001")
BLANK = bytes(HEADER.size)
PLAIN = Feature(DEFAULT_FEATURES)
MERGING = Feature(DEFAULT_FEATURES | NetFeature.MRG_RXBUF)
CONTROLLED = Feature(
    MERGING
    | NetFeature.CTRL_VQ
    | NetFeature.CTRL_RX
    | NetFeature.CTRL_RX_EXTRA
    | NetFeature.CTRL_MAC_ADDR
    | NetFeature.CTRL_GUEST_OFFLOADS
    | NetFeature.GUEST_ANNOUNCE
    | NetFeature.STATUS
)


def frame(size: int, *, to: bytes = MAC, seed: int = 0) -> bytes:
    """Return an Ethernet frame of so many bytes, behind a header without anything."""
    body = bytes((place * 7 + seed) % 251 for place in range(size - 14))
    return BLANK + to + OTHER + b"\x08\x00" + body


def views(data: bytes) -> list[memoryview]:
    """Return a frame as a port has it, its header and the rest apart."""
    return [memoryview(data[: HEADER.size]), memoryview(data[HEADER.size :])]


def give(receiver: Receiver, data: bytes) -> bool:
    """Put a frame in, and show it."""
    done = receiver.put(views(data), len(data))
    receiver.flush()
    return done


async def begin(front: Frontend, features: Feature, *indices: int, size: int = 16) -> list[Queue]:
    """Negotiate, and start these queues."""
    await front.negotiate(features)
    await front.share_memory()
    queues = [front.queue(index, size) for index in indices]
    for queue in queues:
        await queue.start()
    return queues


async def config(front: Frontend) -> NetConfig:
    return NetConfig.decode((await front.ask(Config, GetConfig(0, CONFIG_SIZE))).data)
