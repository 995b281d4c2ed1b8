"""What a Linux guest finds on our I2C bus: by its tools, by its drivers, and after changes."""

from __future__ import annotations

import hashlib
import random
import re
from typing import TYPE_CHECKING, ClassVar

import pytest

from tests.rig.guest.guest import CommandError
from vhost_user.devices.i2c import Register, RegisterChip
from vhost_user.simulation import control_client

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rig.guest.guest import Shell

SENSOR, EEPROM, LARGE, OWN = 0x48, 0x50, 0x54, 0x20
LARGE_ADDRESSES = range(LARGE, LARGE + 4)
WRONG = 0x40
"""The register of our own chip that cannot be read."""
ADDRESSES = {OWN, SENSOR, EEPROM, *LARGE_ADDRESSES}
DEVICES = "/sys/bus/i2c/devices"


class Own(RegisterChip):
    """A chip that Linux has no driver for, whose author has made a mistake."""

    registers: ClassVar = {
        0: Register(0xA5, mask=0),
        1: Register(size=2),
        2: Register(0x12),
        WRONG: Register(),
    }

    def register_read(self, register: int) -> int:
        if register == WRONG:
            raise KeyError("what its author forgot")
        return super().register_read(register)


def chips(directory: Path) -> list[str]:
    """Return the options for the chips, with the EEPROM's file and the control socket in `directory`."""
    return [
        *("--chip", f"lm75@{SENSOR:#x},temperature=21.5"),
        *("--chip", f"24c02@{EEPROM:#x},file={directory / 'eeprom'}"),
        *("--chip", f"24c08@{LARGE:#x}"),
        *("--chip", f"{__name__}:Own@{OWN:#x}"),
        *("--control", str(directory / "control")),
    ]


async def check(guest: Shell, directory: Path) -> None:
    """Use the bus in every way."""
    bus = await find_bus(guest)
    await check_tools(guest, bus)
    await check_sensor(guest, bus, directory)
    await check_eeprom(guest, bus, directory)
    await check_large_eeprom(guest, bus, directory)
    assert await detected(guest, bus, "-r") == dict.fromkeys(ADDRESSES, "UU") | {OWN: f"{OWN:x}"}


async def find_bus(guest: Shell) -> int:
    """Return the number of our bus in the guest."""
    path = await guest.sh(f"grep -l virtio {DEVICES}/i2c-*/name")
    return int(path.removeprefix(f"{DEVICES}/i2c-").removesuffix("/name"))


async def detected(guest: Shell, bus: int, *options: str) -> dict[int, str]:
    """Return what i2cdetect finds where: the address, or UU where a driver has the chip."""
    table = await guest.sh(f"i2cdetect -y {' '.join(options)} {bus}")
    rows = [line.partition(": ") for line in table.splitlines()[1:]]
    found: dict[int, str] = {}
    for start, _, row in rows:
        cells = [row[column : column + 2] for column in range(0, len(row), 3)]
        found |= {int(start, 16) + column: cell for column, cell in enumerate(cells)}
    return {address: cell for address, cell in found.items() if cell.strip() not in {"", "--"}}


async def check_tools(guest: Shell, bus: int) -> None:
    """i2cdetect, i2cget, i2cset, i2ctransfer: SMBus commands and plain messages."""
    everything = {address: f"{address:x}" for address in ADDRESSES}
    assert await detected(guest, bus, "-r") == everything
    assert await detected(guest, bus, "-q") == everything  # requests of length zero

    own, sensor = f"{bus} {OWN:#x}", f"{bus} {SENSOR:#x}"
    assert await guest.sh(f"i2cget -y {own} 0") == "0xa5"
    assert await guest.sh(f"i2cget -y {sensor} 0 w") == "0x8015"  # the low byte comes first in SMBus
    await guest.sh(f"i2cset -y {own} 1 0x3412 w && i2cset -y {own} 2 0x56")
    assert await guest.sh(f"i2ctransfer -y {bus} w1@{OWN:#x} 0 r4") == "0xa5 0x12 0x34 0x56"
    assert await guest.sh(f"i2cget -y {own} 2 c") == "0x56"  # a write and a read, with a stop between them
    several = f"w3@{OWN:#x} 1 0xab 0xcd w1@{SENSOR:#x} 0 r2@{SENSOR:#x} r1@{OWN:#x}"
    assert await guest.sh(f"i2ctransfer -y {bus} {several}") == "0x15 0x80\n0x56"
    for wrong in (f"i2cget -y {bus} 0x21 0", f"i2cset -y {own} 9 1", *[f"i2cget -y {own} {WRONG}"] * 3):
        with pytest.raises(CommandError, match=r"Error: (Read|Write) failed"):
            await guest.sh(f"{wrong} 2>&1")
    assert "only 0/2 messages" in await guest.sh(f"i2ctransfer -y {bus} w1@0x21 0 r1 2>&1")
    assert await guest.sh(f"i2cget -y {own} 0") == "0xa5"


