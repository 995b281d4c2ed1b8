"""Buses of the host: what can be known without hardware, and smbus2 with the kernel's ioctls played."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path

import pytest
from smbus2.smbus2 import I2cFunc

from protocol.program.command_line import UserError
from tests.vhost_user.devices.i2c.kernel import Kernel
from vhost_user.devices.i2c.chips.chip import I2cMessage
from vhost_user.devices.i2c.host import HostBus, HostChips, find_bus, parse_device_list


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, devices: Path) -> Kernel:
    kernel = Kernel()
    kernel.play(monkeypatch)
    (devices / "i2c-7").touch()
    return kernel


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """What is in the place of /dev."""
    return tmp_path


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """What is in the place of /sys/bus/i2c/devices."""
    for bus, name in {"i2c-0": "SMBus I801", "i2c-1": "twin", "i2c-2": "twin", "i2c-10": "DPDDC-D"}.items():
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "name").write_text(f"{name}\n")
    (tmp_path / "0-0048").mkdir()
    (tmp_path / "0-0048/name").write_text("lm75\n")
    return tmp_path


# The device list


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2:32:21,3:10:23", [("2", (32, 21)), ("3", (10, 23))]),
        ("2:0x20", [("2", (0x20,))]),
        ("i915 gmbus dpd:32:0X15,DPDDC-D:10", [("i915 gmbus dpd", (32, 21)), ("DPDDC-D", (10,))]),
    ],
)
def test_device_list_is_that_of_rust_vmm(text: str, expected: list[tuple[str, tuple[int, ...]]]) -> None:
    assert parse_device_list(text) == [HostChips(*each) for each in expected]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'' is not BUS:ADDRESS"),
        ("2", "'2' is not BUS:ADDRESS"),
        (":32", "':32' is not BUS:ADDRESS"),
        ("2:32,", "'' is not BUS:ADDRESS"),
        ("2:zz", "'zz' is not an address"),
        ("2:7", "7 is not an address of a chip; they are 0x08 to 0x77"),
        ("2:0x78", "0x78 is not an address of a chip"),
        ("2:-32", "-32 is not an address of a chip"),
        ("2:32,2:33", "bus '2' is named twice; give all its addresses at once"),
    ],
)
def test_wrong_device_list(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_device_list(text)


def test_bus_is_found_by_number_and_by_name(sysfs: Path) -> None:
    assert find_bus("5", sysfs) == 5
    assert find_bus("SMBus I801", sysfs) == 0
    assert find_bus("DPDDC-D", sysfs) == 10


def test_bus_of_no_name_or_an_ambiguous_one(sysfs: Path, tmp_path: Path) -> None:
    there = "there are 'SMBus I801', 'twin', 'DPDDC-D', 'twin'; 'i2cdetect -l' lists them"
    with pytest.raises(UserError, match="no I2C adapter is called 'lm75'; there are ") as caught:
        find_bus("lm75", sysfs)
    assert sorted(str(caught.value)) == sorted(f"no I2C adapter is called 'lm75'; {there}")
    with pytest.raises(UserError, match="i2c-1 and i2c-2 are both called 'twin'; give the number of one"):
        find_bus("twin", sysfs)
    with pytest.raises(UserError, match="no I2C adapter is called 'x'; 'i2cdetect -l' lists them"):
        find_bus("x", tmp_path / "none")


# Opening a bus


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_bus_that_is_not_there(devices: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*/i2c-7; 'modprobe i2c-dev'"):
        HostBus(7, [0x48], devices)


def test_file_that_is_no_bus(devices: Path) -> None:
    """The kernel's own answer to the ioctl."""
    (devices / "i2c-7").touch()
    before = descriptors()
    with pytest.raises(UserError, match="i2c-7 is not an I2C bus: Inappropriate ioctl for device; "):
        HostBus(7, [0x48], devices)
    assert descriptors() == before


