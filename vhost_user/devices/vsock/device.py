"""vsock: sockets between guest and host, and between guests (virtio 1.3, section 5.10)."""

from __future__ import annotations

import logging
import socket
from functools import partial
from typing import TYPE_CHECKING

import trio

from protocol.io import exhaustion
from protocol.virtio.ids import DeviceId
from protocol.virtio.vsock import (
    EVENT,
    EVENT_QUEUE,
    HOST_CID,
    RX_QUEUE,
    TRANSPORT_RESET,
    TX_QUEUE,
    VsockConfig,
    VsockFeature,
)
from vhost_user.device import VirtioDevice
from vhost_user.devices.vsock.connection import Address
from vhost_user.devices.vsock.connection_table import ConnectionTable, TooManyConnectionsError
from vhost_user.devices.vsock.ports import HostPorts, PortListener, check_port
from vhost_user.devices.vsock.siblings import Siblings
from vhost_user.devices.vsock.simulation import Answer, VsockSimulation

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from vhost_user.devices.vsock.host import UnixSockets
    from vhost_user.devices.vsock.stream import Stream
    from vhost_user.queue import Virtqueue
    from vhost_user.ring.chain import Chain
    from vhost_user.simulation.simulation import Simulation

DEFAULT_CID = 3
DEFAULT_TX_BUFFER_SIZE = 65536
DEFAULT_MAX_CONNECTIONS = 2048
DEFAULT_GROUP = "default"

_BATCH = 32
"""How many packets are taken or given together."""

_log = logging.getLogger("vhost_user.vsock")


