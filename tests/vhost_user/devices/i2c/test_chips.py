"""Simulated chips: registers, the temperature sensor, EEPROMs, and what changes them from outside."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_user import CallError, call
from vhost_user.devices.i2c import At24, I2c, I2cChip, Lm75, Register, RegisterChip
from vhost_user.devices.i2c.buses import ChipBus
from vhost_user.devices.i2c.chips.at24 import MODELS
from vhost_user.devices.i2c.chips.chip import I2cMessage, run_transfer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vhost_user.simulation.simulation import Event


class Light(RegisterChip):
    """What the guide has: a chip of one's own in ten lines."""

    registers: ClassVar = {
        0: Register(0x42, mask=0),
        1: Register(size=2, mask=0),
        2: Register(0xF0, mask=0x0F),
        3: Register(0x1234, size=2),
    }

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, int]] = []

    def register_written(self, register: int, value: int) -> None:
        self.told.append((register, value))

    @call
    def set_brightness(self, lux: int) -> None:
        """Have it `lux` bright."""
        self.set_register(1, lux)


class Still(Light):
    """A chip that stays at the register that it was told."""

    auto_increment = False


class Wide(RegisterChip):
    """A chip of another kind: a pointer of 16 bits, and the low byte first."""

    registers: ClassVar = {0x0100: Register(0x1234, size=2), 0x0101: Register(0x56)}
    pointer_size = 2
    byte_order = "little"


@pytest.fixture
def light() -> Light:
    return Light()


def exchange(chip: I2cChip, *messages: bytes | int) -> list[bytes | None]:
    """Do a transfer of writes (bytes) and reads (their size); None for each that was not done."""
    given = [
        I2cMessage(9, data=message) if isinstance(message, bytes) else I2cMessage(9, read=True, size=message)
        for message in messages
    ]
    done = run_transfer({9: chip}, given)
    return [message.data if number < done else None for number, message in enumerate(given)]


def get(chip: I2cChip, pointer: int, size: int) -> bytes:
    """Write a pointer, and read."""
    _, data = exchange(chip, bytes([pointer]), size)
    assert data is not None
    return data


# Registers


def test_registers_are_read_from_the_pointer_on(light: Light) -> None:
    light.set_brightness(0x0102)
    assert get(light, 0, 4) == b"\x42\x01\x02\xf0"
    assert exchange(light, 1) == [b"\x12"]  # goes on after the last register that was begun
    assert get(light, 1, 1) == b"\x01"


def test_pointer_stays_where_a_chip_has_no_auto_increment() -> None:
    still = Still()
    assert get(still, 3, 5) == b"\x12\x34\x12\x34\x12"
    exchange(still, b"\x02\x01\x02")
    assert still.told == [(2, 0xF1), (2, 0xF2)]


def test_register_that_is_not_there_reads_as_an_idle_bus_and_takes_nothing(light: Light) -> None:
    assert get(light, 0x80, 3) == b"\xff\xff\xff"
    assert get(light, 0xFF, 3) == b"\xff\x42\x00"
    assert exchange(light, b"\x80\x01") == [None]


def test_pointer_of_two_bytes_and_the_low_byte_first() -> None:
    wide = Wide()
    assert exchange(wide, b"\x01\x00", 4) == [b"\x01\x00", b"\x34\x12\x56\xff"]
    assert exchange(wide, b"\x01\x00\xcd\xab\xef", b"\x01\x01", 1)[2] == b"\xef"
    assert (wide.get_register(0x100), wide.pointer) == (0xABCD, 0x102)
    assert exchange(wide, b"\x01") == [None]
    assert exchange(wide, b"\xff\xff", 1)[1] == b"\xff"
    assert wide.pointer == 0


def test_guest_writes_the_bits_that_it_can(light: Light) -> None:
    assert exchange(light, b"\x00\xff\xff\xff\xff\x56\x78") == [b"\x00\xff\xff\xff\xff\x56\x78"]
    assert get(light, 0, 6) == b"\x42\x00\x00\xff\x56\x78"
    assert light.told == [(0, 0x42), (1, 0), (2, 0xFF), (3, 0x5678)]


def test_half_a_register_is_not_stored(light: Light) -> None:
    exchange(light, b"\x03\x56")
    assert light.get_register(3) == 0x1234


