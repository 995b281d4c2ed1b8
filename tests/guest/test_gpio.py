"""Our GPIO lines in Linux under QEMU: the guide, edges, a pause, a reboot, the example."""

from __future__ import annotations

import os
import site
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.docs.documents import PROJECT
from tests.guest.test_guide import HOST_FILES, MOUNT
from tests.rig.debian import platforms
from tests.rig.guest import guest as rig
from tests.rig.programs.backend import start_backend, until_printed
from tests.rig.scenarios import gpio
from vhost_user.simulation import control_client

if TYPE_CHECKING:
    from tests.rig.programs.process import Program
    from vhost_user.simulation.control_client import ControlClient

pytestmark = pytest.mark.guest

SECONDS = 60
HOST_LINES = (
    f"PYTHONPATH={PROJECT}:{':'.join(site.getsitepackages())} chroot /host"
    f" {Path(sys.executable).resolve()} -BSm tests.guest.host_lines 2>&1"
)
EXAMPLE = 1
"""Which of the guest's devices it is."""


def attached(socket: Path, name: str) -> list[str]:
    """Return QEMU's arguments for our device as the guide has them."""
    return [
        *("-chardev", f"socket,path={socket},id={name}"),
        *("-device", f"vhost-user-gpio-pci,chardev={name}"),
    ]


async def test_lines_in_a_guest(directory: Path) -> None:
    """All in one guest: its boot takes longer than all that is done in it."""
    options = gpio.guide_options(directory)
    async with (
        start_backend(directory, "gpio", *options, name="gpio") as backend,
        gpio.running_example(directory) as (program, keyboard),
        rig.boot(
            *attached(backend.socket, "gpio"),
            *attached(directory / "example.sock", "example"),
            shared=True,
            tools=("gpio",),
        ) as guest,
        control_client.connect(directory / "gpio.control") as control,
    ):
        has_interrupts = await passes_interrupts_on(guest)
        for command in gpio.GUIDE:
            if command.text.startswith("gpiomon") and not has_interrupts:
                break  # it is in the guide's last session
            await gpio.follow(guest, command, directory)
        await check_pause(guest, control)
        if has_interrupts:
            await gpio.check_edges(guest, control)
            await check_pause_with_interrupts(guest, control)
        await check_that_linux_complains_of_nothing(guest)
        await check_reboot(guest, control, has_interrupts=has_interrupts)
        await leave_the_guest_only(guest, EXAMPLE)
        await check_example(guest, program, keyboard, has_interrupts=has_interrupts)


@pytest.mark.extended
@pytest.mark.skipif(
    platforms.selected().qemu < (9, 0),
    reason="its chip has interrupts with QEMU 9 and later only, as QEMU_COMPANION_PLATFORM=debian13 has it",
)
async def test_chip_of_the_host(directory: Path) -> None:
    """The guest's chip is the host's for a back-end that runs in the guest, with our Python over 9p."""
    control_path = directory / "control"
    options = ("--line", "button", "--line", "led", "--control", str(control_path))
    async with (
        start_backend(directory, "gpio", *options) as backend,
        rig.boot(*attached(backend.socket, "gpio"), *HOST_FILES, shared=True) as guest,
        control_client.connect(control_path) as control,
    ):
        await guest.sh(f"modprobe gpio-virtio && {MOUNT.strip()}")
        await control.subscribe()
        lines = []
        with trio.fail_after(2 * SECONDS):
            command = await guest.start(HOST_LINES)
            while (line := await command.line()) != "done":
                lines.append(line)
                if line.endswith(" change"):
                    await control.call("toggle", on="button", within=SECONDS)
        assert lines == [
            "button led, which is IN",
            "OUT 1",
            "the guest gets an error for line 0, which is 1 of /dev/gpiochip0: Device or resource busy;"
            " something else on the host uses it",
            "somebody else cannot use it",
            *(*what_changes_do("EDGE_BOTH", "11"), "EDGE_BOTH ends INVALID"),
            *(*what_changes_do("EDGE_RISING", "10"), "EDGE_RISING ends INVALID"),
            *(*what_changes_do("LEVEL_HIGH", "10"), "LEVEL_HIGH ends INVALID"),
            *what_changes_do("LEVEL_LOW", "01"),
        ]

        told = [await control.next_event() for _ in range(4)]
        assert [(event.on, *event.data.values()) for event in told] == [
            *(("led", "out"), ("led", 1)),
            *(("led", 0), ("led", "none")),
        ]


