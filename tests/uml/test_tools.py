"""What User Mode Linux has for the tests of devices: drivers, and tools that run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.guest.test_tools import TRIED, assert_printed
from tests.rig.guest import uml
from tests.rig.guest.tools import TOOLS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.uml

DRIVERS = """
cd /sys/bus/virtio/drivers
ls -d gpio_virtio i2c_virtio virtio_blk virtio_console virtio_input virtio_net virtio_rng virtio_scsi \
    virtiofs vmw_vsock_virtio_transport /sys/bus/i2c/drivers/lm75 /sys/bus/i2c/drivers/at24 \
    /sys/class/i2c-dev /dev/vsock
"""


async def test_drivers_are_there_and_tools_run(directory: Path) -> None:
    async with uml.boot(directory, tools=TOOLS) as guest:
        await guest.sh(DRIVERS)
        assert_printed(await guest.sh(TRIED))
