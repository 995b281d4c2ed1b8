"""vhost-user-gpio behind QEMU, driven by the test: interrupts by level."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from protocol.virtio.gpio import (
    EVENT_QUEUE,
    IRQ_REQUEST,
    REQUEST,
    REQUEST_QUEUE,
    Direction,
    GpioConfig,
    GpioFeature,
    GpioRequestType,
    IrqStatus,
    IrqType,
)
from protocol.virtio.ids import DeviceId
from tests.qemu.virtio_pci import INDIRECT_DESC, probe
from tests.rig.programs.backend import start_backend, until_printed
from tests.rig.qemu.msix import message
from tests.rig.qemu.shared_memory import start_machine
from vhost_user.simulation import control_client

if TYPE_CHECKING:
    from pathlib import Path

    from tests.qemu.virtio_pci import SplitQueue, VirtioPci
    from vhost_user.simulation.control_client import ControlClient

pytestmark = pytest.mark.qemu

OK, ERR = b"\0\0", b"\1\0"


async def ask(queue: SplitQueue, kind: GpioRequestType, line: int, value: int) -> bytes:
    """Make a request; return its response."""
    (response,) = await queue.request([REQUEST.pack(kind, line, value)], [2])
    return response


async def interrupted(queue: SplitQueue, line: int) -> IrqStatus:
    """Unmask the interrupt of a line; wait for it."""
    ((status,),) = await queue.request([IRQ_REQUEST.pack(line)], [1])
    return IrqStatus(status)


async def test_level_interrupts_while_it_lasts(directory: Path) -> None:
    """With a QEMU that passes the feature on: none before 9.0 does, and all but interrupts works there."""
    path = str(directory / "control")
    options = ("--line", "alarm,initial=1", "--line", "", "--control", path)
    async with start_backend(directory, "gpio", *options) as backend:
        arguments = [*backend.chardev(), "-device", "vhost-user-gpio-pci,chardev=backend"]
        async with start_machine(directory, *arguments) as machine, control_client.connect(path) as control:
            guest = await probe(machine, DeviceId.GPIO)
            features = await guest.negotiate(GpioFeature.IRQ | INDIRECT_DESC)
            assert GpioConfig.decode(await guest.config(0, 8)) == GpioConfig(2, 7)
            requests = await guest.set_up_queue(REQUEST_QUEUE)
            events = await guest.set_up_queue(EVENT_QUEUE)
            await guest.start()
            assert await ask(requests, GpioRequestType.SET_DIRECTION, 0, Direction.IN) == OK
            assert await ask(requests, GpioRequestType.GET_VALUE, 0, 0) == b"\0\1"
            assert await ask(requests, GpioRequestType.SET_DIRECTION, 2, Direction.IN) == ERR
            version = (await machine.qmp.execute("query-version"))["qemu"]
            assert bool(features & GpioFeature.IRQ) == (version["major"] >= 9)
            if features & GpioFeature.IRQ:
                await check_level(guest, requests, events, control)
            else:
                assert await ask(requests, GpioRequestType.SET_IRQ_TYPE, 0, IrqType.LEVEL_HIGH) == ERR
                await until_printed(backend.program, "QEMU before 9.0 does not pass them on")


async def check_level(
    guest: VirtioPci, requests: SplitQueue, events: SplitQueue, control: ControlClient
) -> None:
    """It interrupts as long as the line is high, and only then."""
    assert await ask(requests, GpioRequestType.SET_IRQ_TYPE, 0, IrqType.LEVEL_HIGH) == OK
    for _ in range(3):
        assert await interrupted(events, 0) is IrqStatus.VALID
        assert await guest.msix.wait(0) == message(0)
    await control.call("set", on="alarm", value=0)
    await events.add([IRQ_REQUEST.pack(0)], [1])
    await events.kick()
    assert await ask(requests, GpioRequestType.GET_VALUE, 0, 0) == OK
    assert await events.take() == []
    await control.call("set", on="alarm", value=1)
    assert len(await events.wait()) == 1
    assert (await control.call("state", on="alarm"))["delivered"] == 4
