"""Tap: a tap device of the host; frames pass between kernel and the guest's memory."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

import trio

from protocol.program.warnings import OnceLogger
from protocol.virtio.features import Feature
from protocol.virtio.net import GUEST_OFFLOADS, HOST_OFFLOADS, NetFeature
from vhost_user.buffers import IOV_MAX, copy
from vhost_user.devices.net.ports import tun
from vhost_user.devices.net.ports.port import MAX_FRAME, NetPort
from vhost_user.devices.net.ports.tun import OffloadFlag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol.fds import OwnedFd
    from vhost_user.devices.net.ports.port import Receiver

_READS = 16
"""Frames to read before the guest is told of them, and other tasks have their turn."""

_MOST_STALE = 4096
"""Frames that a tap keeps for its reader, at most; some 1000 are usual."""

_log = logging.getLogger("vhost_user.net")

_FLAGS = {
    NetFeature.GUEST_CSUM: OffloadFlag.CSUM,
    NetFeature.GUEST_TSO4: OffloadFlag.TSO4,
    NetFeature.GUEST_TSO6: OffloadFlag.TSO6,
    NetFeature.GUEST_ECN: OffloadFlag.TSO_ECN,
    NetFeature.GUEST_UFO: OffloadFlag.UFO,
    NetFeature.GUEST_USO4: OffloadFlag.USO4,
    NetFeature.GUEST_USO6: OffloadFlag.USO6,
}

_NOT_ALL_KERNELS_HAVE = (
    NetFeature.NONE,
    NetFeature.GUEST_USO4 | NetFeature.GUEST_USO6 | NetFeature.HOST_USO,
    NetFeature.GUEST_UFO | NetFeature.HOST_UFO,
)
"""What to do without, one after the other, until the kernel takes the rest."""


class Tap(NetPort):
    """A tap device, by a descriptor for each pair of queues.

    What the guest sends is written from its memory, and what it gets is read into it.
    """

    def __init__(self, name: str, queues: Sequence[OwnedFd], *, mtu: int | None = None) -> None:
        """Own `queues`, which are open with IFF_VNET_HDR and do not block. Raises OSError."""
        self.queue_pairs = len(queues)
        self.mtu = mtu
        self._name = name
        self._queues = queues
        self._attached = [True] * len(queues)
        self._waiting = [trio.Lock() for _ in queues]  # one task can wait for a descriptor at a time
        self._flags = OffloadFlag.NONE
        self._once = OnceLogger(_log, 1)
        self.offloads = self._possible_offloads()
        for pair in range(1, len(queues)):
            self._attach(pair, False)

    def close(self) -> None:
        """Close the descriptors; a tap that is not persistent goes away with them."""
        for queue in self._queues:
            queue.close()

    def set_features(self, features: Feature, header_size: int) -> None:
        """Pass on from now on what the guest takes; its header is the tap's."""
        try:
            tun.set_header(self._fd(0), header_size, little_endian=Feature.VERSION_1 in features)
        except OSError as error:
            self._lose(error)
        super().set_features(features, header_size)

    def set_offloads(self, features: NetFeature) -> None:
        """Ask the kernel to do what the guest does not."""
        try:
            self._set_offloads(features)
        except OSError as error:
            self._lose(error)

    def _set_offloads(self, features: NetFeature) -> None:
        flags = OffloadFlag.NONE
        for feature, flag in _FLAGS.items():
            if feature in features:
                flags |= flag
        tun.set_offloads(self._fd(0), flags)
        if self._flags & ~flags:
            self._discard_stale()
        self._flags = flags

    def set_link(self, up: bool) -> None:
        """Show the host whether the guest's cable is in."""
        with contextlib.suppress(OSError):  # kernels before 5.0
            tun.set_carrier(self._fd(0), up)

    def send(self, pair: int, buffers: Sequence[memoryview], length: int) -> bool:
        """Write a frame to the tap."""
        try:
            if len(buffers) > IOV_MAX:
                buffers = [memoryview(b"".join(buffers))]
            os.writev(self._fd(self._sender(pair)), buffers)
        except BlockingIOError:
            return False
        except OSError as error:
            self.dropped_from_guest += 1
            self._once.warning(f"{self._name} does not take a frame of the guest's: {error.strerror}")
        return True

    async def until_sendable(self, pair: int) -> None:
        """Wait until the tap takes frames."""
        sender = self._sender(pair)
        async with self._waiting[sender]:
            await trio.lowlevel.wait_writable(self._fd(sender))

    async def receive(self, pair: int, receiver: Receiver) -> None:
        """Read frames from the tap as long as this runs."""
        try:
            self._attach(pair, True)
            while True:
                await self._read_some(self._fd(pair), receiver)
        except OSError as error:
            self._lose(error)
            await trio.sleep_forever()
        finally:
            if pair:
                with contextlib.suppress(OSError):
                    self._attach(pair, False)

    def _lose(self, error: OSError) -> None:
        """Do without a tap that was removed: the guest loses its link."""
        if self.link_up:
            _log.error("%s is lost: %s; start again once it is there", self._name, error.strerror)
            self.link_up = False
            if self.link_changed is not None:
                self.link_changed()

    async def _read_some(self, fd: int, receiver: Receiver) -> None:
        for _ in range(_READS):
            buffers = receiver.window()
            if buffers is None:
                await receiver.until_room()
                continue
            try:
                count = os.readv(fd, buffers) if len(buffers) <= IOV_MAX else _read_pieces(fd, buffers)
            except BlockingIOError:
                receiver.flush()
                await trio.lowlevel.wait_readable(fd)
                return
            receiver.fill(count)
        receiver.flush()
        await trio.lowlevel.checkpoint()

    def _fd(self, pair: int) -> int:
        return self._queues[pair].fileno()

    def _sender(self, pair: int) -> int:
        """Return the queue over which a pair sends: the kernel takes frames over one that is attached."""
        return pair if self._attached[pair] else 0

    def _attach(self, pair: int, attached: bool) -> None:
        """Ask the kernel to give frames to this queue, or no longer; one alone has them anyway."""
        if self._attached[pair] != attached:
            tun.set_attached(self._fd(pair), attached)
            self._attached[pair] = attached

    def _possible_offloads(self) -> NetFeature:
        """Return what the kernel can do for the guest. Raises OSError."""
        offloads = GUEST_OFFLOADS | HOST_OFFLOADS
        for without in _NOT_ALL_KERNELS_HAVE:
            offloads = offloads.without(without)
            with contextlib.suppress(OSError):
                self._set_offloads(offloads)
                break
        self._set_offloads(NetFeature.NONE)
        return offloads

    def _discard_stale(self) -> None:
        """Throw away what came before the guest took less than it did."""
        for pair, attached in enumerate(self._attached):
            with contextlib.suppress(OSError):
                for _ in range(_MOST_STALE if attached else 0):
                    os.read(self._fd(pair), 1)


def _read_pieces(fd: int, buffers: Sequence[memoryview]) -> int:
    """Do what os.readv() does for more buffers than that takes."""
    frame = os.read(fd, MAX_FRAME)
    copy([memoryview(frame)], buffers, len(frame))
    return len(frame)
