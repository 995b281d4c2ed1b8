"""What a guest offers tests of devices: QEMU and Linux of the platform, drivers, tools."""

from __future__ import annotations

import re

import pytest

from tests.rig.debian import platforms
from tests.rig.guest import guest as rig
from tests.rig.guest.tools import TOOLS
from tests.rig.scenarios import iperf

pytestmark = pytest.mark.guest

MODULES = """
modprobe -a virtio_net vmw_vsock_virtio_transport virtio_input evdev virtio_blk virtio_rng \
    i2c-virtio i2c-dev lm75 at24 gpio-virtio
cd /sys/bus/virtio/drivers
ls -d gpio_virtio i2c_virtio virtio_blk virtio_console virtio_input virtio_net virtio_rng \
    vmw_vsock_virtio_transport /sys/bus/i2c/drivers/lm75 /sys/bus/i2c/drivers/at24 \
    /sys/class/i2c-dev /dev/vsock
"""
TRIED = f"""
fio --version
i2cdetect -V 2>&1
i2cdetect -l
for tool in i2cget i2cset i2cdump i2ctransfer; do $tool -V 2>&1; done
for tool in gpiodetect gpioget gpioinfo gpiomon gpioset; do $tool --version | head -1; done
gpiodetect
evtest --version
ip link set lo up
{iperf.serve()}
iperf3 --client 127.0.0.1 --bytes 1M | grep -c receiver
ping -c 1 127.0.0.1 | grep -c ' 0% packet loss'
"""
"""Runs a program of each set; tests/uml does so too."""
PRINTED = """\
fio-3
i2cdetect version 4
i2cget version 4
i2cset version 4
i2cdump version 4
i2ctransfer version 4
gpiodetect (libgpiod) v
gpioget (libgpiod) v
gpioinfo (libgpiod) v
gpiomon (libgpiod) v
gpioset (libgpiod) v
evtest 1
1
1
"""
"""How the lines begin that TRIED prints."""


def assert_printed(output: str) -> None:
    """Assert that `output` is what TRIED prints."""
    expected = PRINTED.splitlines()
    printed = output.splitlines()
    heads = [line[: len(head)] for line, head in zip(printed, expected, strict=False)]
    assert heads + printed[len(heads) :] == expected


@pytest.mark.extended
async def test_drivers_load_and_tools_run() -> None:
    async with rig.boot(tools=TOOLS) as guest:
        qemu = (await guest.qmp.execute("query-version"))["qemu"]
        linux = re.split(r"\D", await guest.sh("uname -r"))
        platform = platforms.selected()
        assert (qemu["major"], qemu["minor"]) == platform.qemu
        assert tuple(map(int, linux[:2])) == platform.linux
        await guest.sh(MODULES)
        assert_printed(await guest.sh(TRIED))