def test_registers_are_changed_from_outside(light: Light) -> None:
    light.set_register(0, 7)
    light.set_register(3, 0xFFFF)
    assert (light.get_register(0), light.get_register(3), light.told) == (7, 0xFFFF, [])
    with pytest.raises(CallError, match=r"there is no register 9; there are 0, 1, 2, 3"):
        light.get_register(9)
    with pytest.raises(CallError, match="65536 does not fit register 0x1: it holds 0 to 65535"):
        light.set_brightness(1 << 16)


# What every chip has


def test_chip_refuses_as_many_transfers_as_it_is_told_to(light: Light) -> None:
    light.nack(2)
    assert exchange(light, b"\x00", 1) == [None, None]
    assert exchange(light, b"\x00") == [None]
    assert exchange(light, b"\x00", 1) == [b"\x00", b"\x42"]
    light.nack(5)
    light.nack(0)
    assert exchange(light, 1) == [b"\x00"]
    with pytest.raises(CallError, match="-1 transfers"):
        light.nack(-1)


def test_transfer_is_what_another_master_does(light: Light) -> None:
    assert light.transfer(b"\x03", 2) == b"\x12\x34"
    assert light.transfer(b"\x03\x00\x01") == b""
    assert light.get_register(3) == 1
    assert light.transfer() == b""
    with pytest.raises(CallError, match="the chip did not acknowledge message 1 of 2"):
        light.transfer(b"\x90\x00", 1)
    with pytest.raises(CallError, match="65536 bytes cannot be read at once"):
        light.transfer(b"", 65536)


def test_chip_without_registers_says_so() -> None:
    with pytest.raises(CallError, match="I2cChip has no registers; use transfer"):
        I2cChip().get_register(0)
    with pytest.raises(CallError, match="I2cChip has no registers; use transfer"):
        I2cChip().set_register(0, 0)


def test_chip_that_does_nothing_acknowledges_its_address() -> None:
    assert exchange(I2cChip(), b"") == [b""]
    assert exchange(I2cChip(), 3) == [b"\xff\xff\xff"]
    assert exchange(I2cChip(), b"\x01") == [None]


# The temperature sensor


@pytest.mark.parametrize(
    ("celsius", "expected"),
    [
        (21.5, "1580"),
        (0, "0000"),
        (-0.5, "ff80"),
        (-25, "e700"),
        (125, "7d00"),
        (-55, "c900"),
        (20.3, "1480"),
    ],
)
def test_temperature_is_in_half_degrees(celsius: float, expected: str) -> None:
    sensor = Lm75(celsius)
    assert get(sensor, 0, 2).hex() == expected
    assert sensor.get_temperature() == celsius


@pytest.mark.parametrize("celsius", [-55.5, 125.5, float("nan"), float("inf")])
def test_temperature_that_cannot_be_measured_is_refused(celsius: float) -> None:
    sensor = Lm75()
    with pytest.raises(ValueError, match=r"degrees cannot be measured; give -55\.0 to 125\.0"):
        sensor.set_temperature(celsius)
    assert sensor.get_temperature() == 25


def test_sensor_has_the_registers_of_an_lm75() -> None:
    sensor = Lm75()
    assert [get(sensor, pointer, 2).hex() for pointer in range(5)] == ["1900", "0000", "4b00", "5000", "ffff"]
    exchange(sensor, b"\x03\x12\xff", b"\x00\x12\x34", b"\x01\xff")
    assert [get(sensor, pointer, 2).hex() for pointer in (3, 0, 1)] == ["1280", "1900", "1f1f"]


def test_sensor_that_is_shut_down_does_not_measure() -> None:
    sensor = Lm75(20)
    exchange(sensor, b"\x01\x01")
    sensor.set_temperature(30)
    assert get(sensor, 0, 2) == b"\x14\x00"
    exchange(sensor, b"\x01\x00")
    assert get(sensor, 0, 2) == b"\x1e\x00"


