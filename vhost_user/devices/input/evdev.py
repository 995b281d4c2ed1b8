"""An input device of the host (/dev/input/event*), by the package evdev."""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING

import trio

from protocol.program.command_line import UserError
from protocol.program.warnings import OnceLogger
from protocol.virtio.input import AbsInfo, DevIds, Event
from protocol.virtio.input_codes import Abs, EventType, Syn
from vhost_user.devices.input.reports import Description, Reports

if TYPE_CHECKING:
    from evdev import InputDevice

BACKLOG = 256
"""How many reports wait for the driver's buffers at most; for more, the oldest are dropped."""

_TO_DRIVER = (EventType.KEY, EventType.REL, EventType.ABS, EventType.MSC, EventType.SW)
_FROM_DRIVER = (EventType.LED, EventType.SND)
"""The types of events that are passed on, each one way only: the host's kernel echoes what is written,
and a driver that has switched a LED again by then would answer to the echo for ever.

Not REP: the host's kernel repeats keys itself.
"""

_log = logging.getLogger("vhost_user.input")


class EvdevSource:
    """A device of the host, whose events go to the guest.

    While no driver is there, or the guest is paused, events are dropped, as they are if it does not
    keep up. After that it is told which keys are down by then and where the axes are.
    """

    def __init__(self, device: InputDevice[str]) -> None:
        """Own `device` from now on."""
        self._device = device
        self.reports = Reports(BACKLOG)
        self.description = describe(device)
        slot = self.description.axes.get(Abs.MT_SLOT)
        self._slots = range(slot.minimum, slot.maximum + 1) if slot is not None else range(0)
        self._events: list[Event] = []
        self._is_damaged = False
        self._out_of_step = trio.Event()
        self._once = OnceLogger(_log, 1)

    def close(self) -> None:
        """Close the device, which gives it back to the host."""
        self._device.close()

    def take_status(self, event: Event) -> None:
        """Pass on what switches a LED or makes a sound; nothing else is the guest's to say."""
        if event.type not in _FROM_DRIVER:
            return
        try:
            self._device.write(*event)
        except OSError as error:
            told = (*event, self._device.path, error.strerror)
            _log.warning("cannot write type %d, code %d, value %d to %s: %s", *told)

    async def run(self) -> None:
        """Pass events on until the device is gone."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_in_step)
            await self._read()
            nursery.cancel_scope.cancel()

    async def _read(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._device.fd)
            try:
                for event in self._device.read():
                    self._take(Event(event.type, event.code, event.value))
            except BlockingIOError:
                continue
            except OSError as error:
                gone = "it was unplugged" if error.errno == errno.ENODEV else error.strerror
                _log.error(
                    "%s gives no more events: %s; start again when it is back", self._device.path, gone
                )
                self._release_all()
                return

    def _take(self, event: Event) -> None:
        """Add an event to its report, and pass that on when it is complete."""
        if (event.type, event.code) == (EventType.SYN, Syn.DROPPED):
            self._is_damaged = True
        elif (event.type, event.code) != (EventType.SYN, Syn.REPORT):
            if event.type in _TO_DRIVER:
                self._events.append(event)
        else:
            events, self._events = self._events, []
            if self._is_damaged:
                self._is_damaged = False
                self._out_of_step.set()
            elif events:
                self._post(events)

    def _post(self, events: list[Event]) -> None:
        if not self.reports.is_open:
            self._out_of_step.set()
            return
        dropped = self.reports.dropped
        self.reports.post(events)
        if self.reports.dropped > dropped:
            self._out_of_step.set()
            path = os.fsdecode(self._device.path)
            self._once.warning(f"the guest does not take the events of {path}: some are dropped")

    async def _keep_in_step(self) -> None:
        """After events were dropped, tell the driver how things are."""
        while True:
            await self._out_of_step.wait()
            await self.reports.until_open()
            await self.reports.drained()
            self._out_of_step = trio.Event()
            try:
                differences = self._differences()
            except OSError:
                return  # the device is gone, as _read() says
            if differences:
                self.reports.post(differences)

    def _differences(self) -> list[Event]:
        """Return what makes the driver's picture of the device the true one."""
        down = set(self._device.active_keys())
        known = self.reports.keys
        keys = [
            *(Event(EventType.KEY, code, 0) for code in sorted(known - down)),
            *(Event(EventType.KEY, code, 1) for code in sorted(down - known)),
        ]
        axes = [
            Event(EventType.ABS, axis, self._device.absinfo(axis).value)
            for axis in self.description.axes
            if axis < Abs.MT_SLOT
        ]
        return [*self._lifted(), *keys, *axes]

    def _lifted(self) -> list[Event]:
        """Return what lifts all fingers: which ones touch is not known, and they come back."""
        return [
            event
            for slot in self._slots
            for event in (
                Event(EventType.ABS, Abs.MT_SLOT, slot),
                Event(EventType.ABS, Abs.MT_TRACKING_ID, -1),
            )
        ]

    def _release_all(self) -> None:
        """Release all keys, buttons and touches in the guest."""
        released = [Event(EventType.KEY, code, 0) for code in sorted(self.reports.keys)]
        self.reports.post([*self._lifted(), *released])


def describe(device: InputDevice[str]) -> Description:
    """Return what a guest is told of a device."""
    codes = device.capabilities(absinfo=False)
    passed = [int(kind) for kind in (*_TO_DRIVER, *_FROM_DRIVER) if kind in codes]
    events = {kind: frozenset(codes[kind]) for kind in passed}
    axes = {}
    for axis in events.get(EventType.ABS, ()):
        info = device.absinfo(axis)
        axes[axis] = AbsInfo(info.min, info.max, info.fuzz, info.flat, info.resolution)
    return Description(
        device.name,
        device.uniq,
        DevIds(*device.info),
        properties=frozenset(device.input_props()),
        events=events,
        axes=axes,
    )


def open_evdev(path: str, *, grab: bool = True) -> EvdevSource:
    """Return the host's input device at `path`; with `grab`, the host itself has its events no longer.

    Raises UserError.
    """
    try:
        from evdev import InputDevice
    except ImportError:
        raise UserError(
            "a device of the host needs the package evdev; run pip install 'qemu-companion[input]'"
        ) from None
    try:
        device = InputDevice(path)
    except OSError as error:
        raise UserError(f"cannot open {path}: {_why(error)}") from None
    try:
        if grab:
            device.grab()
        return EvdevSource(device)
    except OSError as error:
        device.close()
        raise UserError(
            f"cannot grab {path}: {error.strerror}; another program has it; end that, or give --no-grab"
        ) from None


_REMEDIES = {
    errno.ENOENT: "there is no such file; /proc/bus/input/devices lists the devices",
    errno.EACCES: "permission denied; be in the group input, or root",
    errno.ENOTTY: "it is not an input device; give one of /dev/input/event*",
    errno.EINVAL: "it is not an input device; give one of /dev/input/event*",
    errno.ENODEV: "it has been unplugged; /proc/bus/input/devices lists the devices",
}


def _why(error: OSError) -> str:
    return _REMEDIES.get(error.errno or 0, f"{error.strerror}; give one of /dev/input/event*")
