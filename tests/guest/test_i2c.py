"""Our I2C bus in Linux under QEMU: tools, drivers, a reboot, and as a host's bus."""

from __future__ import annotations

import re
import shlex
import sys
from typing import TYPE_CHECKING

import pytest

from tests.docs.documents import PROJECT
from tests.guest import i2c_bus
from tests.rig.guest import guest as rig
from tests.rig.programs.backend import start_backend

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.guest

DEVICES = i2c_bus.DEVICES
MODULES = "modprobe -a i2c-virtio i2c-dev lm75 at24"
NO_COMMAND = "does SMBus commands only: a transfer that is none fails, such as 'write 1, read 33'"
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
            assert backend.program.output().count("Traceback") == 1
            await guest.reboot()
            await guest.sh(MODULES)
            bus = await i2c_bus.find_bus(guest)
            assert set(await i2c_bus.detected(guest, bus, "-r")) == i2c_bus.ADDRESSES


async def check_as_host(guest: rig.Guest) -> None:
    """Do in the guest what we do on a host whose buses a guest gets: its kernel takes the chips for real.

    Python and all else comes from the machine that the guest runs on.
    """
    await guest.sh("modprobe -a 9pnet_virtio 9p && mkdir /tmp/host")
    await guest.sh("mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=262144,ro host /tmp/host")
    await guest.sh("for each in dev proc sys; do mount -o bind /$each /tmp/host/$each; done")
    await check_i2c(guest)
    await check_smbus(guest)


async def use_as_host(guest: rig.Guest, kind: str, name: str) -> list[str]:
    """Return what tests/guest/i2c_host.py prints in the guest, for a bus of that name."""
    program = (
        f"cd {PROJECT} && PYTHONDONTWRITEBYTECODE=1 {sys.executable} -m tests.guest.i2c_host {kind} '{name}'"
    )
    printed = await guest.sh(f"chroot /tmp/host /bin/sh -c {shlex.quote(program)}")
    return printed.splitlines()


async def check_i2c(guest: rig.Guest) -> None:
    """A bus of I2C transfers, which is ours."""
    name = await guest.sh(f"cat {DEVICES}/i2c-0/name")
    assert await use_as_host(guest, "i2c", name) == [
        "temperature: 2 of 2 b'\\x15\\x80'",
        "write: 1 of 1",
        'read: 2 of 2 b"a host\'s"',
        "two chips: 4 of 4 b'\\x15' b'ho'",
        "quick: 1 of 1",
        "absent: 0 of 1",
        "group that fails: 2 of 3 b'\\x15\\x80'",
        "after it: 2 of 2 b'\\x00'",
    ]


async def check_smbus(guest: rig.Guest) -> None:
    """A bus of SMBus commands only, and a chip of it that a driver has: Linux simulates both."""
    await guest.sh("modprobe i2c-stub chip_addr=0x48,0x50")
    adapter = await guest.sh(f"grep -l stub {DEVICES}/i2c-*/name")
    bus = adapter.removeprefix(f"{DEVICES}/i2c-").removesuffix("/name")
    name = await guest.sh(f"cat {adapter}")

    await guest.sh(f"echo lm75 0x48 >{adapter.removesuffix('name')}new_device")
    (told,) = await use_as_host(guest, "smbus", name)
    free = re.search(r"belongs to a driver of the host; '(echo .*)' frees it$", told)
    assert free is not None, told
    await guest.sh(free[1])

    await guest.sh(f"i2cset -y {bus} 0x48 0 0x8015 w")
    printed = await use_as_host(guest, "smbus", name)
    printed.remove(f"/dev/i2c-{bus} {NO_COMMAND}")
    assert printed == [
        "quick: 1 of 1",
        "word: 2 of 2 b'\\x15\\x80'",
        "write word: 1 of 1",
        "byte: 2 of 2 b'\\xab'",
        "write byte: 1 of 1",
        "write code: 1 of 1",
        "read byte: 1 of 1 b'\\x12'",
        "write block: 1 of 1",
        'block: 2 of 2 b"a host\'s"',
        "too long: 0 of 2",
        "two chips: 0 of 4",
        "absent: 0 of 1",
        "after it: 2 of 2 b'\\x12'",
    ]
    assert await guest.sh(f"i2cget -y {bus} 0x48 1 w") == "0xcdab"
    assert await guest.sh(f"i2cget -y {bus} 0x50 0x10 i 8") == " ".join(
        f"{byte:#04x}" for byte in b"a host's"
    )
    await guest.sh("rmmod i2c-stub")
