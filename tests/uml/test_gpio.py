"""Our GPIO lines in User Mode Linux: the guide's session, a thousand edges."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from protocol.virtio.ids import DeviceId
from tests.rig.guest import uml
from tests.rig.scenarios import gpio
from vhost_user.simulation import control_client

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.uml


async def test_guide(directory: Path) -> None:
    """Notified in-band, as it has that."""
    options = gpio.guide_options(directory)
    async with uml.boot_with(directory, DeviceId.GPIO, "gpio", *options, tools=("gpio",)) as (guest, _):
        for command in gpio.GUIDE:
            if not command.text.startswith("modprobe"):  # the driver is built in
                await gpio.follow(guest, command, directory)
        assert "virtio_gpio" not in await guest.sh("dmesg")


async def test_program_sees_a_thousand_edges(directory: Path) -> None:
    """Notified by eventfds."""
    options = [*gpio.guide_options(directory), "--without", "INBAND_NOTIFICATIONS"]
    async with (
        uml.boot_with(directory, DeviceId.GPIO, "gpio", *options, tools=("gpio",)) as (guest, _),
        control_client.connect(directory / "gpio.control") as control,
    ):
        await gpio.check_edges(guest, control)
        assert "virtio_gpio" not in await guest.sh("dmesg")
