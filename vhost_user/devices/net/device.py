"""net: a network card, plugged into a tap of the host or another `NetPort`."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import trio

from protocol.virtio.features import Feature
from protocol.virtio.ids import DeviceId
from protocol.virtio.net import (
    GUEST_OFFLOADS,
    HOST_OFFLOADS,
    NetConfig,
    NetFeature,
    NetStatus,
    control_queue,
    header_size,
    without_lacking,
)
from vhost_user.device import VirtioDevice
from vhost_user.devices.net.addresses import stable_mac
from vhost_user.devices.net.control import BadCommandError, Control
from vhost_user.devices.net.ports.frames import Counters, rarp
from vhost_user.devices.net.receiver import QueueReceiver
from vhost_user.devices.net.simulation import NetSimulation
from vhost_user.devices.net.transmitter import QueueTransmitter
from vhost_user.own_code.containment import Containment

if TYPE_CHECKING:
    from vhost_user.devices.net.ports.port import NetPort
    from vhost_user.queue import Virtqueue

RECEIVE_RETRY_SECONDS = 1.0
"""How long a port whose `receive()` has failed is left alone."""

_log = logging.getLogger("vhost_user.net")

_ALWAYS = (
    NetFeature.MAC
    | NetFeature.MRG_RXBUF
    | NetFeature.STATUS
    | NetFeature.GUEST_ANNOUNCE
    | NetFeature.CTRL_VQ
    | NetFeature.CTRL_RX
    | NetFeature.CTRL_RX_EXTRA
    | NetFeature.CTRL_VLAN
    | NetFeature.CTRL_MAC_ADDR
    | NetFeature.CTRL_GUEST_OFFLOADS
)


class Net(VirtioDevice):
    """A network card for a guest, plugged into a tap device of the host or into another guest."""

    device_id = DeviceId.NET
    name = "net"
    possible_features = _ALWAYS | HOST_OFFLOADS | GUEST_OFFLOADS | NetFeature.MTU | NetFeature.MQ

    def __init__(self, port: NetPort, *, mac: bytes | None = None, mtu: int | None = None) -> None:
        """Own `port` from now on.

        `mac` is the guest's address, by default one that is always the same for no name; `mtu` the
        MTU that the guest is advised of, by default the port's.
        """
        self.port = port
        self._own = Containment(_log)
        self._what = f"the port {type(port).__name__}"
        self.num_queues = 2 * port.queue_pairs + 1
        self.to_guest = Counters()
        self.from_guest = Counters()
        self.mac = mac or stable_mac("")
        self._mtu = mtu
        self._told_mtu: int | None = None
        self._is_plugged_in = True
        self._is_announcing = False
        self._negotiated = NetFeature.NONE
        self._used_pairs = 1
        self._receiving: dict[int, tuple[QueueReceiver, trio.CancelScope]] = {}
        self._transmitting: dict[int, QueueTransmitter] = {}
        self._changed = trio.lowlevel.ParkingLot()
        self._control = Control(self, self.mac, port.queue_pairs)
        self.net = NetSimulation(self, port.simulation)
        self.simulation = self.net
        port.link_changed = self._link_changed

    def close(self) -> None:
        """Close the port."""
        with self._own.code(self._what, "it was to be closed"):
            self.port.close()

    # Features and configuration space

    @property
    def offered_features(self) -> Feature:
        """All feature bits that a front-end is offered, which depend on the port."""
        offered = _ALWAYS | self.port.offloads
        if self.mtu is not None:
            offered |= NetFeature.MTU
        if self.port.queue_pairs > 1:
            offered |= NetFeature.MQ
        own = without_lacking(offered.without(self._withheld))
        return super().offered_features | Feature(own)

    @property
    def mtu(self) -> int | None:
        """The MTU that the guest is advised of; None: none."""
        return self._mtu or self._port_mtu()

    @property
    def link_up(self) -> bool:
        """True while frames go through."""
        try:
            return self._is_plugged_in and bool(self.port.link_up)
        except Exception as error:  # it may be a property; a with block costs more, for each batch
            self._own.failed(self._what, "its link is down", error)
            return False

    def _port_mtu(self) -> int | None:
        with self._own.code(self._what, "it has no MTU"):
            mtu = self.port.mtu
            if mtu is not None and mtu not in range(0x10000):
                raise ValueError(f"an MTU is a number up to 65535, and not {mtu!r}")
            return mtu
        return None

    def reset(self) -> None:
        """Forget what the driver has changed."""
        self._control = Control(self, self.mac, self.port.queue_pairs)
        self._is_announcing = False
        self._told_mtu = None
        self.negotiated(Feature.NONE)

    def negotiated(self, features: Feature) -> None:
        """Note what the driver turned on. It may come again while queues run."""
        turned_on = NetFeature(features.without(Feature.LOG_ALL))  # which comes and goes
        if turned_on == self._negotiated:
            return
        self._negotiated = self._control.features = turned_on
        self.port.header_size = header_size(features)  # whatever becomes of the rest
        with self._own.code(self._what, "it knows nothing of the guest's features"):
            self.port.set_features(features, header_size(features))
        # A front-end that keeps the control queue to itself says by enabling queues how many are used.
        self.use_pairs(1 if NetFeature.CTRL_VQ in turned_on else self.port.queue_pairs)
        if NetFeature.CTRL_VLAN in turned_on:
            self._control.filter.vlans = set()

    def read_config(self, offset: int, size: int) -> bytes:
        """Return a part of the configuration space, as it is now."""
        status = NetStatus(0)
        if self.link_up:
            status |= NetStatus.LINK_UP
        if self._is_announcing:
            status |= NetStatus.ANNOUNCE
        config = NetConfig(
            mac=self._control.filter.mac,
            status=status,
            max_virtqueue_pairs=self.port.queue_pairs,
            mtu=self.mtu or 0,
        )
        return config.encode()[offset : offset + size]

    # What the front-end asks for

    def send_rarp(self, mac: bytes) -> None:
        """Tell the network where the guest with this address is now: it has migrated here."""
        if self.link_up:
            frame = memoryview(bytes(self.port.header_size) + rarp(mac))
            with self._own.code(self._what, "a RARP is not sent"):
                self.port.send(0, [frame], len(frame))
                self.port.flush(0)

    def set_mtu(self, mtu: int) -> None:
        """Note the MTU that the guest was told by the front-end; it gets nothing beyond that."""
        self._told_mtu = mtu
        hosts = self._port_mtu()
        if hosts is not None and mtu > hosts:
            _log.warning("the guest's MTU is %d, but the host's %d: large frames are lost", mtu, hosts)

    # What the user asks for

    def set_link(self, up: bool) -> None:
        """Pull the guest's cable out, or plug it in."""
        self._is_plugged_in = up
        with self._own.code(self._what, "it is told nothing of the link"):
            self.port.set_link(up)
        self._link_changed()

    def announce(self) -> None:
        """Ask the guest to tell the network where it is, as after a migration. Raises ValueError."""
        if not {NetFeature.GUEST_ANNOUNCE, NetFeature.CTRL_VQ} <= set(self._negotiated):
            raise ValueError("the guest cannot announce itself: its driver has not turned that on")
        self._is_announcing = True
        self.notify_config_changed()

    # What the driver asks for, over the control queue

    def use_pairs(self, pairs: int) -> None:
        """Use so many pairs of queues."""
        self._used_pairs = pairs
        self._recheck()

    def set_offloads(self, offloads: NetFeature) -> None:
        """Leave these of GUEST_OFFLOADS to the guest. Raises BadCommandError where the port fails at it."""
        with self._own.code(self._what, "the guest's command gets an error") as attempt:
            self.port.set_offloads(self._negotiated.without(GUEST_OFFLOADS) | offloads)
        if attempt.failed:
            raise BadCommandError("the port fails")

    def announced(self) -> None:
        """Note that the guest has announced itself."""
        self._is_announcing = False
        self.net.emit("announced")

    def mac_changed(self) -> None:
        """Tell whoever listens of the guest's own choice."""
        self.net.emit("mac", address=self._control.filter.mac.hex(":"))

    @property
    def guest_mac(self) -> bytes:
        """The guest's address now."""
        return self._control.filter.mac

    def statistics(self) -> dict[str, int]:
        """Return what went through so far: frames, bytes, and frames that were lost."""
        to_guest, from_guest, port = self.to_guest, self.from_guest, self.port
        return {
            "to_guest_frames": to_guest.frames,
            "to_guest_bytes": to_guest.bytes,
            "to_guest_dropped": to_guest.dropped + port.dropped_to_guest,
            "to_guest_filtered": to_guest.filtered,
            "from_guest_frames": from_guest.frames,
            "from_guest_bytes": from_guest.bytes,
            "from_guest_dropped": from_guest.dropped + port.dropped_from_guest,
        }

    # Queues

    def only_reads(self, index: int) -> bool:
        """Tell whether a queue is one for frames from the guest.

        Where a frame in several buffers is in an indirect table of a packed ring, DPDK's driver calls its
        header writable, and sometimes one of the buffers.
        """
        return index % 2 == 1

    async def run_host(self) -> None:
        """Run what the port has to do."""
        with self._own.code(self._what, "its run() is over, while the guest has it still"):
            await self.port.run()

    async def run_queue(self, queue: Virtqueue) -> None:
        """Serve one queue."""
        is_controlled = NetFeature.CTRL_VQ in self._negotiated
        if is_controlled and queue.index == control_queue(queue.features, self.port.queue_pairs):
            async for chain in queue:
                self._control.serve(chain)
        elif queue.index % 2:
            await self._transmit(queue, queue.index // 2)
        elif queue.index // 2 < self.port.queue_pairs:
            await self._receive(queue, queue.index // 2)

    async def run_disabled_queue(self, queue: Virtqueue) -> None:
        """Discard what the guest sends, and give it nothing (vhost-user, "Ring states")."""
        if queue.index % 2:
            async for batch in queue.batches():
                self.from_guest.dropped += len(batch)
                queue.complete_together([(chain, 0) for chain in batch])
        with queue.until_stop():
            await trio.sleep_forever()

    async def _transmit(self, queue: Virtqueue, pair: int) -> None:
        transmitter = QueueTransmitter(
            *(queue, self.port, pair, self.from_guest, lambda: self.link_up), own=self._own
        )
        self._transmitting[pair] = transmitter
        try:
            await transmitter.run()
        finally:
            del self._transmitting[pair]

    async def _receive(self, queue: Virtqueue, pair: int) -> None:
        knows_mtu = NetFeature.MTU in self._negotiated
        mtu = (self._told_mtu or self.mtu) if knows_mtu else None
        receiver = QueueReceiver(queue, self._control.filter, self.to_guest, mtu)
        receiver.flushed = partial(self._complete_late, pair)
        try:
            with queue.until_stop():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receiver.run)
                    while True:
                        while not self._may_receive(pair):
                            await self._changed.park()
                        receiver.is_stopped = False
                        with trio.CancelScope() as scope:
                            self._receiving[pair] = receiver, scope
                            await self._receive_from_port(pair, receiver)
        finally:
            self._receiving.pop(pair, None)
            receiver.put_back()

    async def _receive_from_port(self, pair: int, receiver: QueueReceiver) -> None:
        """Let the port give frames to the guest, until cancelled; after a failure, it begins again."""
        while True:
            with self._own.code(self._what, f"it gives nothing to the guest for {RECEIVE_RETRY_SECONDS:g} s"):
                await self.port.receive(pair, receiver)
                raise RuntimeError("receive() has returned, which it must not")
            await trio.sleep(RECEIVE_RETRY_SECONDS)

    def _complete_late(self, pair: int) -> None:
        if (transmitter := self._transmitting.get(pair)) is not None:
            transmitter.complete_late()

    def _may_receive(self, pair: int) -> bool:
        return self.link_up and pair < self._used_pairs

    def _recheck(self) -> None:
        for pair, (receiver, scope) in self._receiving.items():
            if not self._may_receive(pair):
                receiver.is_stopped = True  # a frame that is there already would come before the scope's end
                scope.cancel()
        self._changed.unpark_all()

    def _link_changed(self) -> None:
        _log.info("the link is %s", "up" if self.link_up else "down")
        self._recheck()
        self.notify_config_changed()
        self.net.emit("link", up=self.link_up)