async def test_alarm_has_a_hysteresis() -> None:
    sensor = Lm75(20)
    device = I2c({0x48: sensor})
    exchange(sensor, b"\x03\x1e\x00", b"\x02\x19\x00")  # above 30 degrees, until below 25
    with device.simulation.events() as events:
        seen = []
        for celsius in (30, 30.5, 27, 25, 24.5, 29, -40, 31):
            sensor.set_temperature(celsius)
            seen.append(sensor.get_alarm())
        exchange(sensor, b"\x03\x28\x00", b"\x02\x23\x00")  # the limits are 40 and 35 now
        assert not sensor.get_alarm()
        told: list[Event] = [await anext(events) for _ in range(6)]
    assert seen == [False, True, True, True, False, False, False, True]
    assert [event.data for event in told if event.name == "alarm"] == [
        {"active": active} for active in (True, False, True, False)
    ]
    assert {event.on for event in told} == {"0x48"}


# EEPROMs


@pytest.fixture
def eeprom() -> Iterator[At24]:
    with closing(At24()) as chip:
        yield chip


def test_eeprom_reads_on_and_begins_again_at_its_end(eeprom: At24) -> None:
    eeprom.write_memory(0, bytes(range(256)))
    assert get(eeprom, 0xFE, 4) == b"\xfe\xff\x00\x01"
    assert exchange(eeprom, 2, 2) == [b"\x02\x03", b"\x04\x05"]
    assert get(eeprom, 0, 600) == bytes(range(256)) * 2 + bytes(range(88))


def test_eeprom_writes_go_on_at_the_beginning_of_their_page(eeprom: At24) -> None:
    exchange(eeprom, b"\x0e" + bytes(range(10)))
    assert eeprom.read_memory(8, 8) == bytes([2, 3, 4, 5, 6, 7, 8, 9])
    assert eeprom.read_memory(0, 8) == b"\xff" * 8
    assert eeprom.read_memory(16, 8) == b"\xff" * 8


@given(st.sampled_from(sorted(MODELS)), st.data())
async def test_eeprom_keeps_what_is_written_within_a_page(name: str, data: st.DataObject) -> None:
    size, page, width = MODELS[name]
    offset = data.draw(st.integers(0, size - 1))
    content = data.draw(st.binary(min_size=1, max_size=page - offset % page))
    chip = At24(name)
    bus = ChipBus({0x50: chip})
    address, pointer = 0x50 + (offset >> 8 * width), (offset % (1 << 8 * width)).to_bytes(width, "big")
    assert address in bus.addresses
    read = I2cMessage(address, read=True, size=len(content))
    messages = [I2cMessage(address, data=pointer + content), I2cMessage(address, data=pointer), read]
    assert await bus.transfer(messages) == 3
    assert read.data == content
    expected = bytearray(b"\xff" * size)
    expected[offset : offset + len(content)] = content
    assert chip.read_memory() == expected


def test_eeprom_of_two_address_bytes_wants_both() -> None:
    chip = At24("24c64")
    assert exchange(chip, b"\x01") == [None]
    chip.write_memory(0x1234, b"here")
    assert exchange(chip, b"\x12\x34", 4) == [b"\x12\x34", b"here"]
    assert exchange(chip, b"\xf2\x34", 4) == [b"\xf2\x34", b"here"]  # the upper bits do not matter


@pytest.mark.parametrize(
    ("model", "count"),
    [("24c02", 1), ("24c04", 2), ("24c08", 4), ("24c16", 8), ("24c512", 1), ("24c1024", 2), ("24c2048", 4)],
)
async def test_eeprom_has_as_many_addresses_as_its_pointer_is_short_of(model: str, count: int) -> None:
    bus = ChipBus({0x50: At24(model)})
    assert bus.addresses == set(range(0x50, 0x50 + count))
    assert list(bus.parts) == ["0x50"]
    assert await bus.transfer([I2cMessage(0x50 + count - 1)]) == 1
    assert await bus.transfer([I2cMessage(0x50 + count)]) == 0


async def test_eeprom_of_several_addresses_reads_on_from_one_to_the_next() -> None:
    chip = At24("24c04")
    chip.write_memory(0, bytes(number % 251 for number in range(512)))
    bus = ChipBus({0x52: chip})
    read = [I2cMessage(0x53, read=True, size=2), I2cMessage(0x52, read=True, size=2)]
    assert await bus.transfer([I2cMessage(0x52, data=b"\xff"), *read]) == 3
    assert [message.data for message in read] == [b"\x04\x05", b"\x06\x07"]
    again = I2cMessage(0x53, read=True, size=3)
    assert await bus.transfer([I2cMessage(0x53, data=b"\xfe"), again]) == 2
    assert again.data == bytes([510 % 251, 511 % 251, 0])