def what_changes_do(kind: str, interrupts: str) -> list[str]:
    """Return what is printed of two pulses: whether a change to 1, and one to 0, interrupts."""
    lines = []
    for level, does in zip((1, 0), interrupts, strict=True):
        lines += [f"{kind} change", f"{kind} {level} {'interrupts' if does == '1' else 'does not'}"]
    return lines * 2


async def passes_interrupts_on(guest: rig.Guest) -> bool:
    """Tell whether this QEMU shows a guest the feature of interrupts: none before 9.0 does."""
    version = await guest.qmp.execute("query-version")
    return bool(version["qemu"]["major"] >= 9)


async def check_pause(guest: rig.Guest, control: ControlClient) -> None:
    """A machine that is paused goes on with its outputs."""
    await gpio.light(guest, control)
    await guest.qmp.execute("stop")
    assert (await control.call("state", on="led"))["value"] == 1
    await guest.qmp.execute("cont")
    await control.call("set", on="button", value=1)
    assert await guest.sh(f"{(await gpio.tools(guest)).read} 0") == "1"
    state = await control.call("state", on="led")
    assert (state["direction"], state["value"]) == ("out", 1)
    await gpio.darken(guest, control)


async def check_pause_with_interrupts(guest: rig.Guest, control: ControlClient) -> None:
    """Nor is an interrupt lost that comes while the machine is paused."""
    monitor = gpio.Monitor(guest, "both", count=4)
    await monitor.start()
    await control.call("wait_for_interrupts", on="button", within=SECONDS)
    await control.call("pulse", on="button", within=SECONDS)
    await guest.qmp.execute("stop")
    await control.call("set", on="button", value=1, wait=False)
    await guest.qmp.execute("cont")
    await control.call("set", on="button", value=0, within=SECONDS)
    assert await monitor.finish() == ["RISING", "FALLING", "RISING", "FALLING"]


async def leave_the_guest_only(guest: rig.Guest, number: int) -> None:
    """Take all devices but one from their driver: Linux 6.12 crashes at the interrupts of a second one."""
    driver = "/sys/bus/virtio/drivers/gpio_virtio"
    devices = (await guest.sh(f"cd {driver}; ls -d virtio*")).split()
    await guest.sh(f"for device in {' '.join(devices)}; do echo $device >{driver}/unbind; done")
    await guest.sh(f"echo {devices[number]} >{driver}/bind")


async def check_example(guest: rig.Guest, program: Program, keyboard: int, *, has_interrupts: bool) -> None:
    """Enter reaches the guest, and the guest's LED the host."""
    monitor = gpio.Monitor(guest, "rising", count=2)
    if has_interrupts:
        await monitor.start()
        await monitor.until_it_waits()
    os.write(keyboard, b"\n\n")
    if has_interrupts:
        assert await monitor.finish() == ["RISING", "RISING"]
    await until_printed(program, "the button was pressed\n", 2)
    await guest.sh(f"{(await gpio.tools(guest)).flash} 1=1")
    await until_printed(program, "the LED is on\nthe LED is off\n")


async def check_that_linux_complains_of_nothing(guest: rig.Guest) -> None:
    """Its driver says so of each request that fails."""
    assert "virtio_gpio" not in await guest.sh("dmesg")


async def check_reboot(guest: rig.Guest, control: ControlClient, *, has_interrupts: bool) -> None:
    """A guest that reboots lets go of its lines, although nobody tells the back-end so."""
    await gpio.light(guest, control)
    if has_interrupts:
        await gpio.Monitor(guest, "both", count=1).start()
        await control.call("wait_for_interrupts", on="button", within=SECONDS)
    await guest.reboot()
    await guest.sh("modprobe gpio-virtio")
    states = await control.call("state")
    assert [(state["direction"], state["interrupts"]) for state in states.values()] == [("none", "none")] * 2
    await control.call("set", on="button", value=1)
    assert await guest.sh(f"{(await gpio.tools(guest)).read} 0 1") == "1 0"