def test_bus_that_may_not_be_opened(devices: Path) -> None:
    (devices / "i2c-7").touch(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match=r"may not open .*/i2c-7; become a member of its group"):
            HostBus(7, [0x48], devices)
    finally:
        os.seteuid(user)


def test_bus_that_does_nothing_for_a_guest(kernel: Kernel, devices: Path) -> None:
    kernel.functions = int(I2cFunc.SMBUS_PEC)
    before = descriptors()
    with pytest.raises(UserError, match="i2c-7 does neither I2C transfers nor SMBus commands; see 'i2cdet"):
        HostBus(7, [0x48], devices)
    assert descriptors() == before


@pytest.mark.parametrize("functions", [I2cFunc.I2C, I2cFunc.SMBUS_BYTE_DATA])
def test_chip_that_a_driver_of_the_host_has(kernel: Kernel, devices: Path, functions: I2cFunc) -> None:
    """Two drivers of one chip would spoil each other's work."""
    kernel.functions = int(functions)
    kernel.busy = {0x4A}
    before = descriptors()
    told = r"0x4a of .*/i2c-7 belongs to a driver of the host; .* /sys/bus/i2c/devices/7-004a/driver/unbind"
    with pytest.raises(UserError, match=told):
        HostBus(7, [0x48, 0x4A], devices)
    assert descriptors() == before


def test_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "smbus2", None)
    with pytest.raises(UserError, match=r"need smbus2; run: pip install 'qemu-companion\[i2c\]'"):
        HostBus(7, [0x48])


# Transfers


async def test_messages_are_one_ioctl(kernel: Kernel, devices: Path) -> None:
    before = descriptors()
    with closing(HostBus(7, [0x48], devices)) as bus:
        assert bus.addresses == {0x48}
        messages = [
            I2cMessage(0x48, data=b"\x05\x06"),
            I2cMessage(0x48, read=True, size=3),
            I2cMessage(0x48, read=True),
            I2cMessage(0x48),
        ]
        assert await bus.transfer(messages) == 4
        assert messages[1].data == b"\x01\x02\x03"
        assert messages[2].data == b""
    assert kernel.transfers == [
        [(0x48, False, b"\x05\x06"), (0x48, True, bytes(3)), (0x48, True, b""), (0x48, False, b"")]
    ]
    assert descriptors() == before


async def test_transfer_that_the_kernel_fails_has_done_nothing(kernel: Kernel, devices: Path) -> None:
    with closing(HostBus(7, [0x48, 0x49], devices)) as bus:
        messages = [I2cMessage(0x48, read=True, size=1), I2cMessage(0x49, data=b"\x01")]
        assert await bus.transfer(messages) == 0
        assert messages[0].data == b""


async def test_adapter_that_is_gone_is_told_of_once(
    kernel: Kernel, devices: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.is_gone = True
    with closing(HostBus(7, [0x48], devices)) as bus:
        assert await bus.transfer([I2cMessage(0x48, read=True, size=1)]) == 0
        assert not caplog.messages  # some adapters answer so where a chip does not
        (devices / "i2c-7").unlink()
        for _ in range(3):
            assert await bus.transfer([I2cMessage(0x48, read=True, size=1)]) == 0
    assert caplog.messages == [f"{devices}/i2c-7 is gone: every transfer fails; start again once it is back"]


async def test_adapter_that_fails_by_having_done_less(kernel: Kernel, devices: Path) -> None:
    kernel.tells = True
    with closing(HostBus(7, [0x48, 0x49], devices)) as bus:
        messages = [
            I2cMessage(0x48, read=True, size=2),
            I2cMessage(0x49, data=b"\x01"),
            I2cMessage(0x48, read=True, size=1),
        ]
        assert await bus.transfer(messages) == 1
        assert [message.data for message in messages] == [b"\x01\x02", b"\x01", b""]
        assert await bus.transfer(messages[1:]) == 0
