r"""A thermometer on an I2C bus, which Linux's driver lm75 takes for one: a chip of your own.

    python3 thermometer.py /tmp/i2c.sock sine       # 20 degrees, 5 more or less
    python3 thermometer.py /tmp/i2c.sock FILE       # what is in a file when the guest asks
    sensors-of-mine | python3 thermometer.py /tmp/i2c.sock -    # the last number, one a line

    qemu-system-x86_64 ... -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem \
        -chardev socket,path=/tmp/i2c.sock,id=i2c -device vhost-user-i2c-pci,chardev=i2c

In a Linux guest, where I2C buses are numbered from 0 on and the first one may be another's:

    echo lm75 0x48 > /sys/bus/i2c/devices/i2c-0/new_device
    cat /sys/class/hwmon/hwmon0/temp1_input
"""

import math
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import ClassVar

import trio

from vhost_user import serve
from vhost_user.devices.i2c import I2c, NackError, Register, RegisterChip
from vhost_user.program import run_main


class Thermometer(RegisterChip):
    """A temperature in register 0, in 1/256 degrees, and the three other registers that the driver wants."""

    registers: ClassVar = {0: Register(size=2), 1: Register(), 2: Register(size=2), 3: Register(size=2)}
    auto_increment = False

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.last = source, b"20"

    def register_read(self, register: int) -> int:
        if register != 0:
            return super().register_read(register)
        try:
            return round(self.celsius() * 256) & 0xFFFF
        except (OSError, ValueError, OverflowError) as error:
            raise NackError(f"no temperature: {error}") from error  # the guest gets an error

    def celsius(self) -> float:
        if self.source == "sine":
            return 20 + 5 * math.sin(time.monotonic() / 10)
        return float(self.last if self.source == "-" else Path(self.source).read_text())

    async def run(self) -> None:
        rest = b""
        while self.source == "-" and (data := await read_stdin()):
            *lines, rest = (rest + data).split(b"\n")
            self.last = lines[-1] if lines else self.last


async def read_stdin() -> bytes:
    return await trio.to_thread.run_sync(os.read, sys.stdin.fileno(), 4096, abandon_on_cancel=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(run_main(partial(serve, I2c({0x48: Thermometer(sys.argv[2])}), socket_path=sys.argv[1])))
