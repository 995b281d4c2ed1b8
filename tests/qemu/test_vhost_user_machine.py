"""The machine around our devices: several of them, hot-unplug, changes of memory."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import trio

from tests.qemu.blk_driver import BLK, BLOCK, IN, header, ready, start
from tests.qemu.blk_load import DEPTH, EMPTY, SECTORS, Load, under_load
from tests.qemu.virtio_pci import INDIRECT_DESC, Ram, probe
from tests.rig.programs.backend import RunningBackend, start_backend, until_printed
from tests.rig.qemu.hotplug import connect_chardev, eject, plug_memory, unplug_memory
from tests.rig.qemu.shared_memory import start_machine

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.qemu.virtio_pci import Queue
    from tests.rig.qemu.qemu import Machine

pytestmark = pytest.mark.qemu

RNG = 4
MIB = 1 << 20
SLOT = 6


async def test_memory_is_plugged_and_unplugged_under_load(directory: Path) -> None:
    """The disk serves requests in old memory while the new one comes, then in the new, then the old."""
    machine = ("-m", "128M,slots=4,maxmem=1G")
    async with start(directory, "-v", machine=machine) as setup:
        setup.image.write_bytes(EMPTY)
        queue = await ready(setup.guest, INDIRECT_DESC)
        old = new = queue.ram
        async with under_load(queue) as (load,):
            await load.until_more(DEPTH)
            for round_ in range(1, 3):
                address = await plug_memory(setup.machine, "new", 64 * MIB)
                assert address >= 128 * MIB
                new = queue.ram = Ram(setup.machine.qtest, address)
                await load.until_unused(old)
                await load.until_more(3 * DEPTH)
                queue.ram = old
                await load.until_unused(new)
                await unplug_memory(setup.machine, "new")
                await load.until_more(3 * DEPTH)
                asked = [each.split(" size")[0] for each in setup.backend.requests()]
                for name in ("ADD_MEM_REG", "REM_MEM_REG"):
                    assert asked.count(f"{name} region=guest {address:#x}") == round_
        assert setup.image.read_bytes()[: len(EMPTY)] == load.content()
        assert " is refused" not in setup.backend.program.output()
        queue.ram = new
        await queue.add([header(IN)], [512, 1])
        await queue.kick()
        await until_printed(setup.backend.program, "queue 0 is broken")


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("memory-backend-ram", "no memory region holds guest address {}; if memory was plugged in there"),
        ("memory-backend-memfd", "the guest's memory at {} is not shared"),
    ],
)
async def test_memory_that_was_plugged_in_without_being_shared_is_named(
    directory: Path, kind: str, line: str
) -> None:
    async with start(directory, machine=("-m", "128M,slots=4,maxmem=1G")) as setup:
        queue = await ready(setup.guest)
        address = await plug_memory(setup.machine, "new", 64 * MIB, kind=kind, share=False)
        queue.ram = Ram(setup.machine.qtest, address)
        await queue.add([header(IN)], [512, 1])
        await queue.kick()
        await until_printed(setup.backend.program, line.format(hex(address)))


async def test_three_devices_at_once_and_one_is_killed(directory: Path) -> None:
    """Each has its own back-end. When that of a disk dies, the others go on, and the disk with its next."""
    async with AsyncExitStack() as stack:
        backends: list[RunningBackend] = []
        arguments: list[str] = []
        for name in ("one", "two"):
            (directory / name).write_bytes(EMPTY)
            backends.append(await stack.enter_async_context(disk(directory, name)))
            arguments += backends[-1].chardev(name, ",reconnect=1")
            arguments += ["-device", f"vhost-user-blk-pci,chardev={name}"]
        rng = await stack.enter_async_context(start_backend(directory, "rng", "-f", "/dev/zero", name="rng"))
        arguments += [*rng.chardev("rng"), "-device", "vhost-user-rng-pci,chardev=rng"]
        machine = await stack.enter_async_context(start_machine(directory, *arguments))
        queues = [await ready(await probe(machine, BLOCK, number=number)) for number in range(2)]
        guest = await probe(machine, RNG)
        await guest.negotiate(0)
        zeros = await guest.set_up_queue()
        await guest.start()
        async with under_load(*queues) as loads:
            for load in loads:
                await load.until_more(DEPTH)
            assert await zeros.request([], [64]) == [bytes(64)]
            backends[0].program.kill()
            await backends[0].program.wait()
            await loads[1].until_more(3 * DEPTH)
            assert await zeros.request([], [64]) == [bytes(64)]
            await stack.enter_async_context(disk(directory, "one"))
            for load in loads:
                await load.until_more(3 * DEPTH)
        for name, load in zip(("one", "two"), loads, strict=True):
            assert (directory / name).read_bytes() == load.content()
        assert loads[0].content() != loads[1].content()


def disk(directory: Path, name: str) -> AbstractAsyncContextManager[RunningBackend]:
    return start_backend(directory, BLK, "--blk-file", str(directory / name), name=name)


async def plug_disk(machine: Machine, backend: RunningBackend) -> Queue:
    """Plug the disk in, and bring it up as a driver does; return its queue."""
    await connect_chardev(machine, backend.socket, name="disk")
    await machine.qmp.execute(
        "device_add",
        driver="vhost-user-blk-pci",
        id="disk",
        chardev="disk-server",
        bus="pci.0",
        addr=f"{SLOT:#x}",
    )
    return await ready(await probe(machine, BLOCK))


async def test_disk_is_unplugged_while_its_ring_runs(directory: Path) -> None:
    """The back-end completes what it has, and serves the next device, in the same QEMU and in another one."""
    (directory / "disk").write_bytes(EMPTY)
    async with disk(directory, "disk") as backend:
        for _ in range(2):
            async with start_machine(directory, kind="pc") as machine:
                for _ in range(2):
                    await run_until_unplugged(machine, backend)
                    with pytest.raises(LookupError):
                        await probe(machine, BLOCK)
        await until_printed(backend.program, "the front-end has left", 4)
        assert "not completed" not in backend.program.output()


async def run_until_unplugged(machine: Machine, backend: RunningBackend) -> None:
    queue = await plug_disk(machine, backend)
    load = Load(queue, model=on_disk(backend))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load.run)
        await load.until_more(3 * DEPTH)
        await eject(machine, "disk", slot=SLOT)
        load.gone = True  # to cancel it could lose a request that it was about to note as completed
    await machine.qmp.execute("chardev-remove", id="disk-server")
    for name, length in await queue.take():
        await load.complete(name, length)
    now = on_disk(backend)
    for flight in load.outstanding.values():  # which the device never saw, or it would have completed them
        assert now[flight.sector] == load.model[flight.sector]
    assert now == load.model


def on_disk(backend: RunningBackend) -> dict[int, bytes]:
    content = backend.socket.with_suffix("").read_bytes()
    return {sector: content[sector * 512 :][:512] for sector in range(SECTORS)}
