"""The command line of vhost-user-i2c: chips and buses, and every mistake in one line."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import pytest

from protocol.program.command_line import UserError
from tests.rig.programs.backend import start_backend
from tests.vhost_user.devices.i2c.driver import Read, Write, transfer
from vhost_user import call
from vhost_user.devices.i2c import At24, I2c, I2cChip, Lm75
from vhost_user.devices.i2c.options import ChipOption, I2cProgram, parse_chip
from vhost_user.frontend import connect
from vhost_user.simulation import control_client
from vhost_user.simulation.calls import CallError

if TYPE_CHECKING:
    from decimal import Decimal
    from pathlib import Path


class Typed(I2cChip):
    """A chip whose annotations mean something for a type checker only."""

    def __init__(self, number: Decimal) -> None:
        super().__init__()
        self.number = number


class Clock(I2cChip):
    """A chip that counts how often it runs."""

    runs = 0

    async def run(self) -> None:
        self.runs += 1

    @call
    def get_runs(self) -> int:
        """Return that."""
        return self.runs


class Unfinished(I2cChip):
    """A chip that cannot be made."""

    def __init__(self) -> None:
        super().__init__()
        self.brightness = vars(self)["lux"]


class Configured(I2cChip):
    """A chip with arguments of every kind."""

    def __init__(
        self, text: str, number: int = 1, ratio: float | None = None, *, switched_on: bool = False
    ) -> None:
        super().__init__()
        self.arguments = (text, number, ratio, switched_on)

    @call
    def get_arguments(self) -> list[str]:
        """Return them."""
        return [str(argument) for argument in self.arguments]


NO_CHIP = "something else"
HERE = "tests.vhost_user.devices.i2c.test_options"


def options(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.set_defaults(socket_path=None)
    I2cProgram().add_options(parser)
    return parser.parse_args(argv)


def made(*chips: str) -> I2c:
    (device,) = I2cProgram().make(options(*(f"--chip={chip}" for chip in chips)))
    return device


def refusal(*argv: str) -> str:
    """Return what the command line is refused with."""
    with pytest.raises((UserError, argparse.ArgumentError)) as caught:
        I2cProgram().make(options(*argv))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_chip_is_a_name_an_address_and_arguments() -> None:
    assert parse_chip("lm75@0x48") == ChipOption("lm75", 0x48)
    assert parse_chip("a.b:C@72,x=1,y=a,,b=c,z=") == ChipOption(
        "a.b:C", 72, {"x": "1", "y": "a,b=c", "z": ""}
    )


def test_ready_chips(tmp_path: Path) -> None:
    path = tmp_path / "a,b"
    with made(
        "lm75@0x48,temperature=-3.5",
        f"24c02@0x50,file={path}".replace("a,b", "a,,b"),
        "24c64@0x51,read_only=on",
    ) as device:
        sensor, eeprom, large = device.chips.values()
        assert list(device.chips) == [0x48, 0x50, 0x51]
        assert isinstance(sensor, Lm75)
        assert sensor.get_temperature() == -3.5
        assert isinstance(eeprom, At24)
        assert path.read_bytes() == eeprom.read_memory()
        assert isinstance(large, At24)
        assert large.model.size == 8192


def test_chip_of_ones_own() -> None:
    with made(f"{HERE}:Configured@0x20,text=a b,number=0x10,ratio=1.5,switched_on=on") as device:
        (chip,) = device.chips.values()
        assert chip.arguments == ("a b", 16, 1.5, True)  # type: ignore[attr-defined]


def test_argument_of_another_type_is_a_text() -> None:
    with made(f"{HERE}:Typed@0x20,number=1") as device:
        (chip,) = device.chips.values()
        assert chip.number == "1"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ((), "the bus has no chips; give --chip lm75@0x48, or --device-list for chips of the host"),
        (("--chip", "lm75"), "'lm75' is not NAME@ADDRESS, as in lm75@0x48"),
        (("--chip", "@0x48"), "'@0x48' is not NAME@ADDRESS"),
        (("--chip", "lm75@x"), "'x' is not an address; give one such as 0x48, or 72"),
        (("--chip", "lm75@0x7f"), "0x7f is not an address of a chip; they are 0x08 to 0x77"),
        (("--chip", "lm75@0x48,warm"), "'warm' is not KEY=VALUE"),
        (("--chip", "lm76@0x48"), "there is no chip 'lm76'; give one of lm75, 24c01, "),
        (("--chip", "lm75@0x48,temperature=1,temperature=2"), "'temperature' is given twice"),
        (("--chip", "lm75@0x48,colour=red"), "lm75 has no option 'colour'; there are: temperature"),
        (("--chip", "lm75@0x48,temperature=warm"), "'warm' is not a value of 'temperature' of the chip lm75"),
        (("--chip", "lm75@0x48,temperature=999"), "cannot make the chip lm75: 999.0 degrees cannot be"),
        (("--chip", "24c02@0x50,read_only=yes"), "'yes' is not a value of 'read_only'"),
        (("--chip", "24c02@0x50,file=/dev/null"), "cannot make the chip 24c02: a pipe or a device keeps no"),
        (("--chip", "24c02@0x50,file=/none/x"), "cannot make the chip 24c02: /none/x: No such file"),
        (("--chip", "24c02@0x50,model=24c64"), "'model'"),
        (("--chip", "no.module:Chip@0x20"), "cannot import no.module: No module named 'no'; is it"),
        (("--chip", f"{HERE}:Nothing@0x20"), "has no chip class Nothing; one is derived from I2cChip"),
        (("--chip", f"{HERE}:NO_CHIP@0x20"), "has no chip class NO_CHIP; one is derived from I2cChip"),
        (("--chip", f"{HERE}:I2c@0x20"), "has no chip class I2c; one is derived from I2cChip"),
        (("--chip", f"{HERE}:@0x20"), "names no chip; give MODULE:CLASS, as in package.module:MyChip"),
        (("--chip", f"{HERE}:Unfinished@0x20"), f"cannot make the chip {HERE}:Unfinished: KeyError: 'lux' ("),
        (("--chip", f"{HERE}:Configured@0x20"), "missing 1 required positional argument: 'text'"),
        (("--chip", "lm75@0x48", "--chip", "24c02@72"), "address 0x48 is given twice; the guest has one bus"),
        (("--chip", "lm75@0x48", "-l", "7:72"), "address 0x48 is given twice"),
        (("--chip", "24c16@0x50", "--chip", "24c02@0x57"), "address 0x57 is given twice"),
        (("--chip", "24c04@0x50", "-l", "7:0x51"), "address 0x51 is given twice"),
        (("--chip", "24c04@0x51"), "0x51 is not an address of a chip that has 2; give a multiple of 2"),
        (("-l", "7:72,8:0x48"), "address 0x48 is given twice"),
        (("-l", "7"), "'7' is not BUS:ADDRESS[:ADDRESS...], as in 2:0x20:0x21"),
        (("-l", "919:72"), "there is no /dev/i2c-919; 'modprobe i2c-dev' makes it"),
        (("-l", "no such bus:72"), "no I2C adapter is called 'no such bus'"),
    ],
)
def test_mistake_is_told_in_one_line(argv: tuple[str, ...], told: str) -> None:
    assert told in refusal(*argv)


def test_chips_are_closed_where_a_bus_cannot_be_opened(tmp_path: Path) -> None:
    """A descriptor that stayed open would fail the test as a warning."""
    refusal("--chip", f"24c02@0x50,file={tmp_path / 'eeprom'}", "-l", "919:72")


async def test_chip_that_does_something_beside_the_bus(directory: Path) -> None:
    """Once, however many guests have it."""
    chip = f"{HERE}:Clock@0x20"
    control = directory / "control"
    options = ("--chip", chip, "--control", str(control), "--socket-count", "2")
    async with start_backend(directory, "i2c", *options), control_client.connect(str(control)) as client:
        assert await client.call("get_runs", on="0x20") == 1


async def test_two_guests_and_the_control_socket(directory: Path) -> None:
    control = directory / "control"
    chips = ("--chip", "lm75@0x48", "--chip", "24c02@0x50", "--control", str(control), "--socket-count", "2")
    async with (
        start_backend(directory, "i2c", *chips) as backend,
        connect(f"{backend.socket}0") as first,
        connect(f"{backend.socket}1") as second,
        control_client.connect(str(control)) as client,
    ):
        await first.negotiate()
        await second.negotiate()
        queues = [await first.start_queue(), await second.start_queue()]
        await client.subscribe()
        await client.call("set_temperature", on="0x48", celsius=21.5)
        for queue in queues:
            assert await transfer(queue, Write(0x48, b"\0"), Read(0x48, 2)) == [b"", b"\x15\x80"]
        await transfer(queues[0], Write(0x50, b"\x10hello"))
        assert await transfer(queues[1], Write(0x50, b"\x10"), Read(0x50, 5)) == [b"", b"hello"]
        event = await client.next_event()
        assert (event.name, event.on, event.data) == ("written", "0x50", {"offset": 16, "data": "68656c6c6f"})
        assert await client.call("read_memory", on="0x50", offset=16, size=5) == "68656c6c6f"
        assert await client.call("transfer", on="0x48", data="02", size=2) == "4b00"
        await client.call("nack", on="0x50")
        assert await transfer(queues[0], Read(0x50, 1)) == [None]
        assert await transfer(queues[0], Read(0x50, 1)) == [b"\xff"]
        with pytest.raises(CallError, match=r"200.0 degrees cannot be measured"):
            await client.call("set_temperature", on="0x48", celsius=200.0)
