"""What tests of input devices have in common: a driver that takes events, with or without a front-end."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from protocol.virtio.input import EVENT, Event
from protocol.virtio.input_codes import EventType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vhost_user.devices.input.reports import Reports
    from vhost_user.devices.input.simulation import SimulatedInput
    from vhost_user.frontend import DriverQueue

SECONDS = 60


async def next_report(queue: DriverQueue) -> list[Event]:
    """Give the device buffers until a report is complete; return its events without the last."""
    events: list[Event] = []
    while not (events and events[-1].type == EventType.SYN):
        events.append(Event.decode(await queue.request(EVENT.size)))
    return events[:-1]


@asynccontextmanager
async def taking(
    device: SimulatedInput, times: list[float] | None = None
) -> AsyncIterator[list[list[tuple[int, int, int]]]]:
    """Take the reports of a device for the length of the block; they are added to the list it gets.

    When each was complete is added to `times`, in seconds from now.
    """
    reports: list[list[tuple[int, int, int]]] = []
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_take, device.reports, reports, [] if times is None else times)
            yield reports
            await device.reports.drained()
            nursery.cancel_scope.cancel()


async def _take(source: Reports, reports: list[list[tuple[int, int, int]]], times: list[float]) -> None:
    events: list[tuple[int, int, int]] = []
    began = trio.current_time()
    source.ready.set()
    while True:
        event = await source.event()
        source.taken()
        if event.type == EventType.SYN:
            reports.append(events)
            times.append(trio.current_time() - began)
            events = []
        else:
            events.append((int(event.type), int(event.code), event.value))