class Vsock(VirtioDevice):
    """Sockets between a guest and the host, which has UNIX sockets for them, and between guests."""

    device_id = DeviceId.VSOCK
    name = "vsock"
    num_queues = 3
    features = VsockFeature.STREAM | VsockFeature.NO_IMPLIED_STREAM

    def __init__(
        self,
        guest_cid: int = DEFAULT_CID,
        *,
        host: UnixSockets | None = None,
        tx_buffer_size: int = DEFAULT_TX_BUFFER_SIZE,
        max_connections: int = DEFAULT_MAX_CONNECTIONS,
        groups: Collection[str] = (DEFAULT_GROUP,),
        siblings: Siblings | None = None,
    ) -> None:
        """Give the guest the CID `guest_cid`; own `host`, where programs of the host are.

        At most `tx_buffer_size` bytes of each connection are held that the host has not taken yet.
        Raises ValueError where another one of `siblings` has the same CID.
        """
        self.guest_cid = guest_cid
        self.groups = frozenset(groups)
        self.config = VsockConfig(guest_cid).encode()
        self._rules = VsockSimulation(self)
        self.simulation: Simulation = self._rules
        self._siblings = Siblings() if siblings is None else siblings
        self._siblings.add(self)
        self._host = host
        self._ports = HostPorts()
        self.table = ConnectionTable(
            guest_cid,
            buf_alloc=tx_buffer_size,
            most=max_connections,
            asked=self._on_asked,
            changed=self._rules.on_change,
        )
        """The guest's connections."""
        self.is_up = False
        """True while the guest has a driver that answers."""
        self._running: set[int] = set()
        self._begun: set[int] = set()
        """The queues with which the driver has begun again."""
        self._owes_event = False
        self._event = trio.lowlevel.ParkingLot()

    # From Python

    async def connect(self, port: int) -> trio.SocketStream:
        """Connect to `port` of the guest; the caller closes the stream.

        Raises ConnectionRefusedError, ValueError for a number that is not a port.
        """
        check_port(port)
        ours, theirs = socket.socketpair()
        answers: list[bool] = []
        answered = trio.Event()

        def answer(accepted: bool) -> None:
            answers.append(accepted)
            answered.set()

        try:
            if self._begin(theirs, port, answer) is not None:
                await answered.wait()
            if not any(answers):
                raise ConnectionRefusedError(f"guest {self.guest_cid} does not accept connections to {port}")
        except BaseException:
            ours.close()
            raise
        return trio.SocketStream(trio.socket.from_stdlib_socket(ours))

    def listen(self, port: int) -> PortListener:
        """Listen for the guest's connections to the host's `port`, in the place of a UNIX socket.

        The caller closes the listener. Raises ValueError where somebody does so already, or for no port.
        """
        return self._ports.listen(port)

    def ask(self, sock: socket.socket, port: int) -> Stream | None:
        """Ask the guest for a connection to `port`, joined to `sock`, which gets the line "OK PORT" then.

        None: the guest has no driver or too many connections, and `sock` was closed.
        """

        def greet(accepted: bool) -> None:
            if accepted and stream is not None:
                stream.write(b"OK %d\n" % stream.connection.own.port)

        stream = self._begin(sock, port, greet)
        return stream

    def reset_transport(self) -> None:
        """End all connections, as a migration does; by the event for that, where the event queue is ours."""
        if EVENT_QUEUE in self._running:
            self.table.drop_all()
            self._tell_reset()
        else:
            self.table.reset_all()

    # The device

    def reset(self) -> None:
        """Forget the connections of a driver that begins again."""
        self.is_up = False
        self._begun.clear()
        self._owes_event = False
        self.table.drop_all()

    def close(self) -> None:
        """Close all sockets."""
        self.table.close()
        self._ports.close()
        if self._host is not None:
            self._host.close()

    async def run_host(self) -> None:
        """Move bytes between guest and host, and ask the guest for what programs of the host want."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.table.watch_sockets)
            nursery.start_soon(self.table.expire)
            nursery.start_soon(self.table.ask_again)
            if self._host is not None:
                nursery.start_soon(self._host.serve, self)

    async def run(self) -> None:
        """Close the host's sockets when the guest is gone."""
        try:
            await trio.sleep_forever()
        finally:
            self.reset()

    async def run_queue(self, queue: Virtqueue) -> None:
        """Serve one of the three queues."""
        self._start(queue)
        try:
            if queue.index == RX_QUEUE:
                await self._send(queue)
            elif queue.index == TX_QUEUE:
                await self._receive(queue)
            else:
                await self._send_events(queue)
        finally:
            self._running.discard(queue.index)

    def _start(self, queue: Virtqueue) -> None:
        """Find out whether the driver is the one that we know."""
        self._running.add(queue.index)
        if queue.index == EVENT_QUEUE:
            return
        if queue.begins_anew:
            # User Mode Linux, and QEMU before 8.2, do not say that a driver begins again. It begins with
            # either queue, and with the other one perhaps much later: when it first has a packet for it.
            if queue.index in self._begun or not self._begun:
                self.reset()
            self._begun.add(queue.index)
        elif not self.is_up:
            self._tell_reset()  # it goes on with connections of which we know nothing
        self.is_up |= queue.index == RX_QUEUE

    async def _send(self, queue: Virtqueue) -> None:
        """Give packets to the guest."""
        async for batch in queue.batches(_BATCH):
            for number, chain in enumerate(batch):
                while (written := self.table.fill(chain)) is None:
                    if not await _park(queue, self.table.work):
                        _put_back(batch[number:])
                        return
                chain.complete(written)

    async def _receive(self, queue: Virtqueue) -> None:
        """Take packets from the guest."""
        async for batch in queue.batches(_BATCH):
            for number, chain in enumerate(batch):
                while self.table.is_full:
                    if not await _park(queue, self.table.room):
                        _put_back(batch[number:])
                        return
                self.table.take(chain)
                chain.complete(0)

    async def _send_events(self, queue: Virtqueue) -> None:
        """Tell the driver of a reset whenever there is one."""
        async for chain in queue:
            while not self._owes_event:
                if not await _park(queue, self._event):
                    chain.put_back()
                    return
            if chain.writable.remaining < EVENT.size:
                self.table.complain("gives room for events that is too small")
            else:
                self._owes_event = False
                chain.writable.write(EVENT.pack(TRANSPORT_RESET))
            chain.complete()

    def _tell_reset(self) -> None:
        self._owes_event = True
        self._event.unpark_all()

    # Connections that the host asks for

    def _begin(self, sock: socket.socket, port: int, answered: Callable[[bool], None]) -> Stream | None:
        own = Address(HOST_CID, self.table.free_port())
        if not self.is_up:
            sock.close()
            return None
        try:
            return self.table.ask(sock, port, own=own, answered=answered)
        except TooManyConnectionsError as error:
            self.table.complain(f"has no room for more: {error}")
            return None

    # Connections that the guest asks for

    def _on_asked(self, stream: Stream) -> None:
        own = stream.connection.own
        answer = self._rules.answer(own.port)
        if answer is Answer.IGNORED:
            return
        try:
            if answer is Answer.REFUSED:
                raise ConnectionRefusedError("as was asked for")
            if own.cid == HOST_CID:
                self._join_host(stream, own.port)
            else:
                self._join_sibling(stream, own)
        except OSError as error:
            _log.debug("guest %d: its connection to %s is refused: %s", self.guest_cid, own, error)
            self.refuse(stream, error)

    def refuse(self, stream: Stream, error: OSError) -> None:
        """Refuse the guest a connection; where it is for want of means, the user hears of it."""
        if exhaustion.is_exhausted(error):
            self.table.complain(f"has a connection refused: {exhaustion.cause_and_remedy(error)}")
        stream.reset()

    def _join_host(self, stream: Stream, port: int) -> None:
        if (sock := self._ports.connect(port, stream.reset)) is not None:
            stream.accept(sock)
        elif self._host is None:
            raise ConnectionRefusedError("no program listens")
        else:
            self._host.join(stream, port)

    def _join_sibling(self, stream: Stream, own: Address) -> None:
        """Join a connection to one that we ask another guest for, by a pair of sockets."""
        other = self._siblings.find(own.cid, self)
        if other is None:
            raise ConnectionRefusedError("there is no such guest, it is not up, or it is in no common group")
        ours, theirs = socket.socketpair()
        try:
            other.table.ask(
                theirs, own.port, own=stream.connection.peer, answered=partial(_join, stream, ours)
            )
        except TooManyConnectionsError as error:
            ours.close()
            raise ConnectionRefusedError(str(error)) from None


async def _park(queue: Virtqueue, lot: trio.lowlevel.ParkingLot) -> bool:
    """Give back what is done, and wait for `lot` to be unparked; return False if `queue` is to stop."""
    queue.flush()
    with queue.until_stop():
        await lot.park()
    return not queue.stopping


def _put_back(chains: Sequence[Chain]) -> None:
    for chain in chains:
        chain.put_back()


def _join(stream: Stream, sock: socket.socket, accepted: bool) -> None:
    """Join a connection that a guest asked for to `sock`, or refuse it, as somebody else has answered."""
    if not accepted:
        sock.close()
        stream.reset()
        return
    try:
        stream.accept(sock)
    except OSError:
        stream.reset()
