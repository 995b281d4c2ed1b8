"""Runs in a guest: passes its input devices on to drivers, and prints what they receive.

`python -m tests.guest.passing_on PATH...`; each line of standard output is JSON.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from typing import TYPE_CHECKING

import trio
from evdev import InputDevice

from protocol.io import FdStream
from protocol.program.command_line import UserError
from protocol.virtio.input import U_OFFSET, AbsInfo, ConfigSelect, Event
from protocol.virtio.input_codes import Abs, EventType, Led
from tests.vhost_user.devices.input.hands import next_report
from vhost_user.backend import serve_connection
from vhost_user.devices.input.device import Input
from vhost_user.devices.input.evdev import open_evdev
from vhost_user.frontend import connect

if TYPE_CHECKING:
    from vhost_user.frontend import DriverQueue, Frontend


PATIENCE = 600


def tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def query(front: Frontend, select: int, subsel: int = 0) -> bytes:
    await front.set_config(0, bytes([select, subsel]))
    (size,) = await front.get_config(1, 2)
    return await front.get_config(size, U_OFFSET) if size else b""


async def pass_on(path: str) -> None:
    """Pass a device on; print what it is, if its LED can be switched, when reports are taken, and those."""
    source = open_evdev(path)
    device = Input(source)
    try:
        open_evdev(path)
    except UserError as error:
        tell(path=path, refused=str(error))
    ours, theirs = (FdStream(end) for end in socket.socketpair())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.run_host)
        nursery.start_soon(serve_connection, device, theirs)
        async with connect(stream=ours, patience=PATIENCE) as front:
            await front.negotiate()
            axis = await query(front, ConfigSelect.ABS_INFO, Abs.X)
            name = (await query(front, ConfigSelect.ID_NAME)).decode()
            tell(path=path, name=name, axis=vars(AbsInfo.decode(axis)) if axis else None)
            if await query(front, ConfigSelect.EV_BITS, EventType.LED):
                await switch_led(await front.start_queue(1), path)
            queue = await front.start_queue()
            await source.reports.until_open()
            tell(path=path, takes="reports")
            while True:
                tell(path=path, report=await next_report(queue))


async def switch_led(queue: DriverQueue, path: str) -> None:
    """Switch a LED as a driver does; print which ones the host's kernel says are on."""
    await queue.request(Event(EventType.LED, Led.CAPSL, 1).encode())
    with contextlib.closing(InputDevice(path)) as other:
        tell(path=path, leds=other.leds())


async def main(paths: list[str]) -> None:
    async with trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(pass_on, path)


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
