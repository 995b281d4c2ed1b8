"""Plugging and unplugging an ivshmem device of a running QEMU, with the guest's part in it played by us.

Only on machine "pc": there the guest lets a device go by one register (QEMU, docs/specs/acpi_pci_hotplug).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rig.qemu import Machine

_EJECT = 0xAE08
_SLOT = 6


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
    await machine.qmp.execute("device_del", id=name)
    # QEMU asks the guest through ACPI; it ejects the slot when it is done with the device.
    await machine.qtest.port_out(_EJECT, 1 << _SLOT)
    with trio.fail_after(60):
        while (await machine.qmp.wait_event("DEVICE_DELETED")).get("device") != name:
            pass
    await machine.qmp.execute("chardev-remove", id=f"{name}-server")
