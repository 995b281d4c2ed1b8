"""console: text consoles and named ports (virtio 1.3, section 5.3)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from protocol.errors import RemoteProtocolError
from protocol.program.warnings import OnceLogger
from protocol.vhost_user.validation import RefusedError
from protocol.virtio.console import (
    CONTROL,
    CONTROL_RECEIVEQ,
    CONTROL_TRANSMITQ,
    EMERG_WR_OFFSET,
    ConsoleConfig,
    ConsoleFeature,
    port_of,
    queues,
    receiveq,
)
from protocol.virtio.ids import DeviceId
from vhost_user.device import VirtioDevice
from vhost_user.devices.console.control import PortReady
from vhost_user.devices.console.descriptions import parse_console, parse_port
from vhost_user.devices.console.ports import PortTable
from vhost_user.devices.console.simulation import ConsoleSimulation

if TYPE_CHECKING:
    from protocol.vhost_user import ConfigFlag
    from protocol.virtio.features import Feature
    from vhost_user.devices.console.descriptions import PortDescription
    from vhost_user.devices.console.port import ConsolePort
    from vhost_user.devices.console.simulation import PortSimulation
    from vhost_user.queue import Virtqueue
    from vhost_user.ring.chain import Chain

DEFAULT_PORTS = 8
"""The number of ports that there is room for by default."""

_PIECE = 65536
"""How many bytes of a request are taken at a time; one that has no more is taken as a whole."""

_log = logging.getLogger("vhost_user")


class Console(VirtioDevice):
    r"""Text consoles and named ports of a guest, as pseudo-terminals, sockets or files of the host.

    ::

        with Console() as console:
            port = console.add_port("console", console=True)
            ...  # serve it, and beside that:
            await port.expect("login: ")
            port.send("root\n")
    """

    device_id = DeviceId.CONSOLE
    name = "console"
    features = ConsoleFeature.SIZE | ConsoleFeature.MULTIPORT | ConsoleFeature.EMERG_WRITE

    def __init__(self, max_ports: int = DEFAULT_PORTS, *, rows_first: bool = False) -> None:
        """Make room for `max_ports` ports; there are none yet. `rows_first` as in Control."""
        self.num_queues = queues(max_ports)
        self.simulation: ConsoleSimulation = ConsoleSimulation(self)
        self._ports = PortTable(max_ports, rows_first=rows_first, resized=self.notify_config_changed)
        self._control = self._ports.control
        self._has_port_0_only = False
        """True while there is a driver without MULTIPORT."""
        self._once = OnceLogger(_log)

    # Ports

    @property
    def ports(self) -> dict[str, PortSimulation]:
        """The ports by their names."""
        return self._ports.by_name()

    def add_port(self, name: str, host: str = "none", *, console: bool = False) -> PortSimulation:
        """Plug a port in, also while a guest runs; `host` is what --port takes behind the name.

        A console gets number 0 if that is free, any other port the first free one from 1 on. Raises
        ValueError, UserError where the host side cannot be had.
        """
        options = parse_console(host, name) if console else parse_port(f"{name}={host}")
        return self.plug(self._ports.free_number(console=console), options)

    def plug(self, number: int, options: PortDescription) -> PortSimulation:
        """Plug in port `number`. Raises ValueError where it or its name is taken, UserError."""
        part = self._ports.plug(number, options)
        self._open_port_0_if_alone()
        self.simulation.add_part(options.name, part)
        self.simulation.emit("added", name=options.name)
        return part

    async def remove_port(self, name: str) -> None:
        """Unplug a port, and close its host side. Raises KeyError where there is none."""
        number = self._ports.number_of(name)
        self.simulation.remove_part(name)
        await self._ports.unplug(number)
        self.simulation.emit("removed", name=name)

    def number_of(self, name: str) -> int:
        """Return the number of a port. Raises KeyError where there is none."""
        return self._ports.number_of(name)

    async def run_host(self) -> None:
        """Run the host sides of all ports."""
        await self._ports.run()

    def close(self) -> None:
        """Close the host sides; their sockets and links are removed."""
        self._ports.close()

    # The driver

    def negotiated(self, features: Feature) -> None:
        """Without MULTIPORT, there is but port 0, which the guest has open from the start."""
        self._has_port_0_only = not features & ConsoleFeature.MULTIPORT
        if not self._has_port_0_only and not self._control.is_ready:
            with self._ports.guest_changes():
                self._control.reset()
        self._open_port_0_if_alone()

    def reset(self) -> None:
        """Forget what the driver was told and has opened. What is on its way in either direction stays."""
        self._once = OnceLogger(_log)
        self._has_port_0_only = False
        with self._ports.guest_changes():
            self._control.reset()

    async def run(self) -> None:
        """See to it that the guest has nothing open once its front-end has gone."""
        try:
            await trio.sleep_forever()
        finally:
            self.reset()

    def _open_port_0_if_alone(self) -> None:
        if self._has_port_0_only and 0 in self._control.ports:
            with self._ports.guest_changes():
                self._control.ports[0].guest_open = True

    def read_config(self, offset: int, size: int) -> bytes:
        """Return part of the configuration space."""
        state = self._control.ports.get(0)
        columns, rows = (state and state.size) or (0, 0)
        config = ConsoleConfig(columns, rows, self._control.max_ports)
        return config.encode()[offset : offset + size]

    def write_config(self, offset: int, data: bytes, flags: ConfigFlag) -> None:
        """Put out a character, by emergency write. Raises RefusedError for all else.

        A front-end may write the whole configuration space where the driver has written one field.
        Nothing makes a driver wait that writes here: what a port that blocks has no room for is lost.
        """
        at = EMERG_WR_OFFSET - offset
        if not 0 <= at < len(data):
            raise RefusedError(
                f"{len(data)} bytes at {offset}: of the configuration space, emerg_wr alone is written"
            )
        port = self._ports.get(0)
        if port is None:
            self._once.warning("the guest makes an emergency write, and there is no console")
        elif (data[at] or not at) and port.has_room:
            port.put_output(data[at : at + 1])

    # Queues

    async def run_queue(self, queue: Virtqueue) -> None:
        """Serve one queue."""
        if queue.index == CONTROL_RECEIVEQ:
            await self._control_rx(queue)
        elif queue.index == CONTROL_TRANSMITQ:
            await self._control_tx(queue)
        elif queue.index == receiveq(port_of(queue.index)):
            await self._port_rx(queue, port_of(queue.index))
        else:
            await self._port_tx(queue, port_of(queue.index))

    async def _control_rx(self, queue: Virtqueue) -> None:
        """Send control messages, each in a buffer of its own."""
        async for chain in queue:
            with queue.until_stop() as scope:
                while not self._control.has_message():
                    await self._ports.to_tell.park()
            if scope.cancelled_caught:
                chain.put_back()
                continue
            message = self._control.next_message(chain.writable.remaining)
            if message is None:
                self._once.warning("a buffer for control messages is too small for the next one")
            else:
                chain.writable.write(message)
            chain.complete()

    async def _control_tx(self, queue: Virtqueue) -> None:
        """Take control messages, one of each buffer."""
        async for chain in queue:
            data = chain.readable.read(CONTROL.size)
            chain.complete()
            try:
                with self._ports.guest_changes():
                    told = self._control.receive(data)
            except RemoteProtocolError as error:
                self._once.warning(f"a control message is ignored: {error}")
                continue
            if isinstance(told, PortReady) and not told.ok:
                self._once.warning(f"the guest could not set up port {told.port}")
            self._ports.tell()

    async def _port_rx(self, queue: Virtqueue, number: int) -> None:
        """Fill buffers with what comes from the host."""
        async for chain in queue:
            if not chain.writable.remaining:
                self._once.warning(f"a buffer for the input of port {number} has no room")
                chain.complete()
                continue
            if (port := self._with_input(number)) is None:
                with queue.until_stop() as scope:
                    while (port := self._with_input(number)) is None:
                        await self._ports.changed[number].park()
                if scope.cancelled_caught:
                    chain.put_back()
                    continue
            assert port is not None
            chain.writable.write(port.take_input(chain.writable.remaining))
            chain.complete()

    def _with_input(self, number: int) -> ConsolePort | None:
        """Return the port, if there is one and it has something for the guest."""
        port = self._ports.get(number)
        return port if port is not None and port.has_input else None

    async def _port_tx(self, queue: Virtqueue, number: int) -> None:
        """Take what buffers hold for the host; while there is no room for that, they wait."""
        async for chain in queue:
            port = self._ports.get(number)
            if port is None or not chain.readable.remaining:
                self._once.warning(
                    f"what the guest sends to port {number} has no bytes, or there is no such port"
                )
                chain.complete()
            elif await self._take_chain(queue, chain, number, port):
                chain.complete()
            else:
                chain.put_back()

    async def _take_chain(self, queue: Virtqueue, chain: Chain, number: int, port: ConsolePort) -> bool:
        """Take a chain's bytes; return False where the queue stops before any was taken."""
        readable = chain.readable

        def is_there() -> bool:
            return self._ports.get(number) is port

        while readable.remaining and is_there():
            if not port.has_room:
                with queue.until_stop() as scope:
                    while is_there() and not port.has_room:
                        await port.changed.park()
                if scope.cancelled_caught:
                    break
            port.put_output(readable.read(_PIECE))
            if readable.remaining:
                await trio.lowlevel.checkpoint()
        if readable.remaining == readable.length:
            return False
        if readable.remaining:
            _log.warning("port %d: %d bytes of one buffer are lost", number, readable.remaining)
        return True
