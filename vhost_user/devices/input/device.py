"""input: keyboards, mice, tablets and touch screens (virtio 1.3, section 5.8)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import trio

from protocol.errors import RemoteProtocolError
from protocol.program.warnings import OnceLogger
from protocol.vhost_user.validation import RefusedError
from protocol.virtio.ids import DeviceId
from protocol.virtio.input import EVENT, EVENTQ, Event, encode_config
from protocol.words import plural
from vhost_user.device import VirtioDevice
from vhost_user.own_code.containment import Containment
from vhost_user.simulation.simulation import Simulation

if TYPE_CHECKING:
    from protocol.vhost_user import ConfigFlag
    from vhost_user.devices.input.reports import Description, Reports
    from vhost_user.queue import Virtqueue
    from vhost_user.ring.chain import Chain

_log = logging.getLogger("vhost_user.input")

_SELECTED = 2
"""The bytes of the configuration that a driver may write: select and subsel."""


class HostTask(Protocol):
    """What goes on as long as a device is served, whether a front-end is connected or not."""

    async def run(self) -> None:
        """Do it, until it is done or cancelled."""

    def close(self) -> None:
        """Release what it holds of the host."""


class EventSource(HostTask, Protocol):
    """Where events come from: a device of the host, or a simulated one."""

    @property
    def description(self) -> Description:
        """What the device is."""

    @property
    def reports(self) -> Reports:
        """What it has to tell."""

    def take_status(self, event: Event) -> None:
        """Do what the driver wants, such as to switch a LED."""


class Input(VirtioDevice):
    """A keyboard, mouse, tablet or touch screen: a scripted one, or one of the host's."""

    device_id = DeviceId.INPUT
    name = "input"
    num_queues = 2

    def __init__(self, source: EventSource, *tasks: HostTask) -> None:
        """Own `source` from now on, and `tasks` that go on beside it, such as a script."""
        self.source = source
        self.simulation = source if isinstance(source, Simulation) else None
        self._tasks = (source, *tasks)
        self._selected = bytearray(_SELECTED)
        self._once = OnceLogger(_log, 1)
        self._own = Containment(_log)
        self._what = f"the input source {type(source).__name__}"

    def close(self) -> None:
        """Close the source and what goes on beside it."""
        for task in self._tasks:
            with self._own.code(type(task).__name__, "it was to be closed"):
                task.close()

    def reset(self) -> None:
        """Forget what the driver selected, and what it got of a report."""
        self._selected = bytearray(_SELECTED)
        self._once = OnceLogger(_log, 1)
        self.source.reports.begin_again()

    async def run_host(self) -> None:
        """Let the source do its part, and what goes on beside it."""
        async with trio.open_nursery() as nursery:
            for task in self._tasks:
                nursery.start_soon(self._run, task)

    async def _run(self, task: HostTask) -> None:
        with self._own.code(type(task).__name__, "its run() is over, and the device goes on"):
            await task.run()

    # The configuration space

    def read_config(self, offset: int, size: int) -> bytes:
        """Return a part of the answer to what the driver has selected."""
        select, subsel = self._selected
        return self._answer(select, subsel)[offset : offset + size]

    def _answer(self, select: int, subsel: int) -> bytes:
        with self._own.code(self._what, "the guest's driver is told of nothing"):
            return encode_config(select, subsel, self.source.description.answer(select, subsel))
        return encode_config(select, subsel, b"")

    def write_config(self, offset: int, data: bytes, flags: ConfigFlag) -> None:
        """Take `select` and `subsel`; ignore what is written beside them, as QEMU writes the whole space.

        A driver asks before it uses the queues: this is a new one.
        """
        selected = data[: max(_SELECTED - offset, 0)]
        if not selected:
            raise RefusedError(
                f"{plural(len(data), 'byte')} at {offset}: only select and subsel can be written"
            )
        self._selected[offset : offset + len(selected)] = selected
        self.source.reports.begin_again()

    # The queues

    async def run_queue(self, queue: Virtqueue) -> None:
        """Serve the queue of events, or that of status events."""
        if queue.index == EVENTQ:
            with self.source.reports.opened():
                await self._send_events(queue)
            return
        async for chain in queue:
            self._take_status(chain)
            chain.complete()

    async def _send_events(self, queue: Virtqueue) -> None:
        reports = self.source.reports
        async for chain in queue:
            if chain.writable.remaining < EVENT.size:
                self._tell_short(
                    f"{plural(chain.writable.remaining, 'byte')} to write to in a buffer for events"
                )
                chain.complete()
                continue
            reports.ready.set()
            with queue.until_stop() as scope:
                event = await reports.event()
            if scope.cancelled_caught:
                chain.put_back()
                return
            chain.writable.write(event.encode())
            chain.complete()
            reports.taken()

    def _take_status(self, chain: Chain) -> None:
        """Do what a status event asks for. One that is too short is ignored; nothing is ever written."""
        try:
            event = Event.decode(chain.readable.read(EVENT.size))
        except RemoteProtocolError as error:
            self._tell_short(f"{error}, in a buffer of status events")
            return
        with self._own.code(self._what, "what the guest wants is not done"):
            self.source.take_status(event)

    def _tell_short(self, what: str) -> None:
        self._once.warning(f"the driver gave {what}: it is ignored, and so are others like it")