async def check_sensor(guest: Shell, bus: int, directory: Path) -> None:
    """The kernel's driver of the LM75, while the temperature is changed from outside."""
    await guest.sh(f"echo lm75 {SENSOR:#x} >{DEVICES}/i2c-{bus}/new_device")
    hwmon = await guest.sh(f"ls -d {DEVICES}/{bus}-00{SENSOR:x}/hwmon/hwmon*")
    name = f"{SENSOR:#x}"
    read = f"cat {hwmon}/temp1_input"
    assert await guest.sh(read) == "21500"
    async with control_client.connect(str(directory / "control")) as control:
        for celsius in (30.0, -40.5, 0.0, 124.5):
            await control.call("set_temperature", on=name, celsius=celsius)
            assert await guest.sh(read) == str(int(celsius * 1000))
        await guest.sh(f"echo 60000 >{hwmon}/temp1_max")
        assert await control.call("get_register", on=name, register=3) == 60 << 8
        assert await control.call("get_alarm", on=name)
        await control.call("nack", on=name, count=100)
        with pytest.raises(CommandError, match="Input/output error"):
            await guest.sh(f"{read} 2>&1")
        await control.call("nack", on=name, count=0)
        assert await guest.sh(read) == "124500"


async def check_eeprom(guest: Shell, bus: int, directory: Path) -> None:
    """The kernel's driver of EEPROMs: all of it read and written, in the guest, in our file, from outside."""
    await guest.sh(f"echo 24c02 {EEPROM:#x} >{DEVICES}/i2c-{bus}/new_device")
    eeprom = f"{DEVICES}/{bus}-00{EEPROM:x}/eeprom"
    file = directory / "eeprom"
    assert await digest(guest, eeprom) == hashlib.sha256(file.read_bytes()).hexdigest()
    await guest.sh(f"head -c 256 /dev/urandom >/tmp/data && cat /tmp/data >{eeprom}")
    written = await digest(guest, "/tmp/data")
    assert await digest(guest, eeprom) == written == hashlib.sha256(file.read_bytes()).hexdigest()

    content = random.Random(1).randbytes(256)
    async with control_client.connect(str(directory / "control")) as control:
        await control.call("write_memory", on=f"{EEPROM:#x}", offset=0, data=content.hex())
        assert await digest(guest, eeprom) == hashlib.sha256(content).hexdigest()
        await guest.sh(f"printf hello | dd of={eeprom} bs=1 seek=6 conv=notrunc 2>/dev/null")
        assert bytes.fromhex(await control.call("read_memory", on=f"{EEPROM:#x}"))[4:13] == (
            content[4:6] + b"hello" + content[11:13]
        )


async def check_large_eeprom(guest: Shell, bus: int, directory: Path) -> None:
    """One that has four addresses, which the driver takes when it is told of the first."""
    await guest.sh(f"echo 24c08 {LARGE:#x} >{DEVICES}/i2c-{bus}/new_device")
    eeprom = f"{DEVICES}/{bus}-00{LARGE:x}/eeprom"
    content = random.Random(2).randbytes(1024)
    async with control_client.connect(str(directory / "control")) as control:
        await control.call("write_memory", on=f"{LARGE:#x}", offset=0, data=content.hex())
        assert await digest(guest, eeprom) == hashlib.sha256(content).hexdigest()
        await guest.sh(f"head -c 1024 /dev/urandom >/tmp/large && cat /tmp/large >{eeprom}")
        written = bytes.fromhex(await control.call("read_memory", on=f"{LARGE:#x}"))
        assert await digest(guest, "/tmp/large") == hashlib.sha256(written).hexdigest()


async def digest(guest: Shell, path: str) -> str:
    output = await guest.sh(f"sha256sum {path}")
    (found,) = re.findall(r"^[0-9a-f]{64}", output)
    return str(found)