@pytest.mark.parametrize(
    ("chips", "told"),
    [
        ({0x51: "24c04"}, "0x51 is not an address of a chip that has 2; give a multiple of 2, such as 0x50"),
        ({0x54: "24c16"}, "0x54 is not an address of a chip that has 8; give a multiple of 8, such as 0x50"),
        ({0x50: "24c16", 0x57: "24c02"}, "address 0x57 is used twice"),
        ({0x51: "24c02", 0x50: "24c04"}, "address 0x51 is used twice"),
        ({0x78: "24c02"}, "0x78 is not an address of a chip; they are 0x08 to 0x77"),
        ({0x00: "24c16"}, "0x00 is not an address of a chip; they are 0x08 to 0x77"),
    ],
)
def test_addresses_that_cannot_be(chips: dict[int, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        I2c({address: At24(model) for address, model in chips.items()})


def test_eeprom_that_is_read_only_takes_an_address_alone(eeprom: At24) -> None:
    eeprom.set_read_only()
    assert exchange(eeprom, b"\x10\x01") == [None]
    assert exchange(eeprom, b"\x10", 1) == [b"\x10", b"\xff"]
    eeprom.write_memory(0x10, b"\x02")
    assert get(eeprom, 0x10, 1) == b"\x02"
    eeprom.set_read_only(False)
    assert exchange(eeprom, b"\x10\x01") == [b"\x10\x01"]
    assert eeprom.get_register(0x10) == 1


def test_eeprom_from_outside(eeprom: At24) -> None:
    eeprom.set_register(255, 1)
    assert (eeprom.get_register(255), eeprom.read_memory(254)) == (1, b"\xff\x01")
    for wrong in (lambda: eeprom.read_memory(250, 7), lambda: eeprom.write_memory(-1, b"\0")):
        with pytest.raises(CallError, match="are not within the 256 that there are"):
            wrong()
    with pytest.raises(CallError, match="256 is not a byte"):
        eeprom.set_register(0, 256)


async def test_eeprom_tells_what_was_written(eeprom: At24) -> None:
    with I2c({0x50: eeprom}).simulation.events() as events:
        exchange(eeprom, b"\x0e\x01\x02\x03")
        event = await anext(events)
    assert (event.name, event.on, event.data) == ("written", "0x50", {"offset": 14, "data": "010203"})


def test_eeprom_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "eeprom"
    with closing(At24(file=str(path))) as chip:
        assert path.read_bytes() == b"\xff" * 256
        exchange(chip, b"\x0f\x01\x02")
    content = b"\xff" * 8 + b"\x02" + b"\xff" * 6 + b"\x01" + b"\xff" * 240
    assert path.read_bytes() == content
    with closing(At24(file=str(path))) as chip:
        assert chip.read_memory() == content


def test_short_file_is_made_longer_and_a_long_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "eeprom"
    path.write_bytes(b"short")
    with closing(At24("24c01", str(path))) as chip:
        assert chip.read_memory() == path.read_bytes() == b"short" + b"\xff" * 123
    path.write_bytes(bytes(257))
    with pytest.raises(ValueError, match="the file has 257 bytes, more than the 256 of the EEPROM"):
        At24(file=str(path))


def test_file_is_that_of_one_eeprom(tmp_path: Path) -> None:
    """Each would write what the other one does not know of."""
    path = str(tmp_path / "eeprom")
    with closing(At24(file=path)) as chip:
        with pytest.raises(
            ValueError, match="the file is that of another EEPROM, here or in another program"
        ):
            At24(file=path)
        exchange(chip, b"\x00\x01")
    with closing(At24(file=path)) as chip:
        assert chip.read_memory(0, 1) == b"\x01"


def test_unknown_eeprom() -> None:
    with pytest.raises(ValueError, match="there is no EEPROM '24c03' here; there are 24c01, "):
        At24("24c03")
