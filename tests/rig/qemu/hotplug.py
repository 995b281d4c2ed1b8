"""Plugs and unplugs devices and memory of a running QEMU, in the role of its guest.

PCI devices only on machine "pc": there the guest lets one go by one register (QEMU,
docs/specs/acpi_pci_hotplug). Memory on "pc" and "q35" (docs/specs/acpi_mem_hotplug).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rig.qemu.qemu import Machine

_EJECT = 0xAE08
_SLOT = 6

_MEMORY = 0x0A00
_MEMORY_FLAGS = _MEMORY + 0x14
_MEMORY_EJECT = 1 << 3


async def plug(machine: Machine, server: Path, *, vectors: int = 2, name: str = "iv") -> None:
    """Attach an ivshmem-doorbell device to the server at the socket `server`. Raises QmpError."""
    await connect_chardev(machine, server, name=name)
    await machine.qmp.execute(
        "device_add",
        driver="ivshmem-doorbell",
        id=name,
        chardev=f"{name}-server",
        vectors=vectors,
        bus="pci.0",
        addr=f"{_SLOT:#x}",
    )


async def connect_chardev(machine: Machine, server: Path, *, name: str = "iv") -> None:
    """Connect QEMU to the server at the socket `server`, for a device `name` to come."""
    address = {"type": "unix", "data": {"path": str(server)}}
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    await machine.qmp.execute("chardev-add", id=f"{name}-server", backend=backend)


async def unplug(machine: Machine, *, name: str = "iv") -> None:
    """Remove the device, and then its chardev: only that closes QEMU's connection to the server."""
    await eject(machine, name, slot=_SLOT)
    await machine.qmp.execute("chardev-remove", id=f"{name}-server")


async def eject(machine: Machine, name: str, *, slot: int) -> None:
    """Remove the PCI device `name` of bus 0: QEMU asks the guest, which ejects the slot when it is ready."""
    await machine.qmp.execute("device_del", id=name)
    await machine.qtest.port_out(_EJECT, 1 << slot)
    await _until_deleted(machine, name)


async def plug_memory(
    machine: Machine, name: str, size: int, *, kind: str = "memory-backend-memfd", share: bool = True
) -> int:
    """Plug `size` bytes of memory into a machine that has a slot for them; return their address."""
    await machine.qmp.execute("object-add", qom_type=kind, id=f"{name}-memory", size=size, share=share)
    await machine.qmp.execute("device_add", driver="pc-dimm", id=name, memdev=f"{name}-memory")
    for device in await machine.qmp.execute("query-memory-devices"):
        if device["data"]["id"] == name:
            return int(device["data"]["addr"])
    raise LookupError(f"QEMU has plugged no memory {name}")


async def unplug_memory(machine: Machine, name: str, *, slot: int = 0) -> None:
    """Remove the memory in `slot`: QEMU asks the guest, which ejects it when it uses it no more."""
    await machine.qmp.execute("device_del", id=name)
    await machine.qtest.port_out(_MEMORY, slot)
    await machine.qtest.port_out(_MEMORY_FLAGS, _MEMORY_EJECT, 1)
    await _until_deleted(machine, name)
    await machine.qmp.execute("object-del", id=f"{name}-memory")


async def _until_deleted(machine: Machine, name: str) -> None:
    with trio.fail_after(60):
        while (await machine.qmp.wait_event("DEVICE_DELETED")).get("device") != name:
            pass
