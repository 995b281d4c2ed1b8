"""The command line of the GPIO device: what it takes, and what it says of what cannot be had."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from protocol.program.command_line import UserError
from vhost_user.devices.gpio import Gpio
from vhost_user.devices.gpio import host as gpio_host
from vhost_user.devices.gpio.options import ChipChoice, GpioProgram, parse_device_list, parse_line
from vhost_user.devices.gpio.simulation import SimulatedChip
from vhost_user.program.options import parse_options

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 60


def made(*argv: str) -> list[Gpio]:
    program = GpioProgram()
    return program.make(parse_options(program, "vhost-user-gpio", ["-s", "/tmp/none", *argv]))


def levels(device: Gpio) -> dict[str, int]:
    """Return the names of a device's lines, with their levels."""
    assert isinstance(device.simulation, SimulatedChip)
    return {name: state.value for name, state in device.simulation.state().items()}


def test_named_lines() -> None:
    (device,) = made(
        *("--line", "button"),
        *("--line", "door,initial=1"),
        *("--line", "reset,active-low"),
        *("--line", "both,active-low,initial=0"),
        *("--line", ""),
    )
    assert levels(device) == {"button": 0, "door": 1, "reset": 1, "both": 0, "4": 0}


def test_simulated_chips_as_rust_vmm_has_them() -> None:
    (device,) = made("-l", "s4")
    assert levels(device) == {"0": 0, "1": 0, "2": 0, "3": 0}


def test_chip_for_each_socket() -> None:
    devices = made("-l", "s4:s8", "-c", "2")
    assert [len(device.interrupts) for device in devices] == [4, 8]
    simulation = devices[0].simulation
    assert simulation is not None
    assert simulation is devices[1].simulation
    assert {name: len(chip.parts) for name, chip in simulation.parts.items()} == {"0": 4, "1": 8}


@pytest.mark.parametrize("text", ["a,initial=2", "a,initial", "a,", "a,b=1", "a/b", "ä", "a\n"])
def test_line_that_is_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_line(text)


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("0", [ChipChoice("0")]),
        ("2:4:7", [ChipChoice("2"), ChipChoice("4"), ChipChoice("7")]),
        ("gpiochip1=4,17,20-22", [ChipChoice("gpiochip1", (4, 17, 20, 21, 22))]),
        ("/dev/gpiochip0=0:s3", [ChipChoice("/dev/gpiochip0", (0,)), ChipChoice("", simulated=3)]),
        ("soc=1", [ChipChoice("soc", (1,))]),
    ],
)
def test_device_list(text: str, choices: list[ChipChoice]) -> None:
    assert parse_device_list(text) == choices


@pytest.mark.parametrize(
    "text", ["", "0:", "=1", "0=", "0=a", "0=3-1", "0=1,1", "0=1-3,2", "s0", "s65536", "0=-1"]
)
def test_device_list_that_is_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_device_list(text)


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ((), "give lines: --line NAME"),
        (("--line", "a", "-l", "s1"), "give lines: --line NAME"),
        (("-l", "s1:s2"), "2 chips for 1 socket; each socket serves one, give --socket-count 2"),
        (("-l", "s1", "--socket-count", "2"), "1 chip for 2 sockets"),
        (("--line", "a", "--line", "a"), "'a' cannot be the name of another part; give each --line a name"),
        (("-l", "99"), "cannot open the GPIO chip /dev/gpiochip99: there is none; 'gpiodetect' lists"),
        (("-l", "nosuchchip"), "cannot open the GPIO chip /dev/nosuchchip: there is none"),
        (("-l", "/dev/null"), "cannot open the GPIO chip /dev/null: it is something else; 'gpiodetect'"),
        (("-l", "/tmp=1"), "cannot open the GPIO chip /tmp: it is something else"),
        (("-l", "s3:/dev/null", "--socket-count", "2"), "cannot open the GPIO chip /dev/null"),
    ],
)
def test_what_cannot_be_had(argv: tuple[str, ...], error: str) -> None:
    with pytest.raises(UserError, match=error):
        made(*argv)


def test_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gpiod", None)
    with pytest.raises(UserError, match=r"package gpiod, version 2: pip install 'qemu-companion\[gpio\]'"):
        made("-l", "0")


def test_package_of_version_1_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gpiod", argparse)  # some module without LineSettings
    with pytest.raises(UserError, match="version 2"):
        made("-l", "0")


def test_chip_that_may_not_be_opened(directory: Path) -> None:
    """As somebody who is not root, who may not even import what root has installed."""
    path = directory / "gpiochip"
    path.touch(mode=0)
    code = "import gpiod, os, sys, vhost_user.devices.gpio; from vhost_user.program.main import gpio\n"
    if not os.geteuid():
        code += "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    code += "sys.exit(gpio())"
    argv = [sys.executable, "-c", code, "-s", str(directory / "sock"), "-l", str(path)]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert result.returncode == 1
    assert result.stderr == (
        f"vhost-user-gpio: cannot open the GPIO chip {path}: Permission denied; join the group that"
        f" 'ls -l {path}' shows, or run as root\n"
    )


def test_path_of_a_chip() -> None:
    names = {"3": "/dev/gpiochip3", "gpiochip3": "/dev/gpiochip3", "./chip": "chip", "/dev/gpio": "/dev/gpio"}
    assert {name: str(gpio_host._path(name)) for name in names} == names


def test_program_says_what_it_is() -> None:
    def output(*options: str) -> str:
        argv = [sys.executable, "-m", "vhost_user.program.main", "run", "gpio", *options]
        return subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=True).stdout

    assert json.loads(output("--print-capabilities")) == {"type": "gpio", "features": []}
    arguments = output("-s", "/tmp/gpio.sock", "-l", "s1", "--print-qemu-args")
    assert arguments.endswith("-device vhost-user-gpio-pci,chardev=gpio0\n")
