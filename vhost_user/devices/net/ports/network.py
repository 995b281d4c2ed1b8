"""A network within this process, with a port for each guest.

How it works: each guest's connection has its own tasks, and a frame goes from the task of the sender's
transmit queue straight into the rings of the receivers, through their backlogs. `_receivers` says which
pairs of a port take frames now; an entry exists only while its `receive()` runs, so nothing is written to a
ring that has stopped or to memory that is no longer mapped. Receivers are flushed once a batch of the
sender's. The network outlives its guests; what it has learnt is forgotten when the cable is pulled out.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from protocol.virtio.net import HEADER
from vhost_user.buffers import cut
from vhost_user.devices.net.ports.backlog import Backlog
from vhost_user.devices.net.ports.frames import ETHERNET_HEADER, flow_of
from vhost_user.devices.net.ports.offload import MOST_OFFLOADS, check, finish
from vhost_user.devices.net.ports.port import NetPort, split, with_header_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol.virtio.net import NetFeature
    from vhost_user.devices.net.ports.port import Receiver

ADDRESSES_SIZE = 12
"""The two MAC addresses at the front of a frame: whom it is for, and whom it is from."""

_FLOW_BYTES = ETHERNET_HEADER + 40 + 4
"""How much of a frame tells which flow it belongs to: addresses and ports."""
_MOST_FLOWS = 4096

_log = logging.getLogger("vhost_user.net")


class Network:
    """What is between ports. A subclass says to which of them a frame goes."""

    def __init__(self, count: int, *, queue_pairs: int = 1) -> None:
        """Make `count` ports, numbered from 0, each with at most so many pairs of queues."""
        self.ports = [NetworkPort(self, number, queue_pairs) for number in range(count)]

    def targets(self, source: NetworkPort, addresses: bytes) -> Sequence[NetworkPort]:
        """Return the ports that a frame from `source` is for, by the addresses at its front."""
        raise NotImplementedError(f"{type(self).__name__} has no targets()")

    def link_set(self, port: NetworkPort) -> None:
        """Note that the cable of a port was pulled out or plugged in: its `is_plugged` has changed."""


class NetworkPort(NetPort):
    """One guest's port of a network.

    A frame is copied once, from the sender's buffers to the receiver's. Whoever gives no room for it
    holds up no one: some frames are kept, and the others are dropped and counted.
    """

    offloads = MOST_OFFLOADS

    def __init__(self, network: Network, number: int, queue_pairs: int = 1) -> None:
        self.network = network
        self.number = number
        """Which port it is, from 0."""
        self.queue_pairs = queue_pairs
        self.is_plugged = True
        """False while the user has pulled the cable out."""
        self.malformed = 0
        """Frames from the guest with a header that says what cannot be; they are dropped."""
        self._takes = 0  # a NetFeature, as a number: that is five times as quick
        self._receivers: dict[int, Backlog] = {}
        self._to_flush: set[Backlog] = set()
        self._flows: dict[bytes, int] = {}

    def set_offloads(self, features: NetFeature) -> None:
        """Note what the guest takes without its being done here."""
        self._takes = int(features)

    def set_link(self, up: bool) -> None:
        """Note that the cable was pulled out or plugged in."""
        self.is_plugged = up
        self.network.link_set(self)

    def send(self, pair: int, buffers: Sequence[memoryview], length: int) -> bool:
        """Send a frame to those that it is for. Never waits."""
        size = self.header_size
        start, rest = split(buffers, size + ADDRESSES_SIZE)
        addresses = start[size:]
        try:
            header, needed = check(start[:size].ljust(HEADER.size, b"\0"), length - size)
        except ValueError as error:
            self._drop_malformed(error)
            return True
        # What was looked at is passed on as it was then: the guest may change it meanwhile.
        frame = _Frame([memoryview(header + addresses), *rest], length + HEADER.size - size, needed)
        flow = self._flow(buffers, length, pair) if self.queue_pairs > 1 else b""
        for target in self.network.targets(self, addresses):
            self._give(target, target.receiver(pair, flow), frame)
        return True

    def flush(self, pair: int) -> None:
        """Tell the guests that got frames."""
        for receiver in self._to_flush:
            receiver.flush()
        self._to_flush.clear()

    async def receive(self, pair: int, receiver: Receiver) -> None:
        """Let others put frames into `receiver`."""
        backlog = self._receivers[pair] = Backlog(receiver, self.drop)
        try:
            await backlog.run()
        finally:
            del self._receivers[pair]
            for port in self.network.ports:
                port._to_flush.discard(backlog)

    def receiver(self, pair: int, flow: bytes = b"") -> Backlog | None:
        """Return where the guest gets frames of a flow: at the pair over which it has sent some of its own.

        Before it has, at any one that is always the same; what belongs to no flow, at the pair that it
        came over. All frames of a flow have to go over one, or they overtake each other in the guest.
        """
        receivers = self._receivers
        if flow and len(receivers) > 1:
            pair = self._flows.get(flow, -1)
            if pair not in receivers:
                pair = sorted(receivers)[hash(flow) % len(receivers)]
        found = receivers.get(pair)
        if found is None and receivers:
            found = receivers[min(receivers)]
        return found

    def _flow(self, buffers: Sequence[memoryview], length: int, pair: int) -> bytes:
        """Return the flow that a frame from the guest is of, having noted over which pair it began."""
        front = b"".join(cut(buffers, min(length, self.header_size + _FLOW_BYTES)))
        flow = flow_of(front[self.header_size :])
        if flow:
            if len(self._flows) >= _MOST_FLOWS:
                self._flows.clear()
            self._flows.setdefault(flow, pair)
        return flow

    @property
    def is_receiving(self) -> bool:
        """True while there is a guest that frames can be given to."""
        return bool(self._receivers)

    def drop(self) -> None:
        """Count a frame for the guest that it does not get."""
        self.dropped_to_guest += 1

    def _give(self, target: NetworkPort, receiver: Backlog | None, frame: _Frame) -> None:
        if receiver is None:
            target.drop()
            return
        if frame.needed & ~target._takes:
            try:
                frames = [_Frame([memoryview(each)], len(each)) for each in finish(b"".join(frame.buffers))]
            except ValueError as error:
                self._drop_malformed(error)
                return
        else:
            frames = [frame]
        for each in frames:
            buffers, length = with_header_size(each.buffers, each.length, target.header_size)
            if not receiver.put(buffers, length):
                target.drop()
        self._to_flush.add(receiver)

    def _drop_malformed(self, error: ValueError) -> None:
        self.dropped_from_guest += 1
        if not self.malformed:
            _log.warning(
                "port %d drops a frame from its guest, and drops others like it silently: %s",
                self.number,
                error,
            )
        self.malformed += 1


class _Frame(NamedTuple):
    """A frame under way: a header of 12 bytes, checked, and both addresses are in the first buffer."""

    buffers: list[memoryview]
    length: int
    needed: int = 0
    """What a guest must have turned on to get it as it is: bits of NetFeature."""
