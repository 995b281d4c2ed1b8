"""Our I2C bus behind vhost-user-i2c-pci in a real Linux: tools, drivers, a reboot, and as a host's bus."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

import pytest

from tests.docs.documents import PROJECT
from tests.guest import i2c_bus
from tests.rig import guest as rig
from tests.rig.backend import start_backend

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.guest

MODULES = "modprobe -a i2c-virtio i2c-dev lm75 at24"
HOST = (
    *("-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"),
    *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
)
"""QEMU's arguments for the file systems of this machine."""


async def test_tools_and_drivers_and_a_reboot(directory: Path) -> None:
    async with start_backend(directory, "i2c", *i2c_bus.chips(directory)) as backend:
        device = ("-device", "vhost-user-i2c-pci,chardev=backend")
        async with rig.boot(*backend.chardev(), *device, *HOST, shared=True, tools=("i2c",)) as guest:
            await guest.sh(MODULES)
            await check_as_host(guest)
            await i2c_bus.check(guest, directory)
            await guest.reboot()
            await guest.sh(MODULES)
            bus = await i2c_bus.find_bus(guest)
            assert set(await i2c_bus.detected(guest, bus, "-r")) == {0x20, 0x48, 0x50}


async def check_as_host(guest: rig.Guest) -> None:
    """Do in the guest what we do on a host whose buses a guest gets: its kernel takes the chips for real.

    Python and all else comes from the machine that the guest runs on.
    """
    await guest.sh("modprobe -a 9pnet_virtio 9p && mkdir /tmp/host")
    await guest.sh("mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=262144,ro host /tmp/host")
    await guest.sh("for each in dev proc sys; do mount -o bind /$each /tmp/host/$each; done")
    name = await guest.sh("cat /sys/bus/i2c/devices/i2c-0/name")
    program = f"cd {PROJECT} && PYTHONDONTWRITEBYTECODE=1 {sys.executable} -m tests.guest.i2c_host '{name}'"
    printed = await guest.sh(f"chroot /tmp/host /bin/sh -c {shlex.quote(program)}")
    assert printed.splitlines() == [
        "temperature: 2 of 2 b'\\x15\\x80'",
        "write: 1 of 1",
        'read: 2 of 2 b"a host\'s"',
        "two chips: 4 of 4 b'\\x15' b'ho'",
        "quick: 1 of 1",
        "absent: 0 of 1",
        "group that fails: 2 of 3 b'\\x15\\x80'",
        "after it: 2 of 2 b'\\x00'",
    ]
